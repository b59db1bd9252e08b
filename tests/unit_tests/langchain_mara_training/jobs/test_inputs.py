"""Inputs of the jobs: the bundled model or a named one, and rows, without changing global settings."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from langchain_mara_training.data.readers import read_pairs
from langchain_mara_training.jobs.inputs import load_llm, load_rows
from run_folders import Rows

from langchain_mara import MaraAgent
from langchain_mara.exceptions import DataError
from langchain_mara.loading.models import DEMO_MODEL_FOLDER


@pytest.mark.parametrize("model", [None, str(DEMO_MODEL_FOLDER)])
def test_the_model_and_the_agent_of_a_run(model: str | None, run: Path) -> None:
    llm = load_llm({"model": model, "agent": str(run)}, "cpu", top_k=7)
    assert llm.agent is not None
    assert llm.agent.fingerprint == MaraAgent.from_pretrained(run / "agent").fingerprint
    assert llm.top_k == 7
    assert load_llm({"model": model}, "cpu").agent is None


def test_rows_up_to_the_limit(pairs: Rows, pairs_file: str) -> None:
    options: dict[str, Any] = {"data": pairs_file, "split": "train", "limit": 3}
    assert load_rows(options, read_pairs) == pairs[:3]
    assert load_rows({**options, "limit": None}, read_pairs) == pairs


@pytest.mark.parametrize("are_disabled", [False, True])
def test_progress_bars_are_off_only_while_rows_are_read(are_disabled: bool) -> None:
    before = datasets.are_progress_bars_disabled()
    seen: list[bool] = []

    def look(source: str, split: str) -> Rows:
        seen.append(datasets.are_progress_bars_disabled())
        raise DataError(source + split)

    try:
        (datasets.disable_progress_bars if are_disabled else datasets.enable_progress_bars)()
        with pytest.raises(DataError):
            load_rows({"data": "a", "split": "b", "limit": None}, look)
        assert seen == [True]
        assert datasets.are_progress_bars_disabled() is are_disabled
    finally:
        (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()
