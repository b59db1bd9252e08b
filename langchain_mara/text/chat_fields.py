"""Fields of chat models: how tools and reasoning reach the chat template."""

from typing import Any, Literal

from pydantic import BaseModel, field_validator

ToolFormatName = Literal[
    "hermes", "qwen3-coder", "glm", "llama-json", "llama-pythonic", "mistral-v3", "mistral-v11", "granite", "phi-4",
    "gemma", "gemma-4", "harmony", "deepseek", "deepseek-v3.1", "prompt",
]  # fmt: skip
"""Name of a format of tool calls."""

_OWN_TEMPLATE_VARIABLES = {
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}  # fmt: skip


class ChatFields(BaseModel):
    """Fields of chat models: how tools and reasoning reach the chat template."""

    tool_format: ToolFormatName | None = None
    """Format in which the model writes tool calls; by default the one that its chat template asks for. `prompt`
    describes the tools in a system message, which is the default where the template takes none."""
    enable_thinking: bool | None = None
    """Whether the model thinks before it answers, where its chat template knows this variable."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the chat template, such as `{"reasoning_effort": "low"}`."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_own_variables(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if own := sorted(_OWN_TEMPLATE_VARIABLES.intersection(value or ())):
            raise ValueError(f"sets {', '.join(own)}, which this library sets. Leave them out")
        return value

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """All further variables of the chat template."""
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return {**thinking, **(self.chat_template_kwargs or {})}
