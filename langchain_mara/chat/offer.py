"""What a call lets the model do besides answering: the tools it may call, or must."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from langchain_mara.chat.tool_choice import chosen, forced_names, tool_schemas
from langchain_mara.grammar.specification import GrammarFields, grammar_text
from langchain_mara.text.tool_formats.answer import AnswerReader, markers
from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.table import tool_format_of

CALLING = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
"""Arguments of a call that say which tools the model may call."""


@dataclass(frozen=True)
class ToolOffer:
    """The tools of one call.

    Attributes:
        schemas: The tools in OpenAI's format; none if the model may not call any.
        format: Format of the model's calls; None if there are no tools.
        opening: Beginning of the answer that leaves only a call; may be empty.
        is_single: Whether only the first call counts.
    """

    schemas: Sequence[dict[str, Any]] = ()
    format: ToolFormat | None = None
    opening: str = ""
    is_single: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, format_name: str | None, call_arguments: Mapping[str, Any]) -> Self:
        """The offer of a call.

        Args:
            tokenizer: The model's tokenizer.
            format_name: Name of the format of the model's calls; None for the one that its chat template asks for.
            call_arguments: Arguments of the call, of which those in `CALLING` count.

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
        opening = tool_format.forced(names) if names else ""
        return cls(schemas, tool_format, opening, call_arguments.get("parallel_tool_calls") is False)

    def instead_of(self, form: GrammarFields) -> list[str] | None:
        """Beginnings of calls that an answer may have instead of a promised form.

        Args:
            form: What the answer is to conform to.

        Returns:
            A beginning for each tool; none if the form holds for calls, too. None if no form is promised, which is so
            for an answer that has to be a call.

        Raises:
            PromptError: If the name of a tool cannot be written out.
        """
        if self.opening or grammar_text(form) is None:
            return None
        if self.format is None or form.response_format is None:
            return []
        return [self.format.forced([str(schema["function"]["name"])]) for schema in self.schemas]

    def markers(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Special tokens that must stay in the text of an answer."""
        return markers(tokenizer, self.format)

    def reader(
        self, tokenizer: PreTrainedTokenizerBase, *, thinking: bool, instead: Sequence[str] | None
    ) -> AnswerReader:
        """Reads one answer.

        Args:
            tokenizer: The model's tokenizer.
            thinking: Whether the prompt ends in thoughts.
            instead: See `instead_of`.
        """
        return AnswerReader(
            tokenizer,
            self.format,
            self.schemas,
            self.opening,
            thinking=thinking,
            instead=instead,
            single=self.is_single,
        )
