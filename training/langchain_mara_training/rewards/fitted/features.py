"""Features of an answer in its conversation, from a frozen model: a policy model's states or sentence embeddings."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from langchain_mara import MaraLLM
from langchain_mara.exceptions import LoadingError, PromptError, RewardError
from langchain_mara.policy.verification import policy_of
from langchain_mara.text.answer_turns import encode_turns
from langchain_mara.text.chat_template import as_messages, encode_prompt, eos_token_ids
from langchain_mara.text.own_tokenizer import encode
from langchain_mara_training.data.readers import Prompt, answer_text
from langchain_mara_training.generation.states import batch_states
from langchain_mara_training.rewards.checkpoint_loading import checkpoint_folder, load_tokenizer, load_weights
from langchain_mara_training.rewards.reward_model import learned_positions
from langchain_mara_training.storage.identity.content_digest import digest
from langchain_mara_training.storage.identity.job_identity import describe_policy
from langchain_mara_training.storage.records import Config

Array = NDArray[np.float64]
Encoder = Callable[[list[str]], Any]
"""A function from n texts to their (n, f) embeddings."""

_BATCH = 16


class Features(ABC):
    """Features of answers; the more alike two answers, the more alike their features."""

    @abstractmethod
    def of(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> Array:
        """(n, f) features of n pairs of a prompt and its answer.

        Raises:
            RewardError: If a conversation cannot be read.
        """

    @abstractmethod
    def describe(self) -> Config:
        """What the features depend on, as plain values.

        Raises:
            TypeError: If that cannot be read.
        """


def features_of(model: Any, batch_tokens: int) -> Features:
    """The features that a model gives.

    Args:
        model: A `MaraLLM`; the folder or hub id of a transformers encoder; a function from texts to
            embeddings, or an object with such a method `encode`.
        batch_tokens: Most tokens of a pass of a policy model, including padding.

    Raises:
        RewardError: If it is none of these.
        LoadingError: If the encoder cannot be loaded.
    """
    if isinstance(model, MaraLLM):
        return PolicyStates(model, batch_tokens)
    if isinstance(model, str | Path):
        return SentenceEmbeddings(SentenceEncoder(model))
    encode = getattr(model, "encode", model)
    if not callable(encode):
        raise RewardError(
            f"A StateReward reads the states of a MaraLLM or sentence embeddings, not a {type(model).__name__}. Give a "
            "MaraLLM, the folder of an encoder, or a function from texts to embeddings."
        )
    return SentenceEmbeddings(encode)


class _Tokens(NamedTuple):
    token_ids: list[int]
    start: int


class PolicyStates(Features):
    """States of a policy model: the mean over the answer's tokens, and that of the token that ends it.

    The conversation is rendered by the model's chat template, as in decoding and labeling, so that the states of the
    answer have seen all of its prompt. One that is too long for the model loses its beginning, with a warning.

    Args:
        llm: Policy model with its chat template; its agent has no part in this.
        batch_tokens: Most tokens of a pass, including padding.
    """

    def __init__(self, llm: MaraLLM, batch_tokens: int) -> None:
        self.llm = llm
        self.batch_tokens = batch_tokens
        self._policy = policy_of(llm.model)

    def of(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> Array:
        """(n, 2 d) features of n pairs of a prompt and its answer; see the class."""
        conversations = [self._tokens(*pair) for pair in pairs]
        context = self._policy.context
        if context is not None:
            too_long = sum(len(conversation.token_ids) > context for conversation in conversations)
            if too_long:
                warnings.warn(
                    f"{too_long} of {len(conversations)} conversations are longer than the {context} tokens that the "
                    "model holds; their beginnings were left out.",
                    stacklevel=2,
                )
            conversations = [_shortened(conversation, context) for conversation in conversations]
        features = np.zeros((len(conversations), 2 * self._policy.hidden_size))
        for batch in self._batches(conversations):
            features[batch] = self._pass([conversations[i] for i in batch])
        return features

    def describe(self) -> Config:
        """Weights, tokenizer, template and system prompt of the policy model."""
        return describe_policy(self.llm)

    @torch.inference_mode()
    def _pass(self, conversations: Sequence[_Tokens]) -> Array:
        states = batch_states(self._policy, [conversation.token_ids for conversation in conversations])
        rows = []
        for row, (ids, start) in zip(states, conversations, strict=True):
            answer = row[start : len(ids)].float()
            rows.append(torch.cat([answer.mean(0), answer[-1]]))
        return torch.stack(rows).double().cpu().numpy()

    def _batches(self, conversations: Sequence[_Tokens]) -> Iterator[list[int]]:
        """Numbers of conversations of similar length, so that there is little padding."""
        batch: list[int] = []
        for number in sorted(range(len(conversations)), key=lambda i: len(conversations[i].token_ids)):
            if batch and (len(batch) + 1) * len(conversations[number].token_ids) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _tokens(self, prompt: Prompt, answer: Prompt) -> _Tokens:
        llm = self.llm
        special = llm.special_tokens_in_messages
        try:
            ids = encode_prompt(
                llm.tokenizer,
                prompt,
                use_chat_template=bool(llm.use_chat_template),
                system_prompt=llm.system_prompt,
                special_tokens_in_messages=special,
            )
            if not llm.use_chat_template:
                own = encode(llm.tokenizer, answer_text(answer))
                end = llm.tokenizer.eos_token_id
                return _Tokens([*ids, *own, *([] if end is None else [end])], len(ids))
            messages = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
            turns = encode_turns(
                llm.tokenizer,
                as_messages(prompt, llm.system_prompt),
                messages,
                eos_token_ids(llm.model, llm.tokenizer),
                special_tokens_in_messages=special,
            )
        except PromptError as error:
            raise RewardError(f"The answer {str(answer)[:60]!r} cannot be scored: {error}") from None
        return _Tokens([*ids, *(token for turn in turns for token in turn.token_ids)], len(ids))


class SentenceEmbeddings(Features):
    """Embeddings of the answer by itself, and of the last message together with the answer.

    Args:
        encode: Function from texts to embeddings.
    """

    def __init__(self, encode: Encoder) -> None:
        self.encode = encode

    def of(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> Array:
        """(n, 2 f) features of n pairs of a prompt and its answer; see the class."""
        answers = [answer_text(answer) for _, answer in pairs]
        exchanges = [f"{_last_text(prompt)}\n\n{text}" for (prompt, _), text in zip(pairs, answers, strict=True)]
        embeddings = np.asarray(_plain(self.encode([*answers, *exchanges])), dtype=np.float64)
        if embeddings.ndim != 2 or len(embeddings) != 2 * len(pairs):  # noqa: PLR2004 - a table has two dimensions
            raise RewardError(
                f"The encoder returned an array of shape {embeddings.shape} for {2 * len(pairs)} texts. Return one row "
                "for each text, all of the same length."
            )
        return np.concatenate(np.split(embeddings, 2), axis=1)

    def describe(self) -> Config:
        """A digest of the encoder."""
        return {"encoder": digest(self.encode)}


class SentenceEncoder:
    """A transformers encoder as a function from texts to embeddings: the mean of the last states, of length 1.

    A text that is too long for the model loses its beginning.

    Args:
        model_id: Hub id or folder of the encoder.
        device: Device of the encoder; by default CUDA if available.

    Raises:
        LoadingError: If the encoder cannot be loaded.
        CheckpointError: If weights are missing.
    """

    def __init__(self, model_id: str | Path, device: str | torch.device | None = None) -> None:
        folder = checkpoint_folder(model_id)
        self.tokenizer = load_tokenizer(folder)
        self.model, _ = load_weights(AutoModel, folder, device=device, may_lack=_POOLERS)
        limits = [self.tokenizer.model_max_length, learned_positions(self.model)]
        self.max_length = min(limit for limit in limits if limit is not None)
        if self.tokenizer.pad_token is None:
            raise LoadingError(
                f"The tokenizer of {model_id} has no padding token. Give a model of sentence embeddings."
            )

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> Array:
        """(n, f) embeddings of n texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        embeddings = np.zeros((len(texts), self.model.config.hidden_size))
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            embeddings[batch] = self._pass([texts[i] for i in batch]).double().cpu().numpy()
        return embeddings

    def _pass(self, texts: list[str]) -> Tensor:
        self.tokenizer.truncation_side = "left"
        encoding = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt",
            split_special_tokens=True,
        ).to(self.model.device)  # fmt: skip
        states: Tensor = self.model(**encoding).last_hidden_state
        mask = encoding["attention_mask"][..., None]
        return normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


# An encoder of sentences is often saved without the part that classifies pairs of them.
_POOLERS = {"pooler.dense.weight", "pooler.dense.bias"}


def _shortened(conversation: _Tokens, context: int) -> _Tokens:
    cut = max(0, len(conversation.token_ids) - context)
    return _Tokens(conversation.token_ids[cut:], max(0, conversation.start - cut))


def _last_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"] or "")


def _plain(embeddings: Any) -> Any:
    return embeddings.detach().cpu().numpy() if isinstance(embeddings, Tensor) else embeddings
