"""Arranges a conversation with tools for a chat template, whose habits are found by rendering a small one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import jinja2
from transformers import PreTrainedTokenizerBase

from langchain_mara.text.chat_fields import ToolFormatName
from langchain_mara.text.chat_template import Arrange, encode_messages
from langchain_mara.text.reasoning import with_reasoning
from langchain_mara.text.tool_formats.base import Message, ToolFormat
from langchain_mara.text.tool_formats.calls import ToolCall, arguments_of, dumps
from langchain_mara.text.tool_formats.table import takes_tools, template_with_tools, tool_format_of

_TOOLS: list[Message] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": {"probe": {"type": "string", "description": ""}}},
        },
    }
    for name in ("first_call", "second_call")
]
_RESULT = "<tool_response>"
_FIRST, _SECOND = "value one", "value two"
_EXAMPLE = ToolCall("name_of_the_function", {"argument": "value"})
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


@dataclass(frozen=True)
class TemplateHabits:
    """What a chat template does with tools.

    Attributes:
        takes_tools: Whether it describes tools.
        writes_calls: Whether it writes the tool calls of earlier turns.
        writes_several: Whether it writes several calls of one message.
        takes_text: Whether it wants arguments as a text of JSON, not as an object.
        writes_results: Whether it writes messages of the role `tool`.
        takes_system: Whether it writes a system message.
    """

    takes_tools: bool
    writes_calls: bool
    writes_several: bool
    takes_text: bool
    writes_results: bool
    takes_system: bool


def habits_of(tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat) -> TemplateHabits:
    """What the chat template of a tokenizer does with tools; each template is asked once."""
    key = (str(tokenizer.chat_template), tool_format.name)
    found = _KNOWN.get(tokenizer)
    if found is None or found[0] != key:
        found = _KNOWN[tokenizer] = (key, _habits(tokenizer, tool_format))
    return found[1]


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, TemplateHabits]] = WeakKeyDictionary()


def _habits(tokenizer: PreTrainedTokenizerBase, tool_format: ToolFormat) -> TemplateHabits:
    def shown(*messages: Message) -> str:
        arranged = tool_format.arrange([{"role": "user", "content": "hello"}, *messages], _TOOLS)
        try:
            return str(tokenizer.apply_chat_template(arranged, tools=list[Any](_TOOLS), tokenize=False))
        except _FAILURES:
            return ""

    objects, texts = ([_call(name, value, text) for name, value in _CALLS] for text in (False, True))
    results = [{"role": "tool", "content": "22 degrees", "name": name, "tool_call_id": _id(name)} for name, _ in _CALLS]
    one, as_text = shown(_says(objects[:1]), results[0]), shown(_says(texts[:1]), results[0])
    # Python's quotes give away a template that writes what it is given without turning it into JSON.
    takes_text = _FIRST not in one or ("{'probe'" in one and "{'probe'" not in as_text)
    single = as_text if takes_text else one
    several = shown(_says(texts if takes_text else objects), *results)
    system = {"role": "system", "content": "a system message"}
    return TemplateHabits(
        takes_tools=tool_format.tools_in_template and takes_tools(template_with_tools(tokenizer)),
        writes_calls=tool_format.tools_in_template and _FIRST in single,
        writes_several=_FIRST in several and _SECOND in several,
        takes_text=takes_text and _FIRST in as_text,
        writes_results="22 degrees" in (single or shown({"role": "assistant", "content": "so"}, results[0])),
        takes_system=system["content"] in _rendered(tokenizer, [system, {"role": "user", "content": "hello"}]),
    )


_CALLS = (("first_call", _FIRST), ("second_call", _SECOND))


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except _FAILURES:
        return ""


def _id(name: str) -> str:
    return f"{name[:5]}0000"


def _call(name: str, value: str, as_text: bool) -> Message:
    arguments = {"probe": value}
    function = {"name": name, "arguments": dumps(arguments) if as_text else arguments}
    return {"type": "function", "id": _id(name), "function": function}


def _says(calls: Sequence[Message]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def arrangement(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> Arrange:
    """How conversations are arranged for a model, for any messages and tools.

    Calls that the template does not write become text of the assistant, results that it does not write text of the
    user, and tools that it does not describe a part of the system message. Several calls of one message become
    several messages where the template writes only one.

    Args:
        tokenizer: The model's tokenizer.
        name: Name of the format of its tool calls; None for the one that the chat template asks for.

    Raises:
        OptionsError: If no format has the name.
        PromptError: If the chat template takes tools in an unknown format.
    """
    tool_format = tool_format_of(tokenizer, name)
    habits = habits_of(tokenizer, tool_format)

    def arrange(messages: list[Message], tools: list[Message]) -> tuple[list[Message], list[Message]]:
        arranged = messages if habits.writes_several or not habits.writes_calls else _in_turns(messages)
        arranged = _joined_results([_written(message, tool_format, habits) for message in arranged])
        if tools and not habits.takes_tools:
            return _described(arranged, tools, tool_format, habits), []
        return tool_format.arrange(arranged, tools), tools

    return arrange


def needed_arrangement(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    tools: Sequence[Message] = (),
    name: str | None = None,
) -> Arrange | None:
    """How a prompt is arranged, if it is a conversation with tools; None if it is not.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Text or messages.
        tools: Tools that the model may call.
        name: See `arrangement`.

    Raises:
        OptionsError: If no format has the name.
        PromptError: If the chat template takes tools in an unknown format.
    """
    messages = () if isinstance(prompt, str) else prompt
    uses_tools = bool(tools) or any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
    return arrangement(tokenizer, name) if uses_tools else None


class PromptSettings(Protocol):
    """What a prompt depends on besides its messages; `ChatMara` has it all."""

    tool_format: ToolFormatName | None
    special_tokens_in_messages: bool

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Further variables of the chat template."""


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message],
    opening: str = "",
    *,
    settings: PromptSettings,
    promised: bool = False,
) -> list[int]:
    """Token ids of a conversation with tools and reasoning, up to where the answer begins.

    Args:
        tokenizer: The model's tokenizer.
        messages: Messages of the form `{"role": …, "content": …}`, which may have `tool_calls` and `reasoning_content`.
        tools: Tools that the model may call, in OpenAI's format.
        opening: Beginning of the answer.
        settings: What the prompt depends on besides.
        promised: Whether the answer has a promised form, which leaves no room for thoughts.

    Raises:
        PromptError: If the chat template refuses the messages, or takes tools in an unknown format.
    """
    return encode_messages(
        tokenizer,
        with_reasoning(messages, template_with_tools(tokenizer)),
        tools,
        opening,
        special_tokens_in_messages=settings.special_tokens_in_messages,
        arrange=needed_arrangement(tokenizer, messages, tools, settings.tool_format),
        promised=promised,
        template_kwargs=settings.template_kwargs,
    )


def _in_turns(messages: Sequence[Message]) -> list[Message]:
    """Each call of several in a message of its own, with its result after it."""
    turns: list[Message] = []
    waiting = list(messages)
    while waiting:
        message = waiting.pop(0)
        calls = message.get("tool_calls") or []
        if len(calls) < 2:  # noqa: PLR2004 -- one call is a turn already
            turns.append(message)
            continue
        count = next((i for i, each in enumerate(waiting) if each.get("role") != "tool"), len(waiting))
        results, waiting = waiting[:count], waiting[count:]
        for i, call in enumerate(calls):
            said = message if i == 0 else {"role": message["role"], "content": ""}
            turns.append({**said, "tool_calls": [call]})
            turns += [result for result in results if result.get("tool_call_id") == call.get("id")]
        known = [call.get("id") for call in calls]
        turns += [result for result in results if result.get("tool_call_id") not in known]
    return turns


def _written(message: Message, tool_format: ToolFormat, habits: TemplateHabits) -> Message:
    """A message with its calls, or its result, in a form that the template writes."""
    calls = message.get("tool_calls") or []
    if message.get("role") == "tool" and not habits.writes_results:
        return {"role": "user", "content": f"{_RESULT}\n{message.get('content') or ''}\n</tool_response>"}
    if not calls:
        return message
    functions = [call["function"] for call in calls]
    if habits.writes_calls:
        texts = (
            [{**each, "arguments": _as_text(each["arguments"])} for each in functions]
            if habits.takes_text
            else functions
        )
        return {**message, "tool_calls": [{**call, "function": f} for call, f in zip(calls, texts, strict=True)]}
    written = tool_format.write([ToolCall(f["name"], arguments_of(f["arguments"], f["name"])) for f in functions])
    content = "\n".join(filter(None, [message.get("content") or "", written]))
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


def _joined_results(messages: list[Message]) -> list[Message]:
    """Results that became texts of the user in one message, because many templates want turns to alternate."""
    joined: list[Message] = []
    for message in messages:
        is_result = message.get("role") == "user" and str(message.get("content")).startswith(_RESULT)
        if is_result and joined and str(joined[-1].get("content")).startswith(_RESULT):
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else dumps(arguments)


def _described(
    messages: list[Message], tools: list[Message], tool_format: ToolFormat, habits: TemplateHabits
) -> list[Message]:
    """Messages of which the first describes the tools."""
    listed = "\n".join(dumps(tool.get("function", tool)) for tool in tools)
    description = (
        f"You may call these functions:\n{listed}\n\n"
        "To call functions, answer with nothing but the calls, in this form:\n"
        f"{tool_format.write([_EXAMPLE])}\nYou then get their results. If no function helps, answer in plain words."
    )
    first = messages[0] if messages else {}
    is_system = first.get("role") == "system"
    if is_system or not habits.takes_system:
        content = "\n\n".join(filter(None, [first.get("content") or "", description]))
        role = first.get("role", "user")
        if not is_system:
            content = f"{description}\n\n{first.get('content') or ''}"
        return [{**first, "role": role, "content": content}, *messages[1:]]
    return [{"role": "system", "content": description}, *messages]
