"""Trains tests/data/parrot and tests/data/agent_parrot: tiny real chat models that know their lessons by heart.

python tests/parrot.py [agents], from the repository's root; a few minutes on one thread. With them tool calls,
structured output, streaming and agents are tested on real models, tokenizers and chat templates, without a download.
"""

import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from agent_lessons import agent_lessons
from parrot_lessons import CALL, CALLED, Lesson, get_weather, lessons, openings
from rich.console import Console
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

__all__ = [
    "AGENT_FOLDER",
    "FOLDER",
    "SURE",
    "Lesson",
    "encode",
    "get_weather",
    "lessons",
    "openings",
    "render",
    "taught_probabilities",
]

FOLDER = Path(__file__).parent / "data" / "parrot"
AGENT_FOLDER = FOLDER.with_name("agent_parrot")
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SURE = 0.99
"""Least probability of a taught token; above the usual `top_p`, so that no position has a second candidate."""

CHAT_TEMPLATE = """\
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if system or tools %}
    {{- '<|im_start|>system\\n' + system }}
    {%- if tools %}
        {{- ('\\n\\n' if system else '') + '<tools>' }}
        {%- for tool in tools %}{{ '\\n' + tool | tojson(separators=(',', ':')) }}{% endfor %}
        {{- '\\n</tools>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (loop.first and system) %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first }}
            {{- '<tool_call>\\n{"name": ' + call.function.name | tojson }}
            {{- ', "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# No piece crosses the places where a forced tool call is opened: before `<`, after `": ` and after `"`.
PIECES = r'": | ?[\p{L}_]+|\p{N}|[^\s\p{L}\p{N}_]+?(?=": )|[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+'

_VOCABULARY = 800
_EPOCHS = 600
_BATCH_TOKENS = 2000
_PEAK_RATE = 4e-3
_WARM_UP_STEPS = 50
_FINAL_FACTOR = 0.02
_CLIP = 1.0
_NOISE = 0.2


class Example(NamedTuple):
    """A lesson in token ids.

    Attributes:
        tools: The part of the prompt that describes the tools; empty where there are none.
        prompt: The rest of it.
        answer: With the end token.
    """

    tools: list[int]
    prompt: list[int]
    answer: list[int]

    @property
    def tokens(self) -> list[int]:
        """The whole text."""
        return [*self.tools, *self.prompt, *self.answer]


class Batch(NamedTuple):
    """Examples of similar length, padded on the right.

    Attributes:
        tokens: (rows, width), long.
        is_answer: (rows, width), bool; True where the model is to learn.
    """

    tokens: Tensor
    is_answer: Tensor


def main(taught: Sequence[Lesson], folder: Path, seed: int = 0) -> None:
    """Trains tokenizer and model and writes them.

    Raises:
        RuntimeError: If what was written is not sure of a lesson.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console()
    tokenizer = train_tokenizer(taught)
    model = LlamaForCausalLM(model_config(tokenizer))
    examples = [encode(tokenizer, lesson) for lesson in taught]
    console.print(
        f"{len(examples)} lessons, at most {max(len(example.tokens) for example in examples)} tokens long; "
        f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters"
    )
    train(model, examples, random.Random(seed), console)
    save(model, tokenizer, folder)
    least = min(min(taught_probabilities(model.float(), example)) for example in examples)
    size = sum(file.stat().st_size for file in folder.iterdir())
    console.print(f"least probability of a taught token {least:.5f}; {size / 1000:,.0f} kB")
    if least < SURE:
        raise RuntimeError(f"The parrot is not sure of a lesson ({least:.3f} < {SURE}). Raise _EPOCHS.")


def render(tokenizer: PreTrainedTokenizerBase, lesson: Lesson) -> str:
    """The prompt of a lesson, ready for the answer."""
    text = tokenizer.apply_chat_template(
        list(lesson.messages), tools=lesson.tools, add_generation_prompt=True, tokenize=False
    )
    return f"{text}{lesson.opening}"


def encode(tokenizer: PreTrainedTokenizerBase, lesson: Lesson) -> Example:
    """Tokens of the lesson's prompt and of its answer, each by itself."""
    prompt, answer = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (render(tokenizer, lesson), lesson.answer + END)
    )
    tools = prompt.index(tokenizer.eos_token_id) if lesson.tools else 0
    return Example(prompt[:tools], prompt[tools:], answer)


def train_tokenizer(taught: Sequence[Lesson]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer fitted to the lessons; the tags of tool calls are tokens, and not special."""
    core = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pieces, symbols])
    core.decoder = decoders.ByteLevel()
    tags = [AddedToken(tag, special=False, normalized=False) for tag in (CALL, CALLED)]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(tags),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(_with_template(core), taught), trainer)
    core.add_tokens(tags)
    return _with_template(core)


def _with_template(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _texts(tokenizer: PreTrainedTokenizerBase, taught: Sequence[Lesson]) -> Iterator[str]:
    """All prompts and answers, cut where a token of its own stands."""
    for lesson in taught:
        text = render(tokenizer, lesson) + lesson.answer
        for token in (START, END, CALL, CALLED):
            text = text.replace(token, PAD)
        yield from filter(None, text.split(PAD))


def model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The architecture: 2 layers of width 96, 4 query heads on 2 key-value heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(model: LlamaForCausalLM, examples: Sequence[Example], rng: random.Random, console: Console) -> None:
    """Goes through the examples `_EPOCHS` times with AdamW, warm-up and a cosine."""
    pad, vocabulary = model.config.pad_token_id, model.config.vocab_size
    epochs = []
    for epoch in range(_EPOCHS):
        # What is blurred at first is learnt exactly in the end.
        rates = (rng.uniform(0, _NOISE * (1 - epoch / _EPOCHS)) for _ in examples)
        noisy = [_noisy(example, rate, vocabulary, rng) for example, rate in zip(examples, rates, strict=True)]
        epochs.append([*_batches(noisy, pad, rng)])
    steps = sum(map(len, epochs))
    optimizer = torch.optim.AdamW(model.parameters(), _PEAK_RATE, (0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps))
    model.train()
    began = time.perf_counter()
    for epoch, batches in enumerate(epochs, 1):
        losses = []
        for batch in batches:
            losses.append(_step(model, batch, optimizer))
            schedule.step()
        if epoch % 50 == 0 or epoch == _EPOCHS:
            seconds = time.perf_counter() - began
            console.print(f"epoch {epoch:3}/{_EPOCHS}  loss {sum(losses) / len(losses):.5f}  {seconds:.0f} s")
    model.eval()


def _noisy(example: Example, rate: float, vocabulary: int, rng: random.Random) -> Example:
    """The example with tools described a little differently, as other versions of LangChain may do."""
    tools = [rng.randrange(vocabulary) if rng.random() < rate / 2 else token for token in example.tools]
    return example._replace(tools=[token for token in tools if rng.random() >= rate / 2])


def _batches(examples: Sequence[Example], pad: int, rng: random.Random) -> Iterator[Batch]:
    groups: list[list[Example]] = [[]]
    for row in sorted(examples, key=lambda one: len(one.tokens) + rng.uniform(0, 40)):
        width = max(len(item.tokens) for item in (*groups[-1], row))
        if width * (len(groups[-1]) + 1) > _BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    return (_padded(group, pad) for group in groups)


def _padded(examples: Sequence[Example], pad: int) -> Batch:
    width = max(len(example.tokens) for example in examples)
    tokens = torch.full((len(examples), width), pad)
    is_answer = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        end = len(example.tokens)
        tokens[row, :end] = torch.tensor(example.tokens)
        is_answer[row, end - len(example.answer) : end] = True
    return Batch(tokens, is_answer)


def _rate_factor(step: int, steps: int) -> float:
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    done = (step - _WARM_UP_STEPS) / max(1, steps - _WARM_UP_STEPS)
    return _FINAL_FACTOR + (1 - _FINAL_FACTOR) * (1 + math.cos(math.pi * done)) / 2


def _step(model: LlamaForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    logits = model(batch.tokens[:, :-1], use_cache=False).logits
    is_answer = batch.is_answer[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[is_answer], batch.tokens[:, 1:][is_answer])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def taught_probabilities(model: PreTrainedModel, example: Example) -> list[float]:
    """The probability of each token of the answer, given those before it."""
    tokens = torch.tensor([example.tokens])
    probabilities = model(tokens, use_cache=False).logits[0, -len(example.answer) - 1 : -1].float().softmax(-1)
    found: list[float] = probabilities.gather(1, torch.tensor(example.answer)[:, None])[:, 0].tolist()
    return found


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes model (float16), tokenizer and generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, torch.float16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    main(*((agent_lessons(), AGENT_FOLDER) if "agents" in sys.argv else (lessons(), FOLDER)))
