import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.fitting import net as network
from langchain_mara_training.fitting import networks
from langchain_mara_training.fitting import state_dataset as batches
from langchain_mara_training.fitting.classifier import MaraClassifier
from langchain_mara_training.fitting.fit_job import fitting_options
from langchain_mara_training.fitting.state_dataset import LabeledStates, States, generator_for
from langchain_mara_training.fitting.validation import split_by_group
from langchain_mara_training.storage.job_checkpoint import FILE_NAME
from torch.nn import functional

from langchain_mara import MaraAgent
from langchain_mara.exceptions import AgentMismatchError, CheckpointError, DataError, LoadingError, TrainingError

SMALL = {"width": 16, "max_epochs": 4, "batch_size": 32, "learning_rate": 3e-2, "random_state": 0, "device": "cpu"}
SMALL |= {"dropout": 0.0, "input_dropout": 0.0, "weight_decay": 0.01}
X = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
Y = (X[:, 0] > X[:, 1]).astype(int)
GROUPS = np.arange(300) // 5


def make(**options: Any) -> MaraClassifier:
    return MaraClassifier(**SMALL | options)


def fingerprint(states: Any = X, labels: Any = Y, **options: Any) -> str:
    """Fingerprint of an agent fitted to the states."""
    return make(**options).fit(states, labels).agent_.fingerprint


class Shards:
    """Sharded states that remember which shards each access touched."""

    def __init__(self, array: np.ndarray, starts: list[int]) -> None:
        self.array, self.shard_starts = array, starts
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, 2
        self.touched: list[set[int]] = []

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows = np.arange(len(self))[key]
        self.touched.append(set(np.searchsorted(self.shard_starts, rows, side="right")))
        return self.array[key]


def test_learns_and_tells_what_it_did() -> None:
    fitted = make(max_epochs=20, policy_model="tiny").fit(X, Y)
    assert fitted.score(X, Y) > 0.97
    assert fitted.n_iter_ == fitted.best_epoch_ == len(fitted.loss_curve_) == 20
    assert fitted.loss_curve_[-1] < 0.3 * fitted.loss_curve_[0]
    assert fitted.validation_curve_ is None
    assert isinstance(fitted.agent_, MaraAgent)
    assert not fitted.agent_.training
    assert fitted.agent_.policy_model == "tiny"


def test_the_agent_survives_saving_with_its_policy_model(tmp_path: Path) -> None:
    agent = make(policy_model="tiny").fit(X, Y).agent_
    agent.save_pretrained(tmp_path)
    loaded = MaraAgent.from_pretrained(tmp_path)
    assert (loaded.fingerprint, loaded.policy_model) == (agent.fingerprint, "tiny")


def test_probabilities_are_the_agents() -> None:
    fitted = make().fit(X, np.where(Y, "yes", "no"))
    probabilities = fitted.predict_proba(X)
    expected = fitted.agent_.accept_probability(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(probabilities[:, 1], expected, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(fitted.predict(X) == "yes", fitted.decision_function(X) > 0)


def test_a_seed_decides_everything() -> None:
    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(random_state=1)
    np.random.seed(3)  # noqa: NPY002
    first = fingerprint(random_state=None)
    np.random.seed(3)  # noqa: NPY002
    assert fingerprint(random_state=None) == first
    assert fingerprint(random_state=np.random.RandomState(3)) == first


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    make(early_stopping=True).fit(X, Y).partial_fit(X, Y).predict(X)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def in_file(array: np.ndarray, folder: Path) -> np.memmap:
    np.save(folder / "states.npy", array)
    return np.load(folder / "states.npy", mmap_mode="r")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int64])
def test_the_same_states_in_whatever_they_lie(dtype: Any, tmp_path: Path) -> None:
    states = (4 * X).astype(dtype)
    expected = fingerprint(states)
    assert fingerprint(in_file(states, tmp_path)) == expected
    assert fingerprint(np.asfortranarray(states)) == expected
    if dtype != ">f4":
        tensor = torch.from_numpy(states)
        assert fingerprint(tensor, torch.from_numpy(Y)) == expected
    if dtype == np.float16:
        sharded = Shards(states, [0])
        assert fingerprint(sharded) == expected
        bfloat = tensor.bfloat16()
        assert fingerprint(bfloat) == fingerprint(bfloat.float())


def test_states_are_not_copied_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original = States.take
    monkeypatch.setattr(States, "take", lambda self, rows: taken.append(len(rows)) or original(self, rows))
    states = in_file(X.astype(np.float16), tmp_path)
    seen = []
    monkeypatch.setattr(States, "__init__", _recording(seen))
    make().fit(states, Y)
    assert max(taken) == 32
    assert np.shares_memory(seen[0], states)


def _recording(seen: list[Any]) -> Callable[[States, Any], None]:
    original = States.__init__

    def recording(self: States, array: Any) -> None:
        seen.append(array)
        original(self, array)

    return recording


def test_shards_are_read_one_after_the_other() -> None:
    sharded = Shards(X, [0, 70, 150, 220])
    fitted = make().fit(sharded, Y)
    assert len(sharded.touched) == 4 * 10
    assert max(len(shards) for shards in sharded.touched) == 2
    assert fitted.agent_.fingerprint != fingerprint()
    assert fitted.score(sharded, Y) == fitted.score(X, Y) > 0.8


def test_an_epoch_holds_every_row_once_shuffled_by_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 100 * 8 * 4)
    data = LabeledStates(States(in_file(X, tmp_path)), Y, np.ones(300, np.float32), np.arange(0, 300, 2))
    order = np.concatenate(data.shuffled(32, generator_for(0, 1)))
    assert sorted(order) == list(range(0, 300, 2))
    blocks = order // 100
    assert np.count_nonzero(np.diff(blocks)) == 2
    assert np.count_nonzero(np.diff(order) < 0) > 50
    assert {tuple(np.concatenate(data.shuffled(32, generator_for(0, e))) // 100) for e in range(9)} > {tuple(blocks)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_states_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    states = X.astype(np.float16)
    states[123, 4] = value
    for source in (states, in_file(states, tmp_path), torch.from_numpy(states), Shards(states, [0, 100])):
        with pytest.raises(DataError, match=r"Row 123 of X holds NaN or infinite.*Drop such rows"):
            make().fit(source, Y)
    with pytest.raises(DataError, match="Row 123"):
        make().fit(X, Y).predict(states)
    with pytest.raises(DataError, match="beyond float32"):
        make().fit(X.astype(np.float64) * 1e300, Y)


def test_states_whose_sum_overflows_are_finite() -> None:
    huge = np.full((4, 8), 3e38, np.float32)
    assert torch.equal(States(huge).take(np.array([2, 1])), torch.from_numpy(huge[:2]))
    huge[2, 3] = -np.inf
    with pytest.raises(DataError, match="Row 2"):
        States(huge).take(np.array([1, 2]))


def test_a_loss_that_is_not_finite_stops_the_job() -> None:
    with pytest.raises(TrainingError, match=r"loss became \w+ in epoch \d.*lower learning_rate than 1e\+25"):
        make(learning_rate=1e25).fit(X, Y)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(300, int), "holds one class: "),
        (np.arange(300) % 3, "Only binary classification is supported. The type of the target is multiclass"),
        (X[:, 0], "Unknown label type"),
        (Y[:-1], "inconsistent numbers of samples"),
    ],
)
def test_wrong_labels(labels: np.ndarray, message: str) -> None:
    for states in (X, Shards(X, [0])):
        with pytest.raises(ValueError, match=message):
            make().fit(states, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, "width must be a whole number of at least 4, not 3"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between"),
        ({"schedule": "step"}, "schedule must be one of"),
        ({"mixed_precision": "int8"}, "mixed_precision must be one of"),
        ({"class_weight": "even"}, "class_weight must be a dict"),
        ({"class_weight": {7: 1.0}}, "class_weight names"),
        ({"class_weight": {0: -1.0}}, "factors above 0"),
    ],
)
def test_parameters_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options).fit(X, Y)


def test_devices_that_are_not_there() -> None:
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(LoadingError, match=f"no device '{device}' here; available: cpu"):
            make(device=device).fit(X, Y)
    with pytest.raises(LoadingError, match="needs CUDA, not cpu. Use 'bf16'"):
        make(mixed_precision="fp16").fit(X, Y)


def test_rows_of_weight_zero_take_no_part() -> None:
    weights = (np.arange(300) % 3 > 0).astype(float)
    kept = weights > 0
    whole = make().fit(X, Y, sample_weight=weights).agent_.fingerprint
    assert whole == make().fit(X[kept], Y[kept]).agent_.fingerprint
    assert whole != fingerprint()
    stream = make().partial_fit(X, Y, [0, 1], weights).agent_.fingerprint
    assert stream == make().partial_fit(X[kept], Y[kept], [0, 1]).agent_.fingerprint
    with pytest.raises(ValueError, match="all rows of a class are zero"):
        make().fit(X, Y, sample_weight=Y)


def test_weights_weigh_the_loss() -> None:
    labels = np.random.default_rng(1).integers(0, 2, 300)
    weights = np.where(labels, 9.0, 1.0)
    fitted = make(schedule="constant", max_epochs=8).fit(X, labels, sample_weight=weights)
    assert fitted.predict(X).mean() > 0.8 > make(max_epochs=8).fit(X, labels).predict(X).mean()
    agent = networks.initialize_weights(networks.make_agent(8, 16), fitted._seed)
    losses = functional.cross_entropy(agent(torch.from_numpy(X)), torch.from_numpy(labels), reduction="none")
    start = make(batch_size=300, max_epochs=1).fit(X, labels, sample_weight=weights).loss_curve_
    assert start == [pytest.approx(np.average(losses.detach().numpy(), weights=weights), rel=1e-5)]


def test_class_weights_are_sample_weights() -> None:
    few = np.r_[np.flatnonzero(Y), np.flatnonzero(Y == 0)[:30]]
    states, labels = X[few], Y[few]
    given = make(class_weight={0: 5.0}).fit(states, labels)
    assert given.agent_.fingerprint == make().fit(states, labels, np.where(labels, 1, 5.0)).agent_.fingerprint
    even = len(labels) / (2 * np.bincount(labels))
    assert fingerprint(states, labels, class_weight="balanced") == fingerprint(
        states, labels, class_weight=dict(enumerate(even))
    )


def test_early_stopping_keeps_the_best_epoch() -> None:
    noise = np.random.default_rng(2).integers(0, 2, 300)
    fitted = make(max_epochs=40, early_stopping=True, validation_fraction=0.3, calibration=None)
    fitted.fit(X, noise, groups=GROUPS)
    assert fitted.n_iter_ == fitted.best_epoch_ + 3 < 40
    best = min(fitted.validation_curve_)
    assert fitted.validation_curve_.index(best) == fitted.best_epoch_ - 1
    _, held_out = split_by_group(noise, np.ones(300), GROUPS, 0.3, fitted._seed)
    logits = fitted.agent_(torch.from_numpy(X[held_out]))
    assert functional.cross_entropy(logits, torch.from_numpy(noise[held_out])).item() == pytest.approx(best, rel=1e-5)


def test_groups_stay_on_one_side() -> None:
    weights = np.ones(300)
    weights[:7] = 0
    train, held_out = split_by_group(Y, weights, GROUPS, 0.2, seed=0)
    assert not set(GROUPS[train]) & set(GROUPS[held_out])
    assert sorted([*train, *held_out]) == list(range(7, 300))
    assert len(set(GROUPS[held_out])) == 12
    assert set(split_by_group(Y, weights, GROUPS, 0.2, seed=1)[1]) != set(held_out)


@pytest.mark.parametrize("groups", [np.zeros(300), None])
def test_nothing_is_held_out_where_no_split_is_possible(groups: Any) -> None:
    rows = slice(None) if groups is not None else slice(3)
    fitted = make(early_stopping=True).fit(X[rows], [0, 1, 0] if groups is None else Y, groups=groups)
    assert fitted.validation_curve_ is None
    assert fitted.n_iter_ == 4


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    def rates(schedule: str) -> list[float]:
        options = fitting_options(make(schedule=schedule, learning_rate=0.04), 0)
        return [options.rate(step, 4) for step in range(5)]

    assert rates("linear") == pytest.approx([0.04, 0.03, 0.02, 0.01, 0])
    assert rates("cosine") == pytest.approx([0.04, 0.03414214, 0.02, 0.00585786, 0])
    assert rates("constant") == [0.04] * 5
    assert len({fingerprint(schedule=schedule) for schedule in ("linear", "cosine", "constant")}) == 3


def test_a_warm_start_goes_on_and_leaves_earlier_agents_alone() -> None:
    fitted = make(warm_start=True).fit(X, Y)
    earlier, loss = fitted.agent_, fitted.loss_curve_[-1]
    before = earlier.fingerprint
    fitted.fit(X, Y)
    assert fitted.loss_curve_[0] < 2 * loss < make().fit(X, Y).loss_curve_[0]
    assert earlier.fingerprint == before != fitted.agent_.fingerprint
    with pytest.raises(ValueError, match="8 features"):
        fitted.fit(X[:, :5], Y)
    with pytest.raises(ValueError, match=r"continues with the classes \[0, 1\], not \[5, 6\]. Start over with a clone"):
        fitted.fit(X, Y + 5)
    with pytest.raises(AgentMismatchError, match="width 16, not 8"):
        fitted.set_params(width=8).fit(X, Y)


def test_a_stream_of_one_shard_is_fitting_at_a_constant_rate() -> None:
    stream = make()
    for _ in range(4):
        stream.partial_fit(X, Y, classes=[0, 1])
    whole = make(schedule="constant").fit(X, Y)
    assert stream.agent_.fingerprint == whole.agent_.fingerprint
    assert stream.loss_curve_ == whole.loss_curve_
    assert stream.n_iter_ == 4


def test_streams_of_shards() -> None:
    stream = make()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        stream.partial_fit(X, Y)
    order = np.argsort(Y, kind="stable")[:200]  # the first shards hold one class only
    for rows in [*np.split(order, 4), *np.split(np.arange(300), 6) * 4]:
        stream.partial_fit(X[rows], Y[rows], classes=[0, 1])
    assert stream.score(X, Y) > 0.9
    with pytest.raises(ValueError, match=r"labels \[3\], which are not among the classes \[0, 1\]"):
        stream.partial_fit(X, np.where(Y, 3, 0))
    with pytest.raises(ValueError, match="needs all labels at once"):
        stream.set_params(class_weight="balanced").partial_fit(X, Y)


def test_half_precision_fits_weights_in_single() -> None:
    single, half = make(max_epochs=20).fit(X, Y), make(max_epochs=20, mixed_precision="bf16").fit(X, Y)
    assert half.agent_.linear1.weight.dtype is torch.float32
    assert half.score(X, Y) > 0.95
    assert half.agent_.fingerprint != single.agent_.fingerprint
    np.testing.assert_allclose(half.loss_curve_, single.loss_curve_, rtol=0.1, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
def test_cuda(precision: Any) -> None:
    fitted = make(device="cuda", max_epochs=20, mixed_precision=precision).fit(X, Y)
    assert fitted.agent_.ln.weight.is_cuda
    assert fitted.score(X, Y) > 0.95
    assert make(device=None).fit(torch.from_numpy(X).cuda(), Y).agent_.ln.weight.device.type == "cpu"


def test_folding_the_affine_map_changes_no_gradient() -> None:
    agent = networks.initialize_weights(networks.make_agent(8, 16), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        agent.ln.weight.uniform_(0.5, 2, generator=generator)
        agent.ln.bias.uniform_(-1, 1, generator=generator)
    gradients = []
    for forward in (agent, lambda states: networks.training_forward(agent, states, 0, 0, generator)):
        agent.zero_grad()
        functional.cross_entropy(forward(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        gradients.append([parameter.grad.clone() for parameter in agent.parameters()])
    for plain, folded in zip(*gradients, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-6)


def test_dropout_leaves_out_shares_and_keeps_the_mean() -> None:
    agent = networks.initialize_weights(networks.make_agent(8, 16), seed=0)
    states = torch.from_numpy(X[:1]).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (agent.linear1, agent.linear2):  # without ReLU's kinks, the mean of the logits stays
            module.bias.fill_(9)
        plain = agent(states[:1])
        logits = networks.training_forward(agent, states, 0.5, 0.2, generator)
    assert logits.std(0).min() > 0.05
    torch.testing.assert_close(logits.mean(0, keepdim=True), plain, rtol=0.1, atol=0.1)
    assert len(logits.unique(dim=0)) > 3000


def test_dropout_is_drawn_anew_in_each_step_and_the_same_in_each_fit() -> None:
    dropped = [fingerprint(dropout=0.5), fingerprint(input_dropout=0.5), fingerprint(dropout=0.5, random_state=1)]
    assert len({fingerprint(), *dropped}) == 4
    assert fingerprint(dropout=0.5) == dropped[0]
    stream = make(dropout=0.5)
    for _ in range(4):
        stream.partial_fit(X, Y, classes=[0, 1])
    assert stream.agent_.fingerprint == make(dropout=0.5, schedule="constant").fit(X, Y).agent_.fingerprint


@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_shares_of_dropout(name: str, share: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        make(**{name: share}).fit(X, Y)


def test_groups_alone_make_a_fit_stop_early() -> None:
    assert make().fit(X, Y).validation_curve_ is None
    assert make(early_stopping=False).fit(X, Y, groups=GROUPS).validation_curve_ is None
    by_groups = make().fit(X, Y, groups=GROUPS)
    assert len(by_groups.validation_curve_) == by_groups.n_iter_
    with pytest.raises(ValueError, match="must be True, False or 'auto', not 'yes'"):
        make(early_stopping="yes").fit(X, Y)


def test_an_agent_that_is_worse_than_none_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().fit(X, Y, groups=GROUPS)
    generator = np.random.default_rng(3)
    states, noise = generator.standard_normal((2000, 8), dtype=np.float32), generator.integers(0, 2, 2000)
    with pytest.warns(UserWarning, match=r"loss, \d\.\d+, never fell below 0\.\d+, that of an agent that sees nothing"):
        make().fit(states, noise, groups=np.arange(2000) // 5)


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    make(early_stopping=True).fit(X, Y)
    assert not any(capsys.readouterr())
    make(early_stopping=True, verbose=True).fit(X, Y)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ["epoch 4/4", "loss 0.", "held out 0.", "rows/s"])


class Crash(Exception):  # noqa: N818
    pass


def crash_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Makes the job die in the epoch after `count`, once it has changed the weights."""
    original = network.AgentNet.run_single_epoch

    def run(self: network.AgentNet, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.epoch == count:
            raise Crash

    monkeypatch.setattr(network.AgentNet, "run_single_epoch", run)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"mixed_precision": "bf16"}], ids=str)
def test_a_crashed_job_goes_on_at_the_next_epoch(
    count: int, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(**options).fit(X, Y)
    with monkeypatch.context() as patch:
        crash_after(patch, count)
        with pytest.raises(Crash):
            make(checkpoint_dir=tmp_path, **options).fit(X, Y)
    resumed = make(checkpoint_dir=tmp_path, **options).fit(X, Y)
    assert resumed.agent_.fingerprint == whole.agent_.fingerprint
    assert resumed.loss_curve_ == whole.loss_curve_
    assert (resumed.validation_curve_, resumed.best_epoch_) == (whole.validation_curve_, whole.best_epoch_)
    assert resumed.partial_fit(X, Y).agent_.fingerprint == whole.partial_fit(X, Y).agent_.fingerprint


def test_a_finished_job_returns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(checkpoint_dir=tmp_path, random_state=None).fit(X, Y)
    crash_after(monkeypatch, 0)
    again = make(checkpoint_dir=tmp_path, random_state=None, verbose=True).fit(X, Y)
    assert again.agent_.fingerprint == first.agent_.fingerprint
    assert again.n_iter_ == 4


@pytest.mark.parametrize(
    ("options", "changes", "named"),
    [
        ({"batch_size": 16}, {}, "batch_size"),
        ({"random_state": 1}, {}, "random_state"),
        ({}, {"y": 1 - Y}, "labels"),
        ({}, {"X": X + 1}, "states"),
        ({}, {"sample_weight": Y + 1}, "weights"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused(
    options: dict[str, Any], changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    make(checkpoint_dir=tmp_path).fit(X, Y)
    with pytest.raises(
        TrainingError, match=rf"another job; different: {named} \(.+ there, .+ now\)\. Give another checkpoint_dir"
    ):
        make(checkpoint_dir=tmp_path, **options).fit(**{"X": X, "y": Y} | changes)


def changed_at(row: int) -> np.ndarray:
    changed = X.copy()
    changed[row, 0] += 1
    return changed


@pytest.mark.parametrize("row", [0, 1, 100, len(X) - 2, len(X) - 1])
def test_every_row_of_the_states_counts(row: int, tmp_path: Path) -> None:
    """A sample of rows once told data apart, so that changed data got the old agent."""
    make(checkpoint_dir=tmp_path).fit(X, Y)
    with pytest.raises(TrainingError, match="different: states"):
        make(checkpoint_dir=tmp_path).fit(changed_at(row), Y)


def test_a_file_that_was_replaced_counts_by_its_content(tmp_path: Path) -> None:
    file, checkpoints = tmp_path / "states.npy", tmp_path / "checkpoints"
    np.save(file, X)
    times = file.stat()
    make(checkpoint_dir=checkpoints).fit(np.load(file, mmap_mode="r"), Y)
    np.save(file, changed_at(150))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(TrainingError, match="different: states"):
        make(checkpoint_dir=checkpoints).fit(np.load(file, mmap_mode="r"), Y)


def test_the_default_dtype_changes_nothing() -> None:
    options = {"early_stopping": True}
    single = make(**options).fit(X, Y)
    torch.set_default_dtype(torch.float64)
    try:
        double = make(**options).fit(X, Y)
        again = make(**options).fit(X.astype(np.float64), Y).partial_fit(X, Y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert double.agent_.fingerprint == single.agent_.fingerprint
    assert {tensor.dtype for tensor in again.agent_.state_dict().values()} == {torch.float32}
    np.testing.assert_array_equal(double.predict_proba(X), single.predict_proba(X))


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:3000] + b"\0!" + b[3002:], lambda _: b""])
def test_a_corrupt_checkpoint_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    make(checkpoint_dir=tmp_path).fit(X, Y)
    file = tmp_path / FILE_NAME
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match="truncated or corrupt.*Delete it"):
        make(checkpoint_dir=tmp_path).fit(X, Y)


JOB = """
import sys
from pathlib import Path
import numpy as np
import torch
from langchain_mara_training.fitting.classifier import MaraClassifier

torch.set_num_threads(1)  # as in the process that compares
torch.set_flush_denormal(True)
X = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
Y = (X[:, 0] > X[:, 1]).astype(int)
options = {"width": 16, "max_epochs": 120, "batch_size": 32, "random_state": 0, "device": "cpu"}
MaraClassifier(**options, checkpoint_dir=sys.argv[1]).fit(X, Y)
Path(sys.argv[1], "finished").touch()
sys.stdin.read()  # until the test kills this process, so that it always finds one to kill
"""


@pytest.mark.slow
def test_a_job_killed_at_any_moment_ends_the_same(tmp_path: Path) -> None:
    options = {"width": 16, "max_epochs": 120, "batch_size": 32, "random_state": 0, "device": "cpu"}
    checkpoints, checkpoint, finished = set(), tmp_path / FILE_NAME, tmp_path / "finished"
    kill_after = np.random.default_rng(0).integers(1, 30)
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        # Where this process is too slow to see so many checkpoints, it kills the job after its end.
        while len(checkpoints) < kill_after and not finished.exists():
            assert process.poll() is None, "The job failed; see its error above."
            if checkpoint.exists():
                checkpoints.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.0005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    whole = MaraClassifier(**options).fit(X, Y)
    resumed = MaraClassifier(**options, checkpoint_dir=tmp_path).fit(X, Y)
    assert resumed.agent_.fingerprint == whole.agent_.fingerprint
    assert resumed.loss_curve_ == whole.loss_curve_


@pytest.mark.parametrize(
    "words",
    [("reject", "accept"), ("rejected", "chosen"), ("no", "YES"), ("a", "good"), ("bad", "z"), (False, True), (-1, 1)],
)
def test_the_label_that_means_accept_decides_what_the_agent_accepts(words: tuple[Any, Any]) -> None:
    named = np.array(words)[Y]
    fitted, numbered = make().fit(X, named), make().fit(X, Y)
    assert fitted.agent_.fingerprint == numbered.agent_.fingerprint
    assert fitted.accept_class_ == words[1]
    np.testing.assert_array_equal(fitted.classes_, np.sort(np.array(words)))
    accept = fitted.classes_.tolist().index(words[1])
    np.testing.assert_allclose(fitted.predict_proba(X)[:, accept], numbered.predict_proba(X)[:, 1])
    np.testing.assert_array_equal(fitted.predict(X) == words[1], numbered.predict(X) == 1)
    assert fitted.score(X, named) == numbered.score(X, Y) > 0.5
    np.testing.assert_array_equal(fitted.decision_function(X) > 0, fitted.predict(X) == fitted.classes_[1])


@pytest.mark.parametrize("words", [("one", "two"), ("accept", "good"), ("bad", "reject"), ("", "x")])
def test_labels_that_do_not_say_which_means_accept_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="says that it means accept. Label rows 0 and 1"):
        make().fit(X, np.array(words)[Y])


def test_streamed_words_mean_the_same() -> None:
    words = np.array(["reject", "accept"])
    named = make().partial_fit(X, words[Y], classes=words).partial_fit(X, words[Y])
    assert named.agent_.fingerprint == make().partial_fit(X, Y, classes=[0, 1]).partial_fit(X, Y).agent_.fingerprint


def test_a_class_of_weight_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="factors above 0"):
        make(class_weight={0: 0.0}).fit(X, Y)
