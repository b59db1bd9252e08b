"""Fingerprints change with any weight, and are recomputed only when weights change."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from langchain_mara.policy.fingerprints import WeightsFingerprint, sampled_weights, settings_digest, weights_state


def module() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def change_in_place(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight[0, 0] += 1


def replace(linear: nn.Linear) -> None:
    linear.bias = nn.Parameter(torch.ones(3))


def load(linear: nn.Linear) -> None:
    linear.load_state_dict(nn.Linear(4, 3).state_dict())


CHANGES = pytest.mark.parametrize("change", [change_in_place, replace, load])


@CHANGES
def test_the_state_of_weights_changes_with_them(change: Callable[[nn.Linear], None]) -> None:
    linear = module()
    before = weights_state(linear)
    linear(torch.ones(2, 4))
    linear.eval()
    assert weights_state(linear) == before
    change(linear)
    assert weights_state(linear) != before


@CHANGES
def test_a_fingerprint_is_recomputed_only_when_weights_change(change: Callable[[nn.Linear], None]) -> None:
    linear, fingerprint, reads = module(), WeightsFingerprint(), 0

    def named() -> Iterator[tuple[str, Tensor]]:
        nonlocal reads
        reads += 1
        yield from linear.named_parameters()

    first = fingerprint.of(linear, named())
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert fingerprint.of(linear, named()) == first
    assert reads == 1
    change(linear)
    assert fingerprint.of(linear, named()) != first
    assert reads == 2


def of(name: str, tensor: Tensor) -> str:
    return WeightsFingerprint().of(nn.Module(), [(name, tensor)])


def test_names_dtypes_shapes_and_values_count() -> None:
    values = torch.arange(6.0)
    others = [
        of("b", values),
        of("a", values.half()),
        of("a", values.view(2, 3)),
        of("a", torch.nextafter(values, torch.tensor(torch.inf))),
    ]
    assert of("a", values) == of("a", values.clone())
    assert len({of("a", values), *others}) == 5


def test_large_weights_are_sampled_and_each_weight_has_its_part() -> None:
    model = tiny_model("llama-3")
    sampled = dict(sampled_weights(model))
    tensors = [*model.parameters(), *model.buffers()]
    assert len(sampled) == len(tensors)
    for sample, tensor in zip(sampled.values(), tensors, strict=True):
        rows = tensor.shape[0] if tensor.dim() > 1 else 1
        assert max(rows, min(64, tensor.numel())) <= sample.numel() <= max(2 * rows, 127)


def test_what_is_written_behind_autograds_back_is_noticed() -> None:
    embedding = nn.Embedding(300, 9)
    for row in range(300):
        before = weights_state(embedding)
        embedding.weight.data[row] += 1
        assert weights_state(embedding) != before
    linear = nn.Linear(900, 300)
    before = weights_state(linear)
    linear.weight.data[40:50] *= 2
    assert weights_state(linear) != before


def test_settings_of_layers_count_and_modes_do_not() -> None:
    model = tiny_model("llama-3")
    before = weights_state(model), settings_digest(model)
    model.train()
    model.name_or_path = "elsewhere"
    assert (weights_state(model), settings_digest(model)) == before
    model.model.norm.variance_epsilon = 0.1
    assert weights_state(model) != before[0]
    assert settings_digest(model) != before[1]


@pytest.mark.parametrize("stored", [lambda w: w.t().contiguous().t(), lambda w: torch.cat([w, w])[len(w) :]])
def test_samples_do_not_depend_on_how_a_weight_is_stored(stored: Callable[[Tensor], Tensor]) -> None:
    layer, other = nn.Linear(34, 70), nn.Linear(34, 70)
    other.weight, other.bias = nn.Parameter(stored(layer.weight.detach())), layer.bias
    pairs = list(zip(sampled_weights(layer), sampled_weights(other), strict=True))  # type: ignore[arg-type]
    assert [name for (name, _), _ in pairs] == ["weight (70, 34)", "bias (70,)"]
    assert all(torch.equal(left, right) for (_, left), (_, right) in pairs)
    assert len(pairs[0][0][1]) >= 70
