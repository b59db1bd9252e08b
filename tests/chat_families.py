"""Small tokenizers with the control tokens and chat templates of four families of chat models."""

from functools import cache

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n<tools>' }}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    '{{- \'</tools>\nAnswer with <tool_call>{"name": "arguments"}</tool_call><|im_end|>\n\' }}{%- endif %}'
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and '</think>' in m.content %}{{- m.content.split('</think>')[-1].lstrip('\n') }}"
    "{%- else %}{{- m.content | trim }}{%- endif %}"
    "{%- for c in m.tool_calls or [] %}{{- '<tool_call>' }}{{- c.function.name }}"
    "{{- c.function.arguments | tojson }}{{- '</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}"
    "{%- for c in m.tool_calls or [] %}{{- '<|python_tag|>' + c.function.name + (c.function.arguments | tojson) }}"
    "{%- endfor %}{{- '<|eot_id|>' }}{%- endfor %}{%- if tools %}{%- for t in tools %}{{- t | tojson }}{%- endfor %}"
    "{%- endif %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{%- if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.role == 'system' %}{{- '[INST] ' + m.content + '\n\n' }}{%- elif m.role == 'tool' %}"
    "{{- '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}{%- elif m.tool_calls %}{{- '[TOOL_CALLS]' }}"
    "{{- m.tool_calls | tojson }}{{- eos_token }}{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)
SPECIALS = {
    "chatml": ["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
    "qwen": ["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
              "<|python_tag|>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
                "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
}  # fmt: skip
WRITTEN = {"qwen": ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]}
TEMPLATES = {"chatml": CHATML, "qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL}


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's control tokens and template; Mistral's writes spaces as SentencePiece does."""
    if family == "mistral":
        letters = [chr(code) for code in range(33, 127)]
        vocabulary = {
            token: i for i, token in enumerate(["▁", *letters, *(f"<0x{byte:02X}>" for byte in range(256)), "▁t"])
        }
        backend = Tokenizer(BPE(vocabulary, [("▁", "t")], byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("t", "h"), ("Ġ", "t"), ("Ċ", "Ċ"), ("|", "i"), ("<", "|")]
        vocabulary = {token: i for i, token in enumerate([*symbols, *("".join(pair) for pair in merges)])}
        backend = Tokenizer(BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS[family])
    backend.add_tokens(WRITTEN.get(family, []))
    bos, eos = SPECIALS[family][:2]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=TEMPLATES[family]
    )


def controls(family: str, ids: list[int]) -> list[str]:
    """The control tokens among the ids, in order."""
    tokenizer = tokenizer_of(family)
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    return [added[token] for token in ids if token in added]
