"""What a chat model can do, in the words of LangChain's model profiles."""

from typing import Any

from langchain_mara._base import LocalModel
from langchain_mara.exceptions import PromptError
from langchain_mara.policy.architectures import context_length
from langchain_mara.text.tool_calls import detect_tool_format

_NOT_READ = ("image_inputs", "image_url_inputs", "pdf_inputs", "audio_inputs", "video_inputs")
_NOT_WRITTEN = ("image_outputs", "audio_outputs", "video_outputs")
_NOT_IN_TOOLS = ("image_tool_message", "pdf_tool_message")
_REASONING = ("<think>", "reasoning_content", "enable_thinking", "<|channel|>")


def profile_of(chat: LocalModel) -> dict[str, Any]:
    """The profile of a chat model: context size, tools, structured output, reasoning, and the kinds of media.

    Args:
        chat: The chat model.
    """
    takes_tools = _takes_tools(chat)
    template = str(chat.tokenizer.chat_template)
    context = context_length(chat.model.config.get_text_config(decoder=True))
    return {
        **({} if context is None else {"max_input_tokens": context}),
        "text_inputs": True,
        "text_outputs": True,
        **dict.fromkeys((*_NOT_READ, *_NOT_WRITTEN, *_NOT_IN_TOOLS), False),
        "tool_calling": takes_tools,
        "tool_choice": takes_tools,
        "tool_call_streaming": takes_tools,
        "structured_output": "response_format" in type(chat).model_fields,
        "reasoning_output": any(word in template for word in _REASONING),
    }


def _takes_tools(chat: LocalModel) -> bool:
    try:
        detect_tool_format(chat.tokenizer)
    except PromptError:
        return False
    return True
