"""Trains the bundled policy model, a Llama of about two million parameters, and its tokenizer."""

import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_mara_training.demo.dialogues import Document, documents
from langchain_mara_training.demo.train_tokenizer import END, PAD, ROLES, train_tokenizer

_DOCUMENTS = 95_000
_CHUNK_DOCUMENTS = 4096
_BATCH_TOKENS = 1536
_PEAK_RATE = 2.5e-3
_WARM_UP_STEPS = 100
_FINAL_FACTOR = 0.02
_WEIGHT_DECAY = 0.05
_CLIP = 1.0
_PROMPT_WEIGHT = 0.1


class Batch(NamedTuple):
    """Documents of similar length, padded on the right.

    Attributes:
        tokens: (rows, width) int64 token ids.
        weights: (rows, width) float32 weight of each token's loss, 0 for padding.
    """

    tokens: Tensor
    weights: Tensor


def build_model(folder: Path, seed: int, count: int = _DOCUMENTS) -> float:
    """Trains tokenizer and policy model, and saves both.

    Args:
        folder: Folder for the files; it is created if missing.
        seed: Seed of the corpus, the initial weights and the order of the documents.
        count: Number of training documents.

    Returns:
        Mean loss over the last hundred steps.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    batches = make_batches(tokenizer, seed, count)
    model = LlamaForCausalLM(model_config(tokenizer))
    loss = train(model, batches)
    save(model, tokenizer, folder)
    return loss


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The architecture: 4 layers of width 192, 6 query heads and 2 key-value heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_batches(tokenizer: PreTrainedTokenizerFast, seed: int, count: int) -> list[Batch]:
    """The whole training stream as batches of about 1,500 tokens, in training order.

    Args:
        tokenizer: Tokenizer of the model.
        seed: Seed of the documents and of their order.
        count: Number of documents.
    """
    rng = random.Random(seed)
    stream = documents(seed, count)
    ids = tokenizer.get_vocab()
    batches: list[Batch] = []
    while chunk := list(islice(stream, _CHUNK_DOCUMENTS)):
        rows = sorted((_weighted_tokens(tokenizer, ids, document) for document in chunk), key=lambda row: len(row[0]))
        chunk_batches = list(_bucketed(rows, ids[PAD]))
        rng.shuffle(chunk_batches)
        batches += chunk_batches
    return batches


def _weighted_tokens(
    tokenizer: PreTrainedTokenizerFast, ids: dict[str, int], document: Document
) -> tuple[list[int], list[float]]:
    if not document.messages:
        tokens = [*tokenizer.encode(document.text), ids[END]]
        return tokens, [1.0] * len(tokens)
    text = tokenizer.apply_chat_template(document.messages, tokenize=False)
    tokens = tokenizer.encode(str(text), add_special_tokens=False)
    roles = [ids[role] for role in ROLES]
    weights, weight = [], _PROMPT_WEIGHT
    for token in tokens:
        weights.append(weight)
        if token in roles:
            weight = 1.0 if token == roles[-1] else _PROMPT_WEIGHT
    return tokens, weights


def _bucketed(rows: list[tuple[list[int], list[float]]], pad: int) -> Iterator[Batch]:
    start = 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * len(rows[stop][0]) <= _BATCH_TOKENS:
            stop += 1
        width = len(rows[stop - 1][0])
        tokens = [row + [pad] * (width - len(row)) for row, _ in rows[start:stop]]
        weights = [row + [0.0] * (width - len(row)) for _, row in rows[start:stop]]
        yield Batch(torch.tensor(tokens), torch.tensor(weights))
        start = stop


def train(model: LlamaForCausalLM, batches: list[Batch]) -> float:
    """Trains a model on each batch once, with AdamW, a warm-up and a cosine schedule.

    Args:
        model: Model to train, in place.
        batches: Batches in training order.

    Returns:
        Mean loss over the last hundred steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), _PEAK_RATE, (0.9, 0.98), weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, len(batches)))
    model.train()
    losses: list[float] = []
    with _progress() as progress:
        bar = progress.add_task("training", total=len(batches), loss=0.0, speed=0.0)
        for batch in batches:
            began = time.perf_counter()
            losses.append(_step(model, batch, optimizer))
            schedule.step()
            speed = batch.tokens.numel() / (time.perf_counter() - began)
            progress.update(bar, advance=1, loss=_mean(losses[-100:]), speed=speed)
    return _mean(losses[-100:])


def _rate_factor(step: int, steps: int) -> float:
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    done = (step - _WARM_UP_STEPS) / max(1, steps - _WARM_UP_STEPS)
    return _FINAL_FACTOR + (1 - _FINAL_FACTOR) * (1 + math.cos(math.pi * done)) / 2


def _step(model: LlamaForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    logits = model(batch.tokens[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    loss = (losses * weights).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()
    return float(loss.detach())


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes model (float16 safetensors), tokenizer and generation settings to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, torch.float16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
