"""A small training on the embedded model, in a second."""

import pytest

from langchain_mara import MaraLLM


@pytest.fixture
def short(demo_llm: MaraLLM) -> MaraLLM:
    return demo_llm.with_agent(None).model_copy(update={"max_new_tokens": 10, "top_k": 10, "batch_size": 8})
