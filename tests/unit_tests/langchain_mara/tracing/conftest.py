"""A trace of an agent that accepts and rejects."""

import pytest

from langchain_mara.llms import MaraLLM
from langchain_mara.tracing.trace import Trace


@pytest.fixture
def trace(llm: MaraLLM) -> Trace:
    """Of an agent that accepts and rejects, to the token limit."""
    return llm.trace(["hi"], accept_threshold=0.6)[0]
