"""Small tokenizers with the control tokens of the families that call tools, and templates in the syntax of theirs.

The templates are our own and shorter than the families', but they write turns, tools, calls and results with the same
tokens.
"""

# ruff: noqa: RUF001 -- the markers of DeepSeek hold such characters
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "data" / "chat_templates"
FAMILIES = sorted(file.stem for file in FOLDER.glob("*.jinja"))
CHATML = "<|endoftext|> <|im_end|> <|im_start|>"
LLAMA_4 = "<|begin_of_text|> <|eot|> <|header_start|> <|header_end|> <|python_start|> <|python_end|>"
DEEPSEEK = (
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁sep｜> "
    "<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> "
    "<｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
)
REAL_FOLDER = FOLDER.with_name("real_templates")
REAL = {
    **dict.fromkeys(("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl"), "hermes"),
    **dict.fromkeys(("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"), "qwen3-coder"),
    **dict.fromkeys(("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"), "qwen3-coder"),
    "nemotron_3_5_lightning": "qwen3-coder",
    **dict.fromkeys(("llama3_1", "llama3_2"), "llama-json"),
    **dict.fromkeys(("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5"), "gemma-4"),
    "glm4moe": "glm",
    "gptoss": "harmony",
    "deepseekv3": "deepseek",
}
"""Families of the templates of published checkpoints; not all are in the folder."""
SPECIALS = {
    "hermes": CHATML,
    "qwen3-coder": CHATML,
    "glm": "<sop> <|user|> [gMASK] <|system|> <|assistant|> <|observation|>",
    "llama-json": "<|begin_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|> <|python_tag|>",
    "llama-pythonic": LLAMA_4,
    "mistral-v3": "<s> </s> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS]",
    "mistral-v11": "<s> </s> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CONTENT] [CALL_ID] [ARGS] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [THINK] [/THINK]",
    "granite": "<|begin_of_text|> <|end_of_text|> <|start_of_role|> <|end_of_role|> <|tool_call|>",
    "phi-4": "<|endoftext|> <|end|> <|system|> <|user|> <|assistant|> <|tool|> <|/tool|> <|tool_call|> <|/tool_call|>",
    "gemma": "<bos> <end_of_turn> <start_of_turn> <start_function_call> <end_function_call> <escape> "
    "<start_function_declaration> <end_function_declaration> <start_function_response> <end_function_response>",
    "gemma-4": '<bos> <turn|> <|turn> <|tool_call> <tool_call|> <|"|> <|tool> <tool|> <|tool_response> '
    "<tool_response|> <|channel> <channel|>",
    "harmony": "<|startoftext|> <|return|> <|start|> <|end|> <|message|> <|channel|> <|constrain|> <|call|>",
    "deepseek": DEEPSEEK,
    "deepseek-v3.1": DEEPSEEK,
    "prompt": "<bos> <end_of_turn> <start_of_turn>",
}
WRITTEN = {
    "hermes": "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>",
    "qwen3-coder": "<tool_call> </tool_call> <tool_response> </tool_response>",
    "glm": "<tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value> <think> </think>",
    "deepseek": "<think> </think>",
    "deepseek-v3.1": "<think> </think>",
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": {key: {"type": kind} for key, kind in kinds.items()}},
        },
    }
    for name, kinds in {
        "get_weather": {"city": "string"},
        "note": {"text": "string", "deep": "object", "count": "integer", "sure": "boolean", "much": "number"},
    }.items()
]


def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of letters with the control tokens of a family and the template of a published checkpoint."""
    return tokenizer_of(REAL[name], (REAL_FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))


@cache
def tokenizer_of(family: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of letters with a family's control tokens and template, which may be another one."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    specials = SPECIALS[family].split(" ")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    written = [token for token in WRITTEN.get(family, "").split(" ") if token]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in written])
    template = (
        (FOLDER / f"{family}.jinja").read_text(encoding="utf-8").removesuffix("\n") if template is None else template
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=specials[0], eos_token=specials[1], chat_template=template
    )
