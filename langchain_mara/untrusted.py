"""What others wrote: JSON files read within limits, and text without characters that control a terminal."""

import json
import re
from pathlib import Path
from typing import Any

from langchain_mara.exceptions import MaraError

MOST_JSON_BYTES = 16 * 2**20
"""Most bytes of a JSON file that is read as a whole, such as `config.json`."""

_MARKDOWN = re.compile(r"[\\|<`]|(?<=\])[(\[]")  # a bracket after a bracket makes a link or an image
# HTML does not allow control characters, and those that change the direction of writing would affect what follows.
_DIRECTION_CONTROLS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    (*range(0x80, 0xA0), *_DIRECTION_CONTROLS), 0x2426
)
"""Visible symbols of characters that move the cursor, ring, change colors or turn the direction of writing."""
PICTURES |= {0x7F: 0x2421}


def printable(text: str) -> str:
    """Text that a terminal only shows: line feeds and tabs stay, other control characters become symbols."""
    return text.translate(PICTURES)


def read_json(file: Path, error: type[MaraError], most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Reads a JSON file that others may have written; the arguments are those of `read_content`.

    Raises:
        MaraError: Of kind `error`, if the file is too large, nested too deeply, or not JSON.
    """
    return parse_json(read_content(file, error, most_bytes), str(file), error)


def read_content(file: Path, error: type[MaraError], most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """The content of a file that others may have written.

    Args:
        file: The file.
        error: Kind of error to raise.
        most_bytes: Size up to which the file is read.

    Raises:
        MaraError: Of kind `error`, if the file is too large, or is a device or a pipe.
        OSError: If there is no such file.
    """
    # A link may lead to a device or a pipe, which has no size and no end.
    if file.exists() and not file.is_file():
        raise error(f"{file} is not a file. Get the file from its author again.")
    with file.open("rb") as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        size = file.stat().st_size
        raise error(f"{file} has {size:,} bytes; at most {most_bytes:,} are read. Get the file from its author again.")
    return content


def parse_json(content: bytes, name: str, error: type[MaraError]) -> Any:
    """The value of JSON that others may have written.

    Args:
        content: The JSON.
        name: Name of its file.
        error: Kind of error to raise.

    Raises:
        MaraError: Of kind `error`, if it is nested too deeply, or not JSON.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise error(f"{name} is nested too deeply to be read. Get the file from its author again.") from None
    except ValueError as fault:
        raise error(f"{name} is not valid JSON ({fault}). Get the file from its author again.") from None


def markdown(text: str) -> str:
    """Text on one line for Markdown: it ends no cell of a table and is no HTML, code, link or image."""
    for character, written in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        ("`", "\\`"),
        ("](", "]\\("),
        ("][", "]\\["),
    ):
        text = text.replace(character, written)
    return " ".join(printable(text).split())
