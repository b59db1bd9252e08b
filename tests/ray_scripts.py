"""Scripts that use Ray, which needs sockets: tests run them in a process of their own and read what they noted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Ray gives its workers the lowest priority. On a busy machine they then take minutes to start, and time out.
RAY_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "300",
}


def noted_by(script: str, folder: Path | None = None, **environment: str) -> dict[str, Any]:
    """What a script printed as JSON after the word "results".

    Args:
        script: The script. Ray itself prints, too, whenever something died.
        folder: Folder to run it in.
        **environment: Further environment variables.
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **RAY_ENVIRONMENT, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("results "))
    found: dict[str, Any] = json.loads(line.removeprefix("results "))
    return found
