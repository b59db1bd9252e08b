"""The table of tool formats, and which of them a model's chat template asks for."""

# ruff: noqa: RUF001 -- the markers of DeepSeek hold such characters
import re
from collections.abc import Callable
from typing import NamedTuple

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.text.tool_formats.base import ToolFormat
from langchain_mara.text.tool_formats.families.json_formats import JsonFormat, MistralFormat, PhiFormat, PromptedFormat
from langchain_mara.text.tool_formats.families.literal_formats import GemmaFormat, PythonicFormat
from langchain_mara.text.tool_formats.families.tagged_formats import DeepSeekFormat, HarmonyFormat, TaggedFormat


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
        format: The format.
        asked_for: Whether a chat template asks for it; the first row that says so counts.
    """

    format: ToolFormat
    asked_for: Callable[[str], bool]


def _holds(*texts: str) -> Callable[[str], bool]:
    return lambda template: all(text in template for text in texts)


def _holds_any(*texts: str) -> Callable[[str], bool]:
    return lambda template: any(text in template for text in texts)


_TAG, _TAG_END = "<tool_call>", "</tool_call>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_INNER = ("<｜tool▁sep｜>",)
_MISTRAL_INNER = ("[CALL_ID]", "[ARGS]")
_HERMES = JsonFormat("hermes", (_TAG,), (_TAG_END,), before=f"{_TAG}\n", after_calls=f"\n{_TAG_END}")

TABLE: tuple[Entry, ...] = (
    Entry(
        HarmonyFormat(
            "harmony", ("<|channel|>commentary to=",), ("<|call|>", "<|end|>", "<|start|>assistant"),
            ("<|constrain|>", "<|message|>"),
        ),
        _holds("<|channel|>"),
    ),
    Entry(DeepSeekFormat("deepseek", *_DEEPSEEK, _DEEPSEEK_INNER), _holds("<｜tool▁sep｜>", "```json")),
    Entry(DeepSeekFormat("deepseek-v3.1", *_DEEPSEEK, _DEEPSEEK_INNER, fenced=False), _holds("<｜tool▁sep｜>")),
    Entry(
        GemmaFormat("gemma-4", ("<|tool_call>",), ("<tool_call|>",), ('<|"|>',), quote='<|"|>'), _holds("<tool_call|>")
    ),
    Entry(
        GemmaFormat("gemma", ("<start_function_call>",), ("<end_function_call>",), ("<escape>",)),
        _holds("<start_function_call>"),
    ),
    Entry(
        TaggedFormat("qwen3-coder", (_TAG, "<function="), ("</function>", _TAG_END)),
        _holds("<function=", "<parameter="),
    ),
    Entry(TaggedFormat("glm", (_TAG,), (_TAG_END,), glm=True), _holds("<arg_key>")),
    Entry(
        PhiFormat(
            "phi-4", ("<|tool_call|>", "functools["), ("<|/tool_call|>",), before="<|tool_call|>",
            after_calls="<|/tool_call|>", listed=True,
        ),
        _holds_any("<|tool|>", "<|/tool_call|>", "functools"),
    ),
    Entry(
        JsonFormat("granite", ("<|tool_call|>", _TAG), (_TAG_END,), before="<|tool_call|>", listed=True),
        _holds("<|tool_call|>"),
    ),
    Entry(_HERMES, _holds(_TAG)),
    Entry(
        MistralFormat("mistral-v11", ("[TOOL_CALLS]",), inner=_MISTRAL_INNER, bare="[", named=True),
        _holds("[TOOL_CALLS]", "[ARGS]"),
    ),
    Entry(MistralFormat("mistral-v3", ("[TOOL_CALLS]",), inner=_MISTRAL_INNER, bare="["), _holds("[TOOL_CALLS]")),
    Entry(
        PythonicFormat("llama-pythonic", ("<|python_start|>",), ("<|python_end|>",), bare="["),
        lambda template: re.search(r"\[\w+\(\w+=", template) is not None,
    ),
    Entry(
        JsonFormat(
            "llama-json", ("<|python_tag|>", "<|python_start|>", "<function="), ("<|python_end|>", "</function>"),
            bare="{", key="parameters", separator="; ",
        ),
        _holds_any("python_tag", "ipython"),
    ),
    Entry(
        PromptedFormat("prompt", (_TAG,), (_TAG_END,), before=_HERMES.before, after_calls=_HERMES.after_calls),
        lambda _: False,
    ),
)  # fmt: skip
"""All formats, in the order in which templates are asked for them."""

FORMATS: dict[str, ToolFormat] = {entry.format.name: entry.format for entry in TABLE}
"""The formats by their names in `tool_format=`."""


def tool_format_of(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> ToolFormat:
    """The format in which a model writes tool calls.

    Args:
        tokenizer: The model's tokenizer.
        name: Name of a format, which then counts instead of what the chat template looks like.

    Returns:
        The format; `prompt` if the chat template knows nothing of tools.

    Raises:
        OptionsError: If no format has the name.
        PromptError: If the chat template takes tools in an unknown format.
    """
    if name is not None:
        if name not in FORMATS:
            raise OptionsError(f"tool_format={name!r:.80} is unknown. Give one of {', '.join(FORMATS)}.")
        return FORMATS[name]
    template = template_with_tools(tokenizer)
    found = next((entry.format for entry in TABLE if entry.asked_for(template)), None)
    if found is None and not takes_tools(template):
        return FORMATS["prompt"]
    if found is None:
        raise PromptError(
            "The model's chat template takes tools, but in a format this library does not recognize. Give tool_format: "
            f"one of {', '.join(FORMATS)}; prompt describes the tools in a system message."
        )
    if found.name == "mistral-v3" and "[ARGS]" in tokenizer.get_added_vocab():
        return FORMATS["mistral-v11"]
    return found


def template_with_tools(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that is used together with tools; empty if there is none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template or ""


def takes_tools(template: str) -> bool:
    """Whether a chat template reads tools, as a variable or from its system message."""
    if re.search(r"message(\.tools\b|\[['\"]tools['\"]\])", template):
        return True
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)
    try:
        return "tools" in jinja2.meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateError:  # a tag that only transformers knows, such as `generation`
        return re.search(r"\btools\b", template) is not None
