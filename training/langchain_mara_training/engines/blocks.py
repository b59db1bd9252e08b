"""Jobs that are cut into blocks. A block's result depends on the block alone, so any process may compute it.

A job gives an engine one function, which every engine calls with a worker, such as a labeler with its model, and a
block. So the results are the same wherever they are computed.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, TypeVar

Block = TypeVar("Block")
Result = TypeVar("Result")


class Engine(Protocol):
    """What computes the blocks of a job."""

    def map(self, function: Callable[[Any, Block], Result], blocks: Iterable[Block]) -> Generator[Result]:
        """Results of the blocks, in their order. Closing the generator ends the work.

        Args:
            function: Function of a module, which computes a block with a worker.
            blocks: The blocks; those that are plain values can be sent to other processes.
        """


class InProcess:
    """Computes one block after the other, in this process.

    Args:
        worker: What the function gets.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def map(self, function: Callable[[Any, Block], Result], blocks: Iterable[Block]) -> Generator[Result]:
        """See `Engine.map`."""
        for block in blocks:
            yield function(self.worker, block)
