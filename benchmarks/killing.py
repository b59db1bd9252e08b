"""Jobs that are killed: another process, started again until it is done."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Job:
    """A command of a benchmark that works in a folder, and says `started` once its data are there.

    Args:
        script: The benchmark.
        command: Its command, which takes the folder first.
        arguments: Further ones.
    """

    def __init__(self, script: Path, command: str, *arguments: str) -> None:
        self.script, self.command, self.arguments = script, command, arguments

    def finish(self, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> float:
        """Runs to the end, and something else meanwhile; seconds from the start of the work."""
        process = self._started(folder)
        start = time.perf_counter()
        meanwhile()
        process.communicate()
        if process.returncode:
            raise RuntimeError(f"The job in {folder} failed; see its error above.")
        return time.perf_counter() - start

    def kill(self, folder: Path, seconds: float) -> str:
        """Runs and is killed after some seconds; says whether it came to that."""
        process = self._started(folder)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return "killed" if process.returncode < 0 else "finished before"

    def _started(self, folder: Path) -> "subprocess.Popen[str]":
        arguments = [sys.executable, str(self.script), self.command, str(folder), *self.arguments]
        process = subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE)  # noqa: S603
        if process.stdout is None or process.stdout.readline() != "started\n":
            raise RuntimeError(f"The job in {folder} did not start; see its error above.")
        return process
