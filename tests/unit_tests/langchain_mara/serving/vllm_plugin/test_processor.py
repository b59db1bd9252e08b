"""vLLM's two interfaces for logits processors: whatever a batch does, each row gets its own request's options."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import tiny_look_ahead
from torch import Tensor

from langchain_mara.decoding.judging.before import Outlook
from langchain_mara.decoding.judging.rows import RowOptions, align_rows
from langchain_mara.exceptions import AgentMismatchError, OptionsError
from langchain_mara.options import DecodingOptions

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

import numpy as np
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from langchain_mara.serving.vllm_plugin.at_hand import AT_HAND
from langchain_mara.serving.vllm_plugin.processor import MaraLogitsProcessor

SIZE, VOCABULARY = 32, 60
CPU = torch.device("cpu")
EMBEDDINGS = torch.randn(VOCABULARY, SIZE, generator=torch.Generator().manual_seed(0))
THRESHOLDS = {"a": 0.0, "b": 1.0, "c": 0.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_look_ahead(seed=1).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_at_hand() -> Iterator[None]:
    yield
    AT_HAND.__init__()  # type: ignore[misc]


def config(folder: Path, hidden_size: int = SIZE, is_tied: bool = True, parallel: Any = (), **more: Any) -> Any:
    text_config = SimpleNamespace(tie_word_embeddings=is_tied)
    model = SimpleNamespace(get_hidden_size=lambda: hidden_size, model="org/model", hf_text_config=text_config)
    plain = {"distributed_executor_backend": "mp", "pipeline_parallel_size": 1, "enable_batch_sharded_sampling": None}
    settings = {"speculative_config": None, "additional_config": {"mara": {"agent": str(folder)}}, **more}
    return SimpleNamespace(
        model_config=model, parallel_config=SimpleNamespace(**{**plain, **dict(parallel)}), **settings
    )


def params(name: str) -> SamplingParams:
    """Request `a` accepts everything, `b` nothing, `c` something; `-` is plain."""
    said = {"mara": 0} if name == "-" else {"mara_accept_threshold": THRESHOLDS[name], "mara_fallback": -1}
    return SamplingParams(temperature=0, extra_args=said)


def rows_of(names: str, states: Tensor, logits: Tensor) -> Tensor:
    """What should be left for requests of these names, in order."""
    rows = [row for row, name in enumerate(names) if name != "-"]
    options = [DecodingOptions(accept_threshold=THRESHOLDS[names[row]], fallback=-1) for row in rows]
    agent = tiny_look_ahead(seed=1).bind(EMBEDDINGS)
    return align_rows(
        logits.clone(), torch.tensor(rows), Outlook.of(states, logits), agent, RowOptions.of(options, CPU)
    )


def step(processor: MaraLogitsProcessor, names: str, ctx: Any = None) -> None:
    """One step of vLLM over rows of these names, compared with what should be left."""
    states, logits = torch.randn(len(names), SIZE), torch.randn(len(names), VOCABULARY) * 2
    AT_HAND.leave(states, logits, lambda: EMBEDDINGS)
    expected = rows_of(names, states, logits) if set(names) != {"-"} else logits.clone()
    assert torch.equal(processor.apply(logits.clone(), *([] if ctx is None else [ctx])), expected)
    assert not AT_HAND.expected
    AT_HAND.leave(torch.randn(30, SIZE), torch.randn(30, VOCABULARY), lambda: EMBEDDINGS)  # of a prompt


def update(added: dict[int, str], removed: tuple[int, ...] = (), moved: Any = (), size: int = 4) -> BatchUpdate:
    entries = [(row, params(name), [1], []) for row, name in added.items()]
    return BatchUpdate(batch_size=size, removed=removed, added=entries, moved=moved)


def test_the_older_runner_moves_requests(folder: Path) -> None:
    processor = MaraLogitsProcessor(config(folder), CPU, False)
    AT_HAND.leave(torch.randn(9, SIZE), torch.randn(9, VOCABULARY), lambda: EMBEDDINGS)  # a rehearsal
    processor.update_state(update({0: "a", 1: "-", 2: "b", 3: "c"}))
    step(processor, "a-bc")
    processor.update_state(None)
    step(processor, "a-bc")
    processor.update_state(update({}, removed=(0,), moved=[(3, 0, MoveDirectionality.UNIDIRECTIONAL)], size=3))
    step(processor, "c-b")
    processor.update_state(update({}, moved=[(1, 2, MoveDirectionality.SWAP)], size=3))
    step(processor, "cb-")
    processor.update_state(update({0: "-", 3: "a"}, removed=(1,), size=4))
    processor.update_state(update({1: "-"}, size=4))
    step(processor, "---a")
    processor.update_state(update({}, removed=(3,), size=3))
    step(processor, "---")


def test_the_newer_runner_names_places(folder: Path) -> None:
    processor = MaraLogitsProcessor(config(folder), SimpleNamespace(device="cpu", max_num_reqs=8))
    assert [processor.add_request(place, params(name)) for place, name in ((5, "a"), (2, "-"), (7, "b"))] == [
        True,
        False,
        True,
    ]
    for places, names in (([5, 2, 7], "a-b"), ([7, 5], "ba"), ([2], "-"), ([2, 5], "-a")):
        processor.apply_staged_writes()
        step(processor, names, SimpleNamespace(idx_mapping_np=np.array(places)))
    processor.add_request(5, params("-"))  # the place has a new request
    processor.add_request(2, params("c"))
    processor.apply_staged_writes()
    step(processor, "-cb", SimpleNamespace(idx_mapping_np=np.array([5, 2, 7])))


def test_both_runners_load_the_class() -> None:
    from vllm.v1.sample.logits_processor import _load_custom_logitsprocs  # noqa: PLC0415
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs  # noqa: PLC0415

    name = f"{MaraLogitsProcessor.__module__}:{MaraLogitsProcessor.__qualname__}"
    assert _load_custom_logitsprocs([name]) == _load_v2_logitsprocs([name]) == [MaraLogitsProcessor]
    MaraLogitsProcessor.validate_params(params("a"))
    with pytest.raises(ValueError, match="mara_top_q is unknown"):
        MaraLogitsProcessor.validate_params(SamplingParams(extra_args={"mara_top_q": 1}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"parallel": {"enable_batch_sharded_sampling": True}}, "batch-sharded sampling"),
        ({"parallel": {"distributed_executor_backend": "external_launcher", "pipeline_parallel_size": 2}}, "external"),
        ({"watermark_config": object()}, "watermarks"),
        ({"diffusion_config": object()}, "block diffusion"),
        ({"additional_config": {}}, "No agent is named"),
    ],
)
def test_refused_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        MaraLogitsProcessor(config(folder, **changes), CPU, False)


def test_an_agent_of_another_model(tmp_path: Path) -> None:
    from langchain_mara.agents.embedding_sketch import embedding_sketch  # noqa: PLC0415

    agent = tiny_look_ahead(seed=1).with_config(policy_sketch=embedding_sketch(EMBEDDINGS))
    agent.save_pretrained(tmp_path)
    with pytest.raises(AgentMismatchError, match="reads states of size 32, but org/model gives 64"):
        MaraLogitsProcessor(config(tmp_path, hidden_size=64), CPU, False)
    MaraLogitsProcessor(config(tmp_path), CPU, False)
    AT_HAND.leave(torch.randn(1, SIZE), torch.randn(1, VOCABULARY), lambda: EMBEDDINGS)
    MaraLogitsProcessor(config(tmp_path), CPU, False)
    other = torch.randn(VOCABULARY, SIZE)
    with pytest.raises(AgentMismatchError, match="allow_other_model=True"):
        AT_HAND.leave(torch.randn(1, SIZE), torch.randn(1, VOCABULARY), lambda: other)
    MaraLogitsProcessor(config(tmp_path, is_tied=False), CPU, False)  # the head tells nothing of the input embeddings
    AT_HAND.leave(torch.randn(1, SIZE), torch.randn(1, VOCABULARY), lambda: other)
    allowed = {"mara": {"agent": str(tmp_path), "allow_other_model": True}}
    MaraLogitsProcessor(config(tmp_path, additional_config=allowed), CPU, False)
    AT_HAND.leave(torch.randn(1, SIZE), torch.randn(1, VOCABULARY), lambda: other)
