"""Reward models as reward functions: conversations become tokens, batches by length, and a reward each."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from langchain_mara.exceptions import RewardError
from langchain_mara_training.data.readers import Message, Prompt
from langchain_mara_training.rewards.calling import TextReward
from langchain_mara_training.rewards.checkpoint_loading import checkpoint_folder, load_tokenizer

Encoding = dict[str, list[int]]
"""What a tokenizer gives for one text: `input_ids`, and what else the model reads for each token."""


class RewardModel(TextReward):
    """A reward model with the signature of a reward function.

    A batch holds conversations of similar length, padded on the right and masked; the rewards are those of one by
    one, up to rounding. A conversation longer than the model reads loses its beginning (not the token that begins the
    sequence), with a warning: of several answers to one prompt the ends still differ.

    Args:
        model_id: Hub id or folder of the checkpoint.
        device: Such as `cuda:1` or `cpu`; by default CUDA where there is one.
        dtype: `torch.bfloat16`, `"float32"`, …; by default the checkpoint's own, but float32 in place of float16 on
            the CPU.
        batch_size: Most conversations in one pass.
        max_length: Most tokens of a conversation; by default what the model was made for.
        verbose: Whether to show progress on standard error.
        revision: Branch, tag or commit on the hub.
        token: Hub token for gated models.
        local_files_only: Never touch the network.
        options: Further arguments of transformers' `from_pretrained`, such as `quantization_config` or `device_map`.

    Attributes:
        name: Last part of `model_id`; `WeightedRewards` names the function so.

    Raises:
        LoadingError: If the device is unknown, or model or tokenizer cannot be loaded.
        CheckpointError: If the checkpoint does not hold such a reward model.
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
        folder = checkpoint_folder(model_id, revision=revision, token=token, local_files_only=local_files_only)
        self.name = Path(model_id).name
        self.batch_size = batch_size
        self.verbose = verbose
        self.tokenizer = load_tokenizer(folder)
        self._load(folder, device=device, dtype=dtype, **options)
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        limits = [max_length or longest, self.tokenizer.model_max_length]
        self.max_length = int(min(limit for limit in limits if limit is not None))

    def rewards(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[float]:
        """The reward of each answer.

        Raises:
            RewardError: If the conversations do not fit the model's template, or a reward is not finite.
        """
        encodings = [self.encode(conversation(*pair)) for pair in pairs]
        cut = sum(len(one["input_ids"]) > self.max_length for one in encodings)
        if cut:
            warnings.warn(
                f"{cut} of {len(encodings)} conversations are longer than the {self.max_length} tokens that "
                f"{self.name} reads; their beginnings were left out.",
                stacklevel=2,
            )
        return self._scored([self._shortened(one) for one in encodings])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: scikit-learn's clone copies what it is given, and frozen weights need no second copy."""
        return self

    @abstractmethod
    def encode(self, messages: list[Message]) -> Encoding:
        """Tokens of a conversation that ends with the answer, not shortened."""

    @abstractmethod
    def score(self, batch: dict[str, Tensor]) -> Tensor:
        """Rewards (rows,) of a batch: `input_ids`, `attention_mask` and others, (rows, tokens) each."""

    @abstractmethod
    def _load(self, folder: Path, **options: Any) -> None:
        """Sets `model`, and whatever else is in the checkpoint."""

    def _shortened(self, encoding: Encoding) -> Encoding:
        ids = encoding["input_ids"]
        if len(ids) <= self.max_length:
            return encoding
        kept = int(ids[0] in {self.tokenizer.bos_token_id, self.tokenizer.cls_token_id})
        return {key: [*row[:kept], *row[len(row) - self.max_length + kept :]] for key, row in encoding.items()}

    @torch.inference_mode()
    def _scored(self, encodings: Sequence[Encoding]) -> list[float]:
        order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]["input_ids"]))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        rewards = torch.zeros(len(encodings), dtype=torch.float64)
        console = Console(stderr=True)
        for rows in track(batches, self.name, console=console, transient=True, disable=not self.verbose):
            rewards[rows] = self.score(self._padded([encodings[i] for i in rows])).to("cpu", torch.float64)
        if not rewards.isfinite().all():
            raise RewardError(
                f"{self.name} overflows in {self.model.dtype}. Load it with dtype='bfloat16' or 'float32'."
            )
        return rewards.tolist()

    def _padded(self, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
        width = max(len(one["input_ids"]) for one in encodings)
        filler = {"input_ids": self._padding(encodings)}
        rows = [{**one, "attention_mask": [1] * len(one["input_ids"])} for one in encodings]
        return {
            key: torch.tensor(
                [row[key] + [filler.get(key, 0)] * (width - len(row[key])) for row in rows], device=self.model.device
            )
            for key in rows[0]
        }

    def _padding(self, encodings: Sequence[Encoding]) -> int:  # noqa: ARG002 - where the model looks for it
        """The token to pad with; masked, so any will do."""
        return 0


def conversation(prompt: Prompt, completion: Prompt) -> list[Message]:
    """The messages of a prompt and its answer; a text is a user's, or the assistant's."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    answered = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    return [*asked, *answered]
