"""Server-sent events, as bytes."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

DONE = b"data: [DONE]\n\n"
"""The event that ends a stream."""
WAITING = b": waiting\n\n"
"""A comment before the first event, so that nobody on the way takes the connection for dead."""


def event(chunk: dict[str, Any]) -> bytes:
    """The event of a chunk. JSON has no line breaks, so that it is a single line.

    Args:
        chunk: The chunk; its `type`, if it has one, becomes that of the event.
    """
    kind = f"event: {chunk['type']}\n" if "type" in chunk else ""
    return f"{kind}data: {_encode(chunk)}\n\n".encode()


class TextEvent:
    """Events that differ in one text only, so that all else is written once.

    Args:
        chunk: Makes the chunk of a text.
    """

    def __init__(self, chunk: Callable[[str], dict[str, Any]]) -> None:
        place = uuid4().hex
        before, _, after = event(chunk(place)).partition(f'"{place}"'.encode())
        self._before, self._after = before, after

    def of(self, text: str) -> bytes:
        """The event of a text."""
        return self._before + _encode(text).encode() + self._after
