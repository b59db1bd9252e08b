"""Reward models as reward functions: tokenizes conversations, batches them by length, and scores each."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor, nn
from transformers import PreTrainedModel

from langchain_mara.exceptions import LoadingError, RewardError
from langchain_mara.text.answer_turns import joined
from langchain_mara.text.chat_template import as_messages, is_open
from langchain_mara.untrusted import printable
from langchain_mara_training.data.readers import Message, Prompt
from langchain_mara_training.rewards.calling import TextReward
from langchain_mara_training.rewards.checkpoint_loading import checkpoint_folder, load_tokenizer

# Tokens of the text that proves a model whose positions are computed.
_SHORT = 8

Encoding = dict[str, list[int]]
"""A tokenized text: `input_ids`, and whatever else the model reads for each token, as lists of equal length."""


class RewardModel(TextReward):
    """A reward model with the signature of a reward function.

    A batch holds conversations of similar length, padded on the right and masked. Up to rounding, rewards do not
    depend on the batch. A conversation that is too long for the model loses its beginning (but keeps the
    beginning-of-sequence token), with a warning. So several answers to one prompt still differ in what the model reads.

    Args:
        model_id: Hub id or folder of the checkpoint.
        device: Device of the model, such as `cuda:1` or `cpu`; by default CUDA if available.
        dtype: `torch.bfloat16`, `"float32"`, …; by default the checkpoint's own, but float32 instead of float16 on
            the CPU.
        batch_size: Most conversations in one pass.
        max_length: Most tokens of a conversation; by default the length the model was made for.
        verbose: Whether to show progress on standard error.
        revision: Branch, tag or commit on the hub.
        token: Hub token for gated models.
        local_files_only: Whether to use only files on this machine and never the network.
        options: Further arguments of transformers' `from_pretrained`, such as `quantization_config` or `device_map`.

    Attributes:
        name: Last part of `model_id`, used by `WeightedRewards` as the function's name.

    Raises:
        LoadingError: If the device is unknown, or the model or its tokenizer cannot be loaded.
        CheckpointError: If the checkpoint holds another kind of model.
    """

    model: PreTrainedModel

    def __init__(
        self,
        model_id: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        verbose: bool = False,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> None:
        hub: dict[str, Any] = {"token": token, "local_files_only": local_files_only}
        folder = checkpoint_folder(model_id, revision=revision, **hub)
        self.name = Path(model_id).name
        self.batch_size = batch_size
        self.verbose = verbose
        self.tokenizer = load_tokenizer(folder)
        self._load(folder, hub, device=device, dtype=dtype, **options)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        limits = [max_length or context, self.tokenizer.model_max_length, learned_positions(self.model)]
        self.max_length = int(min(limit for limit in limits if limit is not None))
        self._prove()

    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """The reward of each answer.

        Raises:
            RewardError: If the conversations do not fit the model's template, or a reward is not finite.
        """
        encodings = [self.encode(conversation(*pair)) for pair in pairs]
        too_long = sum(len(encoding["input_ids"]) > self.max_length for encoding in encodings)
        if too_long:
            warnings.warn(
                f"{too_long} of {len(encodings)} conversations are longer than the {self.max_length} tokens that "
                f"{self.name} reads; their beginnings were left out.",
                stacklevel=2,
            )
        return self._scored([self._shortened(encoding) for encoding in encodings])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: scikit-learn's `clone` copies its arguments, and frozen weights need no second copy."""
        return self

    @abstractmethod
    def encode(self, messages: list[Message]) -> Encoding:
        """The tokenized conversation, which ends with the answer; not shortened."""

    @abstractmethod
    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Rewards of a batch.

        Args:
            batch: `input_ids`, `attention_mask` and whatever else the model reads; each (conversations, tokens).

        Returns:
            (conversations,) rewards.
        """

    @abstractmethod
    def _load(self, folder: Path, hub: dict[str, Any], **options: Any) -> None:
        """Sets `model` and whatever else the checkpoint holds.

        Args:
            folder: Folder of the checkpoint.
            hub: `token` and `local_files_only`, for what the checkpoint refers to on the hub.
            options: `device`, `dtype` and further arguments of `from_pretrained`.
        """

    def _prove(self) -> None:
        """Scores a text as long as the model reads; if positions are computed, not learned, a short one will do."""
        length = self.max_length if learned_positions(self.model) is not None else min(self.max_length, _SHORT)
        padding = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        try:
            self._scored([{"input_ids": [1 if padding == 0 else 0] * length}])
        except (IndexError, RuntimeError, ValueError) as error:
            raise LoadingError(
                f"{self.name} fails on a text of {length} tokens: {error}. Give the most tokens that it reads: "
                "max_length=…; if it fails all the same, its configuration does not fit its weights."
            ) from error

    def _shortened(self, encoding: Encoding) -> Encoding:
        ids = encoding["input_ids"]
        if len(ids) <= self.max_length:
            return encoding
        kept = int(ids[0] in {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id})
        return {key: [*row[:kept], *row[len(row) - self.max_length + kept :]] for key, row in encoding.items()}

    @torch.inference_mode()
    def _scored(self, encodings: Sequence[Encoding]) -> list[float]:
        order = sorted(range(len(encodings)), key=lambda number: -len(encodings[number]["input_ids"]))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        rewards = torch.zeros(len(encodings), dtype=torch.float64)
        console = Console(stderr=True)
        for batch in track(
            batches, escape(printable(self.name)), console=console, transient=True, disable=not self.verbose
        ):
            rewards[batch] = self.score(self._padded([encodings[i] for i in batch])).to("cpu", torch.float64)
        if not rewards.isfinite().all():
            raise RewardError(
                f"{self.name} overflows in {self.model.dtype}. Load it with dtype='bfloat16' or 'float32'."
            )
        return rewards.tolist()

    def _padded(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        longest = max(len(encoding["input_ids"]) for encoding in encodings)
        padding = {"input_ids": self._padding(encodings)}
        rows = [{**encoding, "attention_mask": [1] * len(encoding["input_ids"])} for encoding in encodings]
        return {
            key: torch.tensor(
                [row[key] + [padding.get(key, 0)] * (longest - len(row[key])) for row in rows], device=self.model.device
            )
            for key in rows[0]
        }

    def _padding(self, encodings: Sequence[Encoding]) -> int:  # noqa: ARG002 - overridden where the model looks for padding
        """The token to pad with. It is masked, so any token will do."""
        return 0


def learned_positions(model: PreTrainedModel) -> int | None:
    """Most tokens that a table of positions allows; None if there is no such table.

    RoBERTa and its kin number the first token `padding_idx + 1`, so their tables hold more rows than a text may have.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    rows = [table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in tables]
    return min(rows, default=None)


def conversation(prompt: Prompt, completion: Prompt) -> list[Message]:
    """The messages of a prompt and its completion.

    A text is one message: a prompt is the user's, a completion the assistant's. If the prompt ends with a message of
    the assistant, the completion goes on with it.
    """
    question = as_messages(prompt)
    answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    if is_open(question) and answer[0]["role"] == "assistant":
        answer[0] = joined(question.pop(), answer[0])
    return [*question, *answer]
