"""A prompt's own tokens, scored by the decode loop."""

import torch
from transformers import PreTrainedModel

from langchain_mara import MaraLLM
from langchain_mara.serving.completion import complete
from langchain_mara.serving.prompt_scores import GivenAnswer, prompt_entries, scoring

IDS = [0, 12, 1, 13, 13, 40]  # the EOS among them, which ends nothing here


def test_scores_are_the_model_s(llm: MaraLLM, model: PreTrainedModel) -> None:
    scored = scoring(llm, IDS, 2)
    assert scored is not None
    assert [delta.decision.token_id for delta in complete(llm._generation_job([scored]))] == IDS[1:]
    entries = prompt_entries(llm, IDS, scored)
    logits = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    assert entries[0]["logprob"] is None
    got = torch.tensor([entry["logprob"] for entry in entries[1:]])
    assert torch.allclose(got, logits[range(5), IDS[1:]].float(), atol=1e-5)
    best = torch.tensor([entry["top_logprobs"][0]["logprob"] for entry in entries[1:]])
    assert torch.allclose(best, logits[:-1].max(-1).values.float(), atol=1e-5)


def test_one_token_has_no_score(llm: MaraLLM) -> None:
    assert scoring(llm, [5], 0) is None
    assert [entry["logprob"] for entry in prompt_entries(llm, [5], None)] == [None]


def test_a_given_answer() -> None:
    given = GivenAnswer([3, 5])
    assert given.allowed([]).nonzero().tolist() == [[3]]
    assert given.allowed([3]).nonzero().tolist() == [[5]]
    assert not given.allowed([4]).any()
    assert not given.allowed([3, 5]).any()
    assert given.is_complete([3, 5])
    assert not given.is_complete([3])
