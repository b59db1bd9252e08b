"""Runs replicas of an app with Ray Serve, and in front of them a server that ends when its answers have."""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI

from langchain_mara.exceptions import LoadingError, OptionsError
from langchain_mara.server.app import guard
from langchain_mara.server.process import serve
from langchain_mara.server.ray_serve.figures import FrontMetrics
from langchain_mara.server.ray_serve.front import Front, FrontState
from langchain_mara.server.ray_serve.replica import Replica
from langchain_mara.server.settings import ServerSettings
from langchain_mara.serving.ray_runtime import ADDRESS, import_ray, require_resources, start_ray

APPLICATION = "mara"
"""Name of Ray Serve's application."""
_HEALTH_CHECK_SECONDS = 2
_OWN_ERROR = re.compile(r"langchain_mara\.exceptions\.\w+: (.+)")


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and how much each of them does.

    Attributes:
        least: Number of replicas at the beginning, and while there is little to do.
        most: Most replicas; more than `least` are made while requests wait.
        running: Most requests that a replica answers at a time. Further ones wait for the first replica with a place.
        waiting: Most requests that wait; further ones are refused.
        on_gpu: Whether each takes a GPU. Otherwise they share the cores of this machine.

    Raises:
        OptionsError: If `most` is below `least`.
    """

    least: int
    most: int
    running: int
    waiting: int
    on_gpu: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise OptionsError(f"--max-replicas {self.most} is below --replicas {self.least}. Give a larger one.")

    @property
    def needs(self) -> dict[str, int]:
        """What each takes of Ray's resources. As many threads as CPUs compute."""
        cpus = 1 if self.on_gpu else max(1, (os.cpu_count() or 1) // self.most)
        return {"num_cpus": cpus, "num_gpus": int(self.on_gpu)}


Make = Callable[[ServerSettings], FastAPI]
"""Makes an app; a function of a module, perhaps with arguments bound by `partial`."""


def application(make: Make, settings: ServerSettings, replicas: Replicas) -> Any:
    """The application for `ray.serve.run`. Its deployment is a `Replica`.

    Args:
        make: Makes the app of a replica.
        settings: Settings of the process in front of the replicas, which counts and logs requests.
        replicas: How many.
    """
    from ray import serve  # noqa: PLC0415 - an extra, and slow to import

    scaling = {
        "min_replicas": replicas.least,
        "max_replicas": replicas.most,
        "target_ongoing_requests": replicas.running,
    }
    count = {"num_replicas": replicas.least} if replicas.least == replicas.most else {"autoscaling_config": scaling}
    deployment: Any = serve.deployment(
        Replica,
        max_ongoing_requests=replicas.running,
        max_queued_requests=replicas.waiting,
        ray_actor_options=replicas.needs,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        **count,
    )
    own = dataclasses.replace(settings, requests_per_key=None, json_log=False, allow_origins=())
    return deployment.bind(partial(make, own))


def serve_replicas(make: Make, settings: ServerSettings, replicas: Replicas) -> None:
    """Serves replicas until the process is told to end.

    Args:
        make: See `application`.
        settings: Where this process listens, who may ask, and how much.
        replicas: How many.

    Raises:
        OptionsError: If Ray is not installed, or has no room for them.
        LoadingError: If the replicas do not start.
    """
    with _running(make, settings, replicas) as handle:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.state.server = FrontState(settings=settings, metrics=FrontMetrics())
        app.mount("/", Front(handle.options(stream=True).answer, app.state.server))
        guard(app)
        serve(app)


@contextmanager
def _running(make: Make, settings: ServerSettings, replicas: Replicas) -> Iterator[Any]:
    """The handle of replicas that run while the context is open."""
    ray = import_ray("--replicas needs", "Or leave it out.")
    try:
        from ray import serve  # noqa: PLC0415
    except ImportError as error:
        raise OptionsError(f"--replicas needs Ray Serve: pip install 'langchain-mara[ray]' ({error}).") from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    was_started = start_ray(ray, replicas.most)
    try:
        require_resources(ray, replicas.least, replicas.needs, "")
        serve.start(proxy_location="Disabled")
        try:
            handle = serve.run(application(make, settings, replicas), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise LoadingError(f"The replicas did not start. {_cause(serve) or error}") from None
        yield handle
    finally:
        if not was_started or os.environ.get(ADDRESS):  # the cluster stays
            serve.delete(APPLICATION)
        if was_started:
            ray.shutdown()


def _cause(serve: Any) -> str:
    """What a replica said when it could not be made; empty if it said nothing."""
    application = serve.status().applications.get(APPLICATION)
    said = "\n".join(each.message for each in application.deployments.values()) if application else ""
    found = _OWN_ERROR.findall(said)
    return found[-1] if found else said.strip()
