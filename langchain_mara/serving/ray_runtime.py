"""Ray itself: its import, its start on this machine or its cluster, and what it has to run workers on."""

import os
from collections.abc import Mapping
from typing import Any

from langchain_mara.exceptions import LoadingError, OptionsError

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of a cluster; Ray sets it for what `ray job submit` runs."""


def import_ray(what: str, instead: str) -> Any:
    """The module `ray`.

    Args:
        what: What needs it, such as "Workers need".
        instead: What works without it, as a sentence.

    Raises:
        OptionsError: If it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise OptionsError(f"{what} Ray: pip install 'langchain-mara[ray]'. {instead}") from None
    return ray


def start_ray(ray: Any, workers: int) -> bool:
    """Joins the cluster that the environment names, or starts Ray on this machine, unless Ray runs already.

    Args:
        ray: The module.
        workers: Number of workers that are to run. Here they may be more than there are cores.

    Returns:
        Whether it was started, and so has to be stopped by `ray.shutdown()`.

    Raises:
        LoadingError: If Ray cannot be started or joined.
    """
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    here = {"address": "local", "num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    address = os.environ.get(ADDRESS)
    try:
        ray.init(**({} if address else here), **quiet)
    except Exception as error:  # Ray raises bare ones
        repair = f"Check {ADDRESS}={address}" if address else "If this machine is busy, run the command again later"
        raise LoadingError(f"Ray did not start: {str(error).strip().rstrip('.')}. {repair}.") from error
    return True


def require_resources(ray: Any, workers: int, needs: Mapping[str, Any], repair: str) -> None:
    """Refuses workers for which Ray has no room. It would wait for room forever.

    Args:
        ray: The module; Ray has been started.
        workers: Number of workers.
        needs: `num_cpus` and `num_gpus` of each.
        repair: How to need less, after "Use fewer workers".

    Raises:
        OptionsError: If they need more than Ray has.
    """
    available = ray.cluster_resources()
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if workers * needs[name] > available.get(kind, 0):
            raise OptionsError(
                f"{workers} workers with {name}={needs[name]} need more than the {available.get(kind, 0):g} "
                f"that Ray has. Use fewer workers{repair.format(name=name)}."
            )
