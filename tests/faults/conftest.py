"""The bundled model with its agent, and folders that jobs have finished in."""

from pathlib import Path

import pytest
from small_jobs import JOBS, vowels

from langchain_mara import MaraLLM


@pytest.fixture(scope="session")
def llm() -> MaraLLM:
    return MaraLLM.demo(max_new_tokens=6, batch_size=4)


@pytest.fixture(scope="session")
def finished(llm: MaraLLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder that each job has finished in."""
    folders = {name: tmp_path_factory.mktemp("jobs") / name for name in JOBS}
    for name, job in JOBS.items():
        job(folders[name], llm, vowels)
    return folders
