"""What a call lets the model do besides answering: the tools it may call, or must."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from langchain_mara.chat.tool_choice import chosen, forced_names, tool_schemas
from langchain_mara.text.tool_formats.answer import AnswerReader, markers
from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.table import tool_format_of


@dataclass(frozen=True)
class ToolOffer:
    """The tools of one call.

    Attributes:
        schemas: The tools in OpenAI's format; none if the model may not call any.
        format: Format of the model's calls; None if there are no tools.
        opening: Beginning of the answer that leaves only a call; may be empty.
    """

    schemas: Sequence[dict[str, Any]] = ()
    format: ToolFormat | None = None
    opening: str = ""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, format_name: str | None, call_arguments: Mapping[str, Any]) -> Self:
        """The offer of a call.

        Args:
            tokenizer: The model's tokenizer.
            format_name: Name of the format of the model's calls; None for the one that its chat template asks for.
            call_arguments: Arguments of the call, of which `tools` and `tool_choice` count.

        Raises:
            OptionsError: If the choice names no tool, or something is no tool.
            PromptError: If the chat template takes tools in an unknown format.
        """
        choice = chosen(call_arguments.get("tool_choice"))
        schemas = [] if choice == "none" else tool_schemas(call_arguments.get("tools") or ())
        names = forced_names(schemas, choice)
        if not schemas:
            return cls()
        tool_format = tool_format_of(tokenizer, format_name)
        return cls(schemas, tool_format, tool_format.forced(names) if names else "")

    def markers(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Special tokens that must stay in the text of an answer."""
        return markers(tokenizer, self.format)

    def reader(self, tokenizer: PreTrainedTokenizerBase, *, thinking: bool) -> AnswerReader:
        """Reads one answer.

        Args:
            tokenizer: The model's tokenizer.
            thinking: Whether the prompt ends in thoughts.
        """
        return AnswerReader(tokenizer, self.format, self.schemas, self.opening, thinking=thinking)
