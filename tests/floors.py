"""Prints the lowest versions that pyproject.toml allows, as constraints for pip: `make test-floors` installs them.

python tests/floors.py, from the repository's root. It needs nothing but Python. Packages of the `dev` and `docs` extras
are not tested with the lowest versions, so they are left out.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNTESTED = {"dev", "docs"}


def floors(pyproject: str) -> dict[str, str]:
    """Lowest version of each direct dependency; the highest of them where an extra asks for a higher one.

    Args:
        pyproject: Text of pyproject.toml.

    Raises:
        ValueError: If a requirement states no lowest version.
    """
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(line for name in extras if name not in UNTESTED for line in extras[name]),
    ]
    lowest: dict[str, str] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} states no lowest version. Write NAME>=VERSION.")
        name, version = match.groups()
        lowest[name] = max(lowest.get(name, "0"), version, key=_parts)
    return lowest


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    pins = floors((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(pins.items()))
