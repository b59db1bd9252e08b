"""What a command line says about the engine: refused before a model is loaded, and every worker has the same model."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from families import tiny_agent
from langchain_mara_training.engines.blocks import InProcess
from langchain_mara_training.engines.ray_data import RayData
from langchain_mara_training.jobs import engines as module
from langchain_mara_training.jobs.engines import EngineChoice, Made

from langchain_mara import MaraLLM
from langchain_mara.exceptions import OptionsError, TrainingError


def made(options: Any, device: str | None) -> Made:
    llm = MaraLLM.demo(device=device, agent=tiny_agent(192, seed=options["seed"]))
    return Made("a worker", llm)


HERE = {"seed": 1}


def test_a_choice_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    EngineChoice().check()
    EngineChoice("ray", 2).check()
    with pytest.raises(OptionsError, match="--workers are those of Ray. Add --engine ray"):
        EngineChoice("process", 2).check()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptionsError, match="--engine ray needs Ray: pip install"):
        EngineChoice("ray").check()


def test_this_process_computes_with_its_own_worker() -> None:
    engine = EngineChoice().engine(made, HERE, made(HERE, "cpu"))
    assert isinstance(engine, InProcess)
    assert engine.worker == "a worker"


def test_workers_of_ray_have_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineChoice("ray", 3).engine(made, HERE, made(HERE, "cpu"))
    assert isinstance(engine, RayData)
    assert (engine.workers, engine.on_gpu, engine.make()) == (3, False, "a worker")
    other = EngineChoice("ray").engine(made, {"seed": 2}, made(HERE, "cpu"))
    with pytest.raises(TrainingError, match="loaded another model .* different: agent"):
        other.make()  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "processes", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(OptionsError, match="torchrun and --engine ray both divide the work"):
        EngineChoice("ray").engine(made, HERE, made(HERE, "cpu"))
