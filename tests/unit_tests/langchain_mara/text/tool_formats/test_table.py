"""Which tool format a chat template asks for."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
from tool_families import FAMILIES, tokenizer_of
from transformers import PreTrainedTokenizerFast

from langchain_mara.exceptions import OptionsError, PromptError
from langchain_mara.text.chat_fields import ToolFormatName
from langchain_mara.text.tool_formats.table import FORMATS, TABLE, tool_format_of

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
UNKNOWN = "{%- for tool in tools %}{{ tool.name }}{%- endfor %}" + CHATML
HERMES = "{% if tools %}<tool_call>{% endif %}" + CHATML


def test_every_format_has_a_template_and_a_name() -> None:
    assert sorted(get_args(ToolFormatName)) == sorted(FORMATS) == FAMILIES
    assert len(TABLE) == len(FORMATS)


@pytest.mark.parametrize("family", FAMILIES)
def test_format_is_read_off_the_template(family: str) -> None:
    assert tool_format_of(tokenizer_of(family)).name == family


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "prompt"),
        (CHATML, "prompt"),
        (CHATML + "{# tools are not for us #}", "prompt"),
        (HERMES, "hermes"),
        ({"default": CHATML, "tool_use": HERMES}, "hermes"),
        ("{% generation %}{% endgeneration %}" + HERMES, "hermes"),
        ("{% if tools %}functools[{}]{% endif %}" + CHATML, "phi-4"),
        ("{% if tools %}Environment: ipython [func_name1(a=b)]{% endif %}" + CHATML, "llama-pythonic"),
    ],
)
def test_templates_of_other_shapes(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], template: Any, name: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert tool_format_of(tokenizer).name == name


def test_unknown_formats_are_refused_and_a_name_overrides(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = UNKNOWN
    with pytest.raises(PromptError, match="a format this library does not recognize. Give tool_format: one of harmony"):
        tool_format_of(tokenizer)
    assert tool_format_of(tokenizer, "glm").name == "glm"
    with pytest.raises(OptionsError, match="tool_format='xml' is unknown. Give one of harmony"):
        tool_format_of(tokenizer, "xml")


def test_mistral_v11_is_known_by_its_tokens_too() -> None:
    tokenizer = tokenizer_of("mistral-v11")
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = tokenizer_of("mistral-v3").chat_template
        assert tool_format_of(tokenizer).name == "mistral-v11"
    finally:
        tokenizer.chat_template = kept
