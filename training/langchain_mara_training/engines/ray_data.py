"""Computes blocks with Ray Data: it sends them to a pool of actors, each of which holds a worker with its model.

Ray Data divides the blocks, holds them back while the actors are busy, and gives the blocks of an actor that died to
another one. A block is computed by the function that this process would call, so it gives the same result.
"""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from langchain_mara.exceptions import TrainingError
from langchain_mara.serving.ray_runtime import import_ray, require_resources, start_ray
from langchain_mara_training.engines.blocks import Block, Result

RETRIES = 3
"""How often a block is computed again after its actor died."""
_AHEAD = 2  # blocks that an actor has, so that it never waits for the next one


def ray_of_engine() -> Any:
    """The module `ray`.

    Raises:
        OptionsError: If it is not installed.
    """
    return import_ray("--engine ray needs", "Or leave it out.")


class RayData:
    """Computes blocks with actors of Ray Data. An actor makes its worker when it gets its first block.

    Args:
        make: Function of a module, perhaps with arguments bound by `partial`, that makes a worker.
        workers: Number of actors; by default one for each of Ray's GPUs, or one if there is none.
        on_gpu: Whether a worker takes a GPU. Otherwise it takes one CPU, and computes with one thread.

    Raises:
        OptionsError: If Ray is not installed.
    """

    def __init__(self, make: Callable[[], Any], workers: int | None = None, *, on_gpu: bool = False) -> None:
        self.make, self.workers, self.on_gpu = make, workers, on_gpu
        self._ray = ray_of_engine()

    def map(self, function: Callable[[Any, Block], Result], blocks: Iterable[Block]) -> Generator[Result]:
        """See `Engine.map`. What a worker raises is raised here.

        Raises:
            LoadingError: If Ray does not start.
            OptionsError: If Ray has no room for the workers.
            TrainingError: If the actors of a block died again and again.
        """
        ray = self._ray
        was_started = start_ray(ray, self.workers or 1)
        try:
            workers = self.workers or int(ray.cluster_resources().get("GPU", 0) if self.on_gpu else 0) or 1
            needs = {"num_cpus": 1, "num_gpus": int(self.on_gpu)}
            require_resources(ray, workers, needs, "")
            with _quiet_and_in_order() as data:
                yield from self._results(data, function, blocks, workers, needs)
        except ray.exceptions.RayError as error:
            raise TrainingError(
                f"Workers died {RETRIES + 1} times over the same block ({type(error).__name__}). If they ran out of "
                "memory, use fewer --workers. The blocks before it are kept; run the command again to resume."
            ) from error
        finally:
            if was_started:
                ray.shutdown()

    def _results(
        self,
        data: Any,
        function: Callable[[Any, Block], Result],
        blocks: Iterable[Block],
        workers: int,
        needs: dict[str, int],
    ) -> Iterator[Result]:
        ray, dumps = self._ray, self._ray.cloudpickle.dumps
        # One by one, so that Ray can move to disk what its memory does not hold.
        sent = [ray.put(pa.table({"block": [dumps(block)]})) for block in blocks]
        if not sent:
            return
        strategy = data.ActorPoolStrategy(size=min(workers, len(sent)), max_tasks_in_flight_per_actor=_AHEAD)
        computed = data.from_arrow_refs(sent).map_batches(
            _Actor,
            fn_constructor_args=(self.make, function, Path.cwd()),
            compute=strategy,
            batch_size=None,
            batch_format="pyarrow",
            max_task_retries=RETRIES,
            **needs,
        )
        for batch in computed.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            result = ray.cloudpickle.loads(batch["result"][0].as_py())
            if isinstance(result, _Failure):
                raise result.error
            yield result


@dataclass
class _Failure:
    """What a worker raised.

    Attributes:
        error: The exception, with the place in the worker as a note.
    """

    error: Exception


class _Actor:
    """What an actor of Ray Data calls with each block."""

    def __init__(self, make: Callable[[], Any], function: Callable[[Any, Any], Any], folder: Path) -> None:
        self._make, self._function, self._worker = make, function, None
        if folder.is_dir():  # on another machine it may be missing
            # Rewards are imported from the folder in which the command runs.
            os.chdir(folder)
            sys.path.insert(0, str(folder))

    def __call__(self, batch: pa.Table) -> pa.Table:
        from ray import cloudpickle as untyped  # noqa: PLC0415

        cloudpickle: Any = untyped
        try:
            if self._worker is None:
                self._worker = self._make()
            result = self._function(self._worker, cloudpickle.loads(batch["block"][0].as_py()))
        except Exception as error:  # noqa: BLE001 - it is raised where the results are read
            result = _Failure(_sendable(error, cloudpickle))
        return pa.table({"result": [cloudpickle.dumps(result)]})


def _sendable(error: Exception, cloudpickle: Any) -> Exception:
    """An exception that another process can read."""
    where = f"In a worker of Ray:\n{''.join(traceback.format_exception(error))}"
    error = error.with_traceback(None)
    error.__cause__ = error.__context__ = None
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever keeps it from being sent
        error = TrainingError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error


@contextmanager
def _quiet_and_in_order() -> Iterator[Any]:
    """Ray Data, which keeps the order of blocks and prints nothing while the context is open."""
    from ray import data  # noqa: PLC0415 - an extra, and slow to import

    context, logger = data.DataContext.get_current(), logging.getLogger("ray.data")
    bars, order, level = context.enable_progress_bars, context.execution_options.preserve_order, logger.level
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="langchain_mara_training")
            yield data
    finally:
        context.enable_progress_bars, context.execution_options.preserve_order = bars, order
        logger.setLevel(level)
