"""Jobs to kill: a benchmark's command in another process, which can be killed and started again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Job:
    """A benchmark's command that works in a folder and prints `started` when its data are ready.

    Args:
        script: Script of the benchmark.
        command: Name of the command; its first argument is the folder.
        arguments: Further arguments.
    """

    def __init__(self, script: Path, command: str, *arguments: str) -> None:
        self.script, self.command, self.arguments = script, command, arguments

    def finish(self, folder: Path, meanwhile: Callable[[], object] = lambda: None) -> float:
        """Runs the job to its end.

        Args:
            folder: Folder to work in.
            meanwhile: Function to call while the job runs.

        Returns:
            Seconds from the start of the work.

        Raises:
            RuntimeError: If the job fails.
        """
        process = self._start(folder)
        start = time.perf_counter()
        meanwhile()
        process.communicate()
        if process.returncode:
            raise RuntimeError(f"The job in {folder} failed; see its error above.")
        return time.perf_counter() - start

    def kill(self, folder: Path, seconds: float) -> str:
        """Runs the job and kills it after some seconds; returns `killed` or, if the job was faster, `finished before`.

        Args:
            folder: Folder to work in.
            seconds: Time until the kill, from the start of the work.

        Raises:
            RuntimeError: If the job does not start.
        """
        process = self._start(folder)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return "killed" if process.returncode < 0 else "finished before"

    def _start(self, folder: Path) -> "subprocess.Popen[str]":
        arguments = [sys.executable, str(self.script), self.command, str(folder), *self.arguments]
        process = subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE)  # noqa: S603
        if process.stdout is None or process.stdout.readline() != "started\n":
            raise RuntimeError(f"The job in {folder} did not start; see its error above.")
        return process
