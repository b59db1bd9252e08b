"""Ray is started where the environment says, and only for as many workers as it has room for."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_mara.exceptions import LoadingError, OptionsError
from langchain_mara.serving import ray_runtime


def fake(*, runs: bool = False, **resources: float) -> Any:
    calls: list[dict[str, Any]] = []
    return SimpleNamespace(
        is_initialized=lambda: runs,
        init=lambda **given: calls.append(given),
        cluster_resources=lambda: resources,
        calls=calls,
    )


def test_ray_that_runs_already_is_not_started() -> None:
    ray = fake(runs=True)
    assert not ray_runtime.start_ray(ray, 2)
    assert ray.calls == []


def test_a_cluster_is_joined_and_otherwise_this_machine_gets_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, many = fake(), (os.cpu_count() or 1) + 3
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert ray_runtime.start_ray(ray, many)
    monkeypatch.delenv("RAY_ADDRESS")
    assert ray_runtime.start_ray(ray, many)
    joined, here = ray.calls
    assert "num_cpus" not in joined  # Ray refuses it for a cluster that runs
    assert "address" not in joined
    assert (here["address"], here["num_cpus"]) == ("local", many)


def test_a_start_that_fails_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\n")  # noqa: TRY002 - as Ray does

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(LoadingError, match="did not start: The current .* startup. If this machine is busy, run"):
        ray_runtime.start_ray(ray, 2)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(LoadingError, match="Check RAY_ADDRESS=head:6379."):
        ray_runtime.start_ray(ray, 2)


def test_too_many_workers_are_refused() -> None:
    ray = fake(CPU=4.0)
    ray_runtime.require_resources(ray, 4, {"num_cpus": 1, "num_gpus": 0}, "")
    with pytest.raises(OptionsError, match="5 workers with num_cpus=1 need more than the 4 that Ray has"):
        ray_runtime.require_resources(ray, 5, {"num_cpus": 1, "num_gpus": 0}, "")
    with pytest.raises(OptionsError, match="num_gpus=1 need more than the 0 .* Use fewer workers, or num_gpus"):
        ray_runtime.require_resources(ray, 1, {"num_cpus": 1, "num_gpus": 1}, ", or {name}")
