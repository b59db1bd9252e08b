"""Token-level labels from preferences: tokens of the chosen answer accept, those of the rejected one reject.

See docs/algorithm.md, "Labels for single tokens". Labels from rollouts are in `rollout.py`.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from langchain_mara import MaraLLM
from langchain_mara.agents.base import Judges
from langchain_mara.decoding.candidates import candidate_sets
from langchain_mara.exceptions import DataError, OptionsError
from langchain_mara.policy.verification import policy_of
from langchain_mara_training.data.readers import Groups, iterate_feedback
from langchain_mara_training.data.row_report import RowReport, placed
from langchain_mara_training.data.sources import OpenedSource, Source
from langchain_mara_training.engines.blocks import Engine, InProcess
from langchain_mara_training.generation.prompts import check_too_long
from langchain_mara_training.generation.states import batch_states, check_judges, features_before
from langchain_mara_training.labeling.answer_store import AnswerStore
from langchain_mara_training.labeling.answer_tokens import LabeledAnswer, labeled_answers
from langchain_mara_training.labeling.shards import label_shards
from langchain_mara_training.labeling.token_labels import NO_PAIR, LabeledTokens, TokenLabels
from langchain_mara_training.storage.callbacks import JobCallback
from langchain_mara_training.storage.defaults import OnBadRow, TooLong
from langchain_mara_training.storage.identity.job_identity import describe_policy

Weighting = Literal["token", "answer"]

_LOGITS_AT_ONCE = 1024


class PreferenceLabeler:
    """Labels tokens by preference pairs, ranked lists, or thumbs.

    After the prefix that both answers of a pair share, the assistant's tokens in `chosen` are labeled accept and those
    in `rejected` reject, each turn with the token that ends it. An answer with a thumb is labeled
    whole. The features are the states that these tokens produce, as in decoding.

    Args:
        llm: Policy model with its chat template and candidate sets (`top_k`, `top_p`).
        judges: What the agent to fit judges by. `after`: the features are the states that the tokens produce. `before`:
            they are `look_ahead_features`: state before the token, its output embedding, its log-probability, entropy.
        candidate_filter: Whether to keep only tokens in a candidate set of at least two. The agent is never asked
            about any others.
        weighting: What has equal weight: every `token` or every `answer`.
        decay: Factor of the weight per token after the first difference, in (0, 1].
        too_long: What happens to a prompt that leaves no room for an answer: `error`, `skip`, or `truncate-left`, which
            cuts a prompt until its answers fit, but not below half of the context.
        on_bad_row: What happens to a row that cannot be used: `error`, or `skip`, which counts it.
        batch_tokens: Most tokens of a pass, including padding.
        shard_tokens: Approximate number of labeled tokens in a shard. An interruption loses at most one shard's work.
        random_state: Seed of the order of pairs and rows.

    Attributes:
        report_: What became of the rows of the last call: a `RowReport`.

    Raises:
        OptionsError: If an option is out of range.

    Example:
        >>> X, y, weight, groups = PreferenceLabeler(llm).label(pairs)
    """

    def __init__(
        self,
        llm: MaraLLM,
        *,
        judges: Judges = "after",
        candidate_filter: bool = True,
        weighting: Weighting = "token",
        decay: float = 1.0,
        too_long: TooLong = "error",
        on_bad_row: OnBadRow = "error",
        batch_tokens: int = 4096,
        shard_tokens: int = 16384,
        random_state: int = 0,
    ) -> None:
        if weighting not in ("token", "answer") or not 0 < decay <= 1 or min(batch_tokens, shard_tokens) < 1:
            raise OptionsError(
                f"Invalid options: weighting={weighting!r} (token or answer), decay={decay} (above 0, at most 1), "
                f"batch_tokens={batch_tokens}, shard_tokens={shard_tokens} (at least 1)."
            )
        check_too_long(too_long)
        check_judges(judges)
        self.report_ = RowReport(on_bad_row)
        self.llm = llm
        self.candidate_filter = candidate_filter
        self.weighting = weighting
        self.decay = decay
        self.too_long = too_long
        self.on_bad_row = on_bad_row
        self.batch_tokens = batch_tokens
        self.shard_tokens = shard_tokens
        self.random_state = random_state
        self.judges = judges
        self._policy = policy_of(llm.model)

    def label(
        self,
        pairs: Source | AnswerStore,
        output: str | Path | None = None,
        *,
        callbacks: JobCallback | Sequence[JobCallback] = (),
        engine: Engine | None = None,
    ) -> TokenLabels:
        """Labels the tokens of preference pairs, ranked lists or unpaired feedback.

        Args:
            pairs: Rows with `prompt`, `chosen` and `rejected` (texts or messages), with `responses` and their `scores`
                or `ranks`, or with `prompt`, `completion` and `label`; any other source that `iterate_feedback` reads;
                or what `read` returned. A column `weight` multiplies a row's weights, and a column `group` replaces
                the prompt's number.
            output: Folder of the shards. You need it for labels larger than memory, to resume, and for several
                processes; by default the labels stay in memory.
            callbacks: One or several `JobCallback`s: a step is a shard, and so is a checkpoint if there is an `output`.
                If one stops the job, you get the labels of the shards so far, and the folder can resume.
            engine: What computes the shards: `RayData` with labelers like this one; by default this process.

        Raises:
            DataError: If a row cannot be used, a prompt is too long, or no token gets a label.
            TrainingError: If the folder holds other labels.
        """
        answers = pairs if isinstance(pairs, AnswerStore) else self.read(pairs)
        jobs = list(self._jobs(answers))
        return label_shards(
            jobs,
            lambda job: [answers[number] for number in job],
            engine or InProcess(self),
            sizes=[sum(answers.length(number) for number in job) for job in jobs],
            identity=lambda: self._identity(answers),
            output=output,
            seed=self.random_state,
            description="labeling",
            callbacks=callbacks,
        )

    def read(self, pairs: Source) -> AnswerStore:
        """Reads and judges all rows, which may be more than memory holds. Nothing is labeled yet.

        Args:
            pairs: See `label`.

        Raises:
            DataError: If a row cannot be used, a prompt is too long, or no answer has tokens to label.
        """
        self.report_ = report = pairs.report if isinstance(pairs, OpenedSource) else RowReport(self.on_bad_row)
        answers, groups = AnswerStore(), Groups()
        for pair, numbered in enumerate(iterate_feedback(pairs, report=report)):
            group = groups.of(numbered)
            try:
                labeled = labeled_answers(self.llm, numbered.row, group, self._policy.context, self.too_long, report)
            except DataError as error:
                report.refuse(placed(error, numbered.where))
                continue
            for answer in labeled:
                answers.add(answer._replace(pair=pair) if "chosen" in numbered.row else answer)
        if not len(answers):
            raise DataError(_nothing(report))
        return answers

    def _jobs(self, answers: AnswerStore) -> Iterator[list[int]]:
        """Numbers of the answers in random order, divided into shards."""
        generator = torch.Generator().manual_seed(self.random_state)
        job: list[int] = []
        tokens = 0
        for number in torch.randperm(len(answers), generator=generator).tolist():
            job.append(number)
            tokens += answers.owned(number)
            if tokens >= self.shard_tokens:
                yield job
                job, tokens = [], 0
        if job:
            yield job

    @torch.inference_mode()
    def compute(self, job: Sequence[LabeledAnswer]) -> LabeledTokens:
        """Labels the tokens of some answers.

        Args:
            job: The answers of a shard.
        """
        parts = [self._label_batch(batch) for batch in self._batches(job)]
        shard = LabeledTokens.join(parts)
        finite = shard.states.isfinite().all(-1)
        if not finite.all():
            warnings.warn(f"{int((~finite).sum())} tokens with non-finite states were left out.", stacklevel=2)
            shard = shard.where(finite)
        return shard

    def _batches(self, job: Sequence[LabeledAnswer]) -> Iterator[list[LabeledAnswer]]:
        """Batches of answers of similar length, so that there is little padding."""
        batch: list[LabeledAnswer] = []
        for answer in sorted(job, key=lambda labeled_answer: len(labeled_answer.token_ids)):
            if batch and (len(batch) + 1) * len(answer.token_ids) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(answer)
        yield batch

    def _label_batch(self, batch: Sequence[LabeledAnswer]) -> LabeledTokens:
        hidden = batch_states(self._policy, [answer.token_ids for answer in batch])
        starts = torch.tensor([answer.start for answer in batch])
        lengths = torch.tensor([len(answer.token_ids) for answer in batch]) - starts
        row = torch.repeat_interleave(torch.arange(len(batch)), lengths)
        position = torch.cat([torch.arange(answer.start, len(answer.token_ids)) for answer in batch])
        token_ids = torch.tensor([token for answer in batch for token in answer.token_ids[answer.start :]])
        on_device = row.to(hidden.device), position.to(hidden.device)
        # A token is a candidate of the position before it.
        before = hidden[on_device[0], on_device[1] - 1]
        ranks, counts = self._ranks(before, token_ids)
        judged = hidden[on_device]
        if self.judges == "before":
            judged = features_before(self._policy, before, token_ids[:, None])[:, 0]
        labeled = LabeledTokens(
            states=judged.to("cpu", torch.float16),
            labels=torch.tensor([answer.label for answer in batch], dtype=torch.int8)[row],
            weights=self._weights(batch)[row] * self.decay ** (position - starts[row]),
            groups=torch.tensor([answer.group for answer in batch], dtype=torch.int64)[row],
            token_ids=token_ids.int(),
            positions=position.int(),
            ranks=ranks.short(),
            pairs=(numbers := torch.tensor([answer.pair for answer in batch], dtype=torch.int32))[row],
            offsets=torch.where(numbers[row] == NO_PAIR, NO_PAIR, position - starts[row]).int(),
        )
        is_own = torch.tensor([own for answer in batch for own in answer.is_own])
        return labeled.where(is_own & (ranks >= 0) & (counts > 1) if self.candidate_filter else is_own)

    def _weights(self, batch: Sequence[LabeledAnswer]) -> Tensor:
        """(answers,) float32 weights of the first labeled token of each answer."""
        shares = [1.0 if self.weighting == "token" else 1 / sum(answer.is_own) for answer in batch]
        return torch.tensor([share * answer.weight for share, answer in zip(shares, batch, strict=True)])

    def _ranks(self, states: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks of tokens in their candidate sets, and the sizes of these sets.

        Args:
            states: (n, d) states that the candidate sets follow.
            token_ids: (n,) token ids.

        Returns:
            (n,) ranks by probability, -1 outside the set; and (n,) sizes. Both are on the CPU.
        """
        ranks, counts = [], []
        for chunk, tokens in zip(states.split(_LOGITS_AT_ONCE), token_ids.split(_LOGITS_AT_ONCE), strict=True):
            sets = candidate_sets(self._policy.logits(chunk), self.llm.top_k, self.llm.top_p)
            inside = torch.arange(sets.token_ids.shape[1], device=sets.counts.device) < sets.counts[:, None]
            is_token = (sets.token_ids == tokens.to(sets.token_ids.device)[:, None]) & inside
            ranks.append(torch.where(is_token.any(-1), is_token.int().argmax(-1), -1).cpu())
            counts.append(sets.counts.cpu())
        return torch.cat(ranks), torch.cat(counts)

    def _identity(self, answers: AnswerStore) -> dict[str, object]:
        return {
            "labeler": "preference",
            "policy": describe_policy(self.llm, "top_k", "top_p"),
            "data": answers.digest(),
            "options": {
                name: getattr(self, name)
                for name in ("candidate_filter", "weighting", "decay", "batch_tokens", "shard_tokens")
            },
            **({} if self.judges == "after" else {"judges": self.judges}),
        }


def _nothing(report: RowReport) -> str:
    """Why no answer has tokens to label."""
    if set(report.counts()) <= {"rows", "equal answers"}:
        return "In every pair, chosen and rejected have the same tokens. Give answers that differ."
    return f"No row has tokens to label. {report}"
