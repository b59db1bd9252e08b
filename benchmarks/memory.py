"""Time and peak memory of a piece of work: memory of CUDA's allocator, or the process's resident set on Linux."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

_start_bytes = 0


def reset_peak(device: str) -> None:
    """Starts measuring the peak, relative to the memory in use now."""
    global _start_bytes  # noqa: PLW0603 - a process measures one piece of work at a time
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        _start_bytes = torch.cuda.memory_allocated()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the current resident set
        _start_bytes = _resident("VmRSS")


def peak_bytes(device: str) -> int:
    """Peak since `reset_peak`, above the memory in use then; 0 if it cannot be read."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated()) - _start_bytes
    return max(0, _resident("VmHWM") - _start_bytes)


Result = TypeVar("Result")


class MeasuredWork(NamedTuple, Generic[Result]):
    """A piece of work that was measured.

    Attributes:
        result: Return value of the work.
        seconds: Duration until the device had finished.
        peak_bytes: Peak memory above what was in use before.
    """

    result: Result
    seconds: float
    peak_bytes: int


def measured(work: Callable[[], Result], device: str) -> MeasuredWork[Result]:
    """Does the work once, and measures it."""
    reset_peak(device)
    start = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return MeasuredWork(result, time.perf_counter() - start, peak_bytes(device))


def resident_bytes() -> int:
    """Current size of the process's resident set; 0 if it cannot be read."""
    return _resident("VmRSS")


def _resident(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
