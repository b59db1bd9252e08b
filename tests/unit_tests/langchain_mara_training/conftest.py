"""The embedded model without agent, with short answers, and a few preference pairs."""

from dataclasses import asdict
from typing import Any

import pytest
from langchain_mara_training.demo.corpus import preference_pairs

from langchain_mara import MaraLLM


@pytest.fixture(scope="session")
def demo_llm() -> MaraLLM:
    return MaraLLM.demo(agent=None, device="cpu", max_new_tokens=24)


@pytest.fixture(scope="session")
def demo_pairs() -> list[dict[str, Any]]:
    return [asdict(pair) for pair in preference_pairs("train", 0, 1)]
