"""The output items of `/v1/responses`, and the events by which a stream tells of them."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

Event = dict[str, Any]

_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class OutputItems:
    """The items of one answer while it grows: thoughts, a message, calls.

    Attributes:
        items: The items so far, whole but for the last.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._call_index: int | None = None

    def think(self, text: str) -> Iterator[Event]:
        """Takes a piece of the thoughts."""
        yield from self._enter_text("reasoning")
        yield self._grow(text, "response.reasoning_text.delta")

    def say(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """Takes a piece of the message, with the log-probabilities of its tokens."""
        yield from self._enter_text("message")
        self.items[-1]["content"][0]["logprobs"] += logprobs
        yield {**self._grow(text, "response.output_text.delta"), "logprobs": logprobs}

    def call(self, index: int, call_id: str, name: str, arguments: str) -> Iterator[Event]:
        """Takes a piece of a call, which is the first one or continues the call of the same index."""
        if self._call_index != index or not self._is_open("function_call"):
            yield from self.close()
            self._call_index = index
            yield self._add({"call_id": call_id, "name": name, "arguments": ""}, "function_call")
        self.items[-1]["arguments"] += arguments
        yield {**self._where("response.function_call_arguments.delta"), "delta": arguments}

    def close(self, status: str = "completed") -> Iterator[Event]:
        """Ends the last item.

        Args:
            status: How it ended.
        """
        if not self.items or self.items[-1]["status"] != "in_progress":
            return
        item = self.items[-1]
        if item["type"] == "function_call":
            done = self._where("response.function_call_arguments.done")
            yield {**done, "name": item["name"], "arguments": item["arguments"]}
        else:
            part = item["content"][0]
            kind = part["type"]
            logs = {"logprobs": part["logprobs"]} if kind == "output_text" else {}
            yield {**self._where(f"response.{kind}.done"), "content_index": 0, "text": part["text"], **logs}
            yield {**self._where("response.content_part.done"), "content_index": 0, "part": dict(part)}
        item["status"] = status
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    def _is_open(self, kind: str) -> bool:
        return bool(self.items) and self.items[-1]["type"] == kind and self.items[-1]["status"] == "in_progress"

    def _enter_text(self, kind: str) -> Iterator[Event]:
        """Ends the last item if it is of another kind, and begins one of this kind."""
        if self._is_open(kind):
            return
        yield from self.close()
        more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        yield self._add({**more, "content": []}, kind)
        extra: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "message" else {}
        part = {"type": _PARTS[kind], "text": "", **extra}
        yield {**self._where("response.content_part.added"), "content_index": 0, "part": dict(part)}
        self.items[-1]["content"].append(part)

    def _add(self, fields: dict[str, Any], kind: str) -> Event:
        item = {"id": f"{_PREFIXES[kind]}_{uuid4().hex}", "type": kind, "status": "in_progress", **fields}
        self.items.append(item)
        shown = {**item, **({"content": []} if "content" in item else {})}
        return {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": shown}

    def _grow(self, text: str, event: str) -> Event:
        self.items[-1]["content"][0]["text"] += text
        return {**self._where(event), "content_index": 0, "delta": text}

    def _where(self, event: str) -> Event:
        return {"type": event, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
