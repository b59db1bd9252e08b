"""What a chat model can do, in the words of LangChain's model profiles."""

from importlib.util import find_spec
from typing import Any

from langchain_core import language_models

from langchain_mara._base import LocalModel
from langchain_mara.exceptions import PromptError
from langchain_mara.policy.architectures import context_length
from langchain_mara.text.reasoning import reasoning_tags
from langchain_mara.text.tool_formats.table import tool_format_of

_NOT_READ = ("image_inputs", "image_url_inputs", "pdf_inputs", "audio_inputs", "video_inputs")
_NOT_WRITTEN = ("image_outputs", "audio_outputs", "video_outputs")
_NOT_IN_TOOLS = ("image_tool_message", "pdf_tool_message")
# langchain-core warns of names that it does not know; before 1.1 it knows no profiles and takes all.
_KNOWN: Any = getattr(getattr(language_models, "ModelProfile", None), "__annotations__", None)
_REASONING = ("reasoning_content", "enable_thinking")


def profile_of(chat: LocalModel) -> dict[str, Any]:
    """The profile of a chat model: context size, tools, structured output, reasoning, and the kinds of media.

    Args:
        chat: The chat model.
    """
    takes_tools = _takes_tools(chat)
    template = str(chat.tokenizer.chat_template)
    context = context_length(chat.model.config.get_text_config(decoder=True))
    profile = {
        **({} if context is None else {"max_input_tokens": context}),
        "text_inputs": True,
        "text_outputs": True,
        **dict.fromkeys((*_NOT_READ, *_NOT_WRITTEN, *_NOT_IN_TOOLS), False),
        "tool_calling": takes_tools,
        "tool_choice": takes_tools,
        "tool_call_streaming": takes_tools,
        "structured_output": find_spec("llguidance") is not None,
        "reasoning_output": reasoning_tags(chat.tokenizer).known or any(word in template for word in _REASONING),
    }
    return {name: value for name, value in profile.items() if _KNOWN is None or name in _KNOWN}


def _takes_tools(chat: LocalModel) -> bool:
    """Whether the model's template takes tools; if not, they are described in words, which few models were taught."""
    try:
        return tool_format_of(chat.tokenizer, getattr(chat, "tool_format", None)).tools_in_template
    except PromptError:
        return False
