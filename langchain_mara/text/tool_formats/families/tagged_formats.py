"""Formats that are not one JSON object per call: tags of Qwen3-Coder and GLM, DeepSeek, and Harmony of gpt-oss."""

# ruff: noqa: RUF001 -- the markers of DeepSeek hold such characters
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.calls import Offer, ToolCall, arguments_of, dumps, read_json
from langchain_mara.text.tool_formats.families.typed_values import typed

_CODER_CALL = re.compile(r"(?:<tool_call>)?\s*<function=(?P<name>[^>\s]+)>")
_CODER_VALUE = re.compile(
    r"\s*<parameter=(?P<key>[^>]+)>\n?(?P<value>.*?)\n?</parameter>(?=\s*(?:<parameter=|</function>|</tool_call>|$))",
    re.DOTALL,
)
_GLM_CALL = re.compile(r"<tool_call>\s*(?P<name>[^\s<{\[\"]+)")
_GLM_VALUE = re.compile(
    r"\s*<arg_key>\s*(?P<key>.*?)\s*</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>(?=\s*(?:<arg_key>|</tool_call>|$))",
    re.DOTALL,
)
_DEEPSEEK_CALL = re.compile(
    r"(?:<｜tool▁calls▁begin｜>)?\s*<｜tool▁call▁begin｜>(?P<head>[^<]*+)<｜tool▁sep｜>"
    r"(?:(?P<name>[\w.-]++)\s*+```(?:json)?)?"
)
_HARMONY_CALL = re.compile(
    r"<\|channel\|>commentary to=(?:functions\.)?(?P<name>[\w.-]++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>"
)


@dataclass(frozen=True)
class TaggedFormat(ToolFormat):
    """Calls whose arguments stand one by one between tags, in which texts have no quotes.

    Attributes:
        glm: Whether the tags are GLM's; if not, they are Qwen3-Coder's.
    """

    glm: bool = False

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        begun = (_GLM_CALL if self.glm else _CODER_CALL).match(text)
        if begun is None:
            raise ValueError("there is no name of a tool.")
        arguments: dict[str, Any] = {}
        place, pattern = begun.end(), _GLM_VALUE if self.glm else _CODER_VALUE
        schema = offer.schemas.get(begun["name"], {})
        while value := pattern.match(text, place):
            arguments[value["key"]] = typed(value["value"], schema, value["key"])
            place = value.end()
        end = self.after(text, place)
        if end == place and (offer.truncated or text[place:].strip()):
            raise ValueError(f"the arguments of {begun['name']} do not end with {self.ends[0]}.")
        return [ToolCall(begun["name"], arguments)], end

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        return "\n".join(map(self._written, calls))

    def _written(self, call: ToolCall) -> str:
        texts = {key: value if isinstance(value, str) else dumps(value) for key, value in call.arguments.items()}
        if self.glm:
            pairs = [f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n" for key, text in texts.items()]
            return f"<tool_call>{call.name}\n{''.join(pairs)}</tool_call>"
        pairs = [f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items()]
        return f"<tool_call>\n<function={call.name}>\n{''.join(pairs)}</function>\n</tool_call>"

    def beginning(self, name: str | None) -> str:  # noqa: D102
        begun = "<tool_call>" if self.glm else "<tool_call>\n<function="
        return begun + ("" if name is None else f"{name}\n" if self.glm else f"{name}>\n")


@dataclass(frozen=True)
class DeepSeekFormat(ToolFormat):
    """Calls of DeepSeek.

    Attributes:
        fenced: Whether the arguments are a block of code after the kind and the name, as before V3.1.
    """

    fenced: bool = True

    json_heads: ClassVar[tuple[str, ...]] = (
        r"[^<`{]*+<｜tool▁sep｜>\s*+(?P<name>[\w.-]++)\s*+```(?:json)?",
        r"(?P<name>[^<`{\s]++)\s*+<｜tool▁sep｜>",
    )

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        begun = _DEEPSEEK_CALL.match(text)
        if begun is None:
            raise ValueError("there is no name of a tool.")
        name = begun["name"] or begun["head"].strip()
        value, end = read_json(text, begun.end(), ("```", *self.ends, *self.openings), offer)
        fence = re.match(r"\s*```", text[end:])
        return [ToolCall(name, arguments_of(value, name))], self.after(text, end + (fence.end() if fence else 0))

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        parts = [f"{self._head(call.name)}{dumps(call.arguments)}{self._tail}" for call in calls]
        return f"<｜tool▁calls▁begin｜>{''.join(parts)}<｜tool▁calls▁end｜>"

    @property
    def _tail(self) -> str:
        return ("\n```" if self.fenced else "") + "<｜tool▁call▁end｜>"

    def _head(self, name: str) -> str:
        kind = f"function<｜tool▁sep｜>{name}\n```json\n" if self.fenced else f"{name}<｜tool▁sep｜>"
        return f"<｜tool▁call▁begin｜>{kind}"

    def beginning(self, name: str | None) -> str:  # noqa: D102
        if name is not None:
            return f"<｜tool▁calls▁begin｜>{self._head(name)}"
        return "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>" + ("function<｜tool▁sep｜>" if self.fenced else "")


@dataclass(frozen=True)
class HarmonyFormat(ToolFormat):
    """Calls of gpt-oss: messages to a function, as `reasoning` passes them on from Harmony's channels."""

    json_heads: ClassVar[tuple[str, ...]] = (
        r"(?:functions\.)?(?P<name>[\w.-]++)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>",
    )

    def read(self, text: str, offer: Offer) -> tuple[list[ToolCall], int]:  # noqa: D102
        begun = _HARMONY_CALL.match(text)
        if begun is None:
            raise ValueError("there is no name of a tool.")
        value, end = read_json(text, begun.end(), (*self.ends, *self.openings), offer)
        return [ToolCall(begun["name"], arguments_of(value, begun["name"]))], self.after(text, end)

    def write(self, calls: Sequence[ToolCall]) -> str:  # noqa: D102
        return "<|start|>assistant".join(
            f"{self.beginning(call.name)}{dumps(call.arguments)}<|call|>" for call in calls
        )

    def beginning(self, name: str | None) -> str:  # noqa: D102
        begun = "<|channel|>commentary to=functions."
        return begun + ("" if name is None else f"{name} <|constrain|>json<|message|>")
