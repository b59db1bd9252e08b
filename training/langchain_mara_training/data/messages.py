"""Brings the messages of a row into the one form that chat templates read, whatever container they come from.

A message is a role and a text, and perhaps tool calls with arguments as objects. The forms are those of decoding, so a
conversation has the same tokens in training and in use.
"""

import json
from collections.abc import Mapping
from typing import Any

from langchain_mara.exceptions import DataError
from langchain_mara_training.data.column_formats import CONVERSATION_COLUMNS, Fields

_COLUMNS = {"prompt", "chosen", "rejected", "completion", "response", "output", "responses", "tools"}
_COLUMNS |= {*CONVERSATION_COLUMNS}
# `developer` is OpenAI's name for system; `function` and `ipython` are names of tool in some templates.
_ROLES = ("user", "assistant", "system", "developer", "tool", "function", "ipython")


def without_nulls(row: Fields) -> Fields:
    """A row without nulls, so that it reads alike from a list and from a table, which has all columns in all rows.

    In messages and tools, nulls are left out at every depth, except that a message keeps its `content`.

    Args:
        row: The row; it is not changed.
    """
    kept = {name: value for name, value in row.items() if value is not None}
    return {name: _without_nulls(value) if name in _COLUMNS else value for name, value in kept.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        cleaned = {name: _without_nulls(item) for name, item in value.items() if item is not None}
        if cleaned.get("tool_calls") == []:
            del cleaned["tool_calls"]
        return {"content": None, **cleaned} if "role" in value and {"content", "tool_calls"} & set(value) else cleaned
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def with_plain_messages(row: Fields, columns: tuple[str, ...], where: str) -> Fields:
    """A row whose messages in some columns have a text each, and whose `tools` are objects.

    Args:
        row: Row without nulls; it is not changed.
        columns: Columns with a text or with messages.
        where: Place of the row, for errors.

    Raises:
        DataError: If a message has no text and no tool calls, holds anything but text, has a role that no
            template knows, or a tool is not understood.
    """
    plain = {name: _plain(row[name], f"{where}, {name}") for name in columns if name in row}
    tools = {"tools": _tools(row["tools"], where)} if "tools" in row else {}
    return {**row, **plain, **tools}


def _plain(value: Any, where: str) -> Any:
    if not isinstance(value, list):
        return _whole(value, where)
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(_without_nulls(value))]


def _message(message: Fields, where: str) -> Fields:
    if message["role"] not in _ROLES:
        raise DataError(
            f"{where}: role is {message['role']!r:.60} ({type(message['role']).__name__}). Give user, assistant, "
            "system or tool."
        )
    where = f"{where} ({message['role']})"
    content, calls = message["content"], message.get("tool_calls")
    if content is None and calls is None:
        raise DataError(
            f"{where}: content is null, and there are no tool calls. Give a text, or leave the message out."
        )
    text = _whole(content if isinstance(content, str) else _text_of_parts(content or [], where), where)
    if calls is None:
        return {**message, "content": text}
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool_calls is {type(calls).__name__}. Give a list of calls.")
    return {**message, "content": text, "tool_calls": [_call(call, where) for call in calls]}


def _whole(text: Any, where: str) -> Any:
    """A text, unless it holds half a character, which JSON can write and no tokenizer reads."""
    try:
        str(text).encode()
    except UnicodeEncodeError as error:
        half = str(text)[error.start]
        raise DataError(
            f"{where}: character {error.start} is U+{ord(half):04X}, which is half of one. Where the text comes from, "
            "something cut it inside a character; replace it."
        ) from None
    return text


def _text_of_parts(parts: Any, where: str) -> str:
    if not isinstance(parts, list):
        raise DataError(f"{where}: content is {parts!r:.60} ({type(parts).__name__}). Give a text.")
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    kinds = [part.get("type", "text") if isinstance(part, Mapping) else "text" for part in parts]
    unread = sorted({str(kind) for text, kind in zip(texts, kinds, strict=True) if kind != "text" or text is None})
    if unread or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{where}: content has parts of the type {', '.join(unread) or 'number'}; only text is read. Leave them "
            "out, or describe them in words."
        )
    return "".join(map(str, texts))


def _call(call: Any, where: str) -> Fields:
    """A tool call in OpenAI's form, with its arguments as an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(
            f"{where}: {call!r:.60} is not a tool call. Write "
            '{"type": "function", "function": {"name": …, "arguments": {…}}}.'
        )
    arguments = _parsed(function.get("arguments", {}))
    if not isinstance(arguments, Mapping):
        raise DataError(f"{where}: the arguments of {function['name']} are {arguments!r:.60}. Give an object.")
    rest = {name: value for name, value in call.items() if name not in ("function", "name", "arguments")}
    return {"type": "function", **rest, "function": {"name": function["name"], "arguments": dict(arguments)}}


def _tools(value: Any, where: str) -> list[Fields]:
    tools = _parsed(value)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(
            f"{where}: tools is {value!r:.60} ({type(value).__name__}). Give a list of tools in OpenAI's format."
        )
    return tools


def _parsed(value: Any) -> Any:
    """What a text of JSON holds; data sets write tools and arguments so, because tables need one form for all rows."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
