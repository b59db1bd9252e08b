"""One tiny policy model per module; no decoding thread outlives a test."""

from collections.abc import Iterator, Sequence

import pytest
from callers import MakeCompletion, a_request
from families import decoding_threads, tiny_model, wait_until
from transformers import PreTrainedTokenizerFast

from langchain_mara.decoding.request import Request
from langchain_mara.policy.model import PolicyModel
from langchain_mara.serving.completion import Completion
from langchain_mara.text.detokenizer import IncrementalDetokenizer


@pytest.fixture(scope="module")
def policy() -> PolicyModel:
    return PolicyModel(tiny_model("llama-3"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not decoding_threads())


@pytest.fixture
def completion_of(tokenizer: PreTrainedTokenizerFast) -> MakeCompletion:
    """A completion that has not begun."""

    def make(request: Request | None = None, stop: Sequence[str] = ()) -> Completion:
        return Completion(request or a_request(new=40), IncrementalDetokenizer(tokenizer, stop))

    return make
