"""The parts of the DPO benchmark: what is trained, counted, saved, and asked in the same tokens."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from langchain_mara import MaraLLM

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def dpo() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import dpo  # noqa: PLC0415

        yield dpo


@pytest.fixture
def llm() -> MaraLLM:
    return MaraLLM.demo(agent=None, device="cpu", packed=False)


@pytest.fixture(scope="module")
def rows(dpo: ModuleType) -> list[dict[str, Any]]:
    return list(dpo.pairs(0)[::1000])


@pytest.mark.parametrize("lora", [True, False])
@torch.no_grad()
def test_dpo_trains_and_its_model_loads_as_any_other(
    dpo: ModuleType, llm: MaraLLM, rows: list[dict[str, Any]], tmp_path: Path, lora: bool
) -> None:
    plain = MaraLLM.demo(agent=None, device="cpu", packed=False).model
    with torch.enable_grad():
        trained, parameters = dpo.fit_dpo(llm, rows, 0, lora=lora, learning_rate=1e-3, epochs=1, max_steps=2)
    trained.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    loaded = MaraLLM.from_model_id(tmp_path, device="cpu")
    shapes = [module.weight.shape for name, module in plain.named_modules() if name.endswith("_proj")]
    whole = sum(parameter.numel() for parameter in plain.parameters())
    assert parameters == (sum(dpo.LORA["r"] * sum(shape) for shape in shapes) if lora else whole)
    chosen, rejected = ([], [])
    for row in rows:
        for name, margins in (("chosen", chosen), ("rejected", rejected)):
            ids = torch.tensor([[*loaded.encode(row["prompt"]), *loaded.get_token_ids(row[name])]])
            logs = [model(ids).logits.log_softmax(-1)[0, :-1] for model in (loaded.model, plain)]
            margins.append(float((logs[0] - logs[1]).gather(1, ids[0, 1:, None]).sum()))
    assert sum(chosen) > sum(rejected) + 0.1


def test_other_prompt_tokens_than_in_decoding_are_refused(
    dpo: ModuleType, llm: MaraLLM, rows: list[dict[str, Any]]
) -> None:
    plain_text = llm.model_copy(update={"use_chat_template": False})
    with pytest.raises(RuntimeError, match="prompt tokens differ from the LLM's"):
        dpo.fit_dpo(plain_text, rows, 0, lora=True, learning_rate=1e-3, epochs=1, max_steps=1)


def test_agents_are_counted(dpo: ModuleType, llm: MaraLLM, rows: list[dict[str, Any]]) -> None:
    _, parameters = dpo.fit_preference_labels(llm, rows, 0, width=64)
    assert parameters == 2 * 192 + (192 + 1) * 64 + (64 + 1) * 16 + (16 + 1) * 2


def test_a_training_that_is_done_is_not_run_again(dpo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('{"parameters": 3}')
    assert dpo._trained("no such training", 0, tmp_path, {}) == {"parameters": 3}
