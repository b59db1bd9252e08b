"""The input of `/v1/responses` as messages of a conversation."""

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_mara.server.errors import ApiError

_TEXTS = ("input_text", "output_text", "text")
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(given: str | Sequence[dict[str, Any]], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of an input, in the form of the chat API.

    Args:
        given: A text, or items: messages, calls, results of calls, thoughts.
        instructions: What the system says first.

    Raises:
        ApiError: If an item is of a kind that is not supported.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    for message in map(_message, items, range(len(items))):
        last = messages[-1] if messages else {}
        if message["role"] == last.get("role") == "assistant" and not last.get("content"):
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            last |= {**message, **({"tool_calls": calls} if calls else {})}
        elif message["role"] == last.get("role") == "assistant" and "tool_calls" in message:
            last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]
        else:
            messages.append(message)
    return messages


def _message(item: dict[str, Any], place: int) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in _ROLES:
        return {"role": item["role"], "content": _text(item.get("content"), place)}
    if kind == "function_call" and isinstance(item.get("name"), str) and isinstance(item.get("arguments", ""), str):
        function = {"name": item["name"], "arguments": item.get("arguments", "{}")}
        call = {"type": "function", "id": str(item.get("call_id", "")), "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        call_id = str(item.get("call_id", ""))
        return {"role": "tool", "tool_call_id": call_id, "content": _text(item.get("output"), place)}
    if kind == "reasoning":
        parts = [part for name in ("content", "summary") for part in _listed(item.get(name), place)]
        thought = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        return {"role": "assistant", "content": "", "reasoning_content": thought}
    raise _refused(f"an item of type {kind!r:.60} and role {item.get('role')!r:.60}", place)


def _text(content: Any, place: int) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_texts(_listed(content, place), place))


def _listed(content: Any, place: int) -> list[Any]:
    """The parts of what may be missing."""
    if content is None or isinstance(content, list):
        return content or []
    raise _refused(f"{type(content).__name__} where a text or a list of parts is expected", place)


def _texts(parts: Sequence[Any], place: int) -> Iterator[str]:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXTS:
            raise _refused(f"a part of type {kind!r:.60}", place)
        yield str(part.get("text", ""))


def _refused(what: str, place: int) -> ApiError:
    return ApiError(400, f"The input holds {what}; this server reads text, calls and results.", param=f"input.{place}")
