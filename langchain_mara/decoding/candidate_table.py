"""The candidate sets of all running sequences in one table, cut from logits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from langchain_mara.decoding.candidates import CandidateSets
from langchain_mara.decoding.cutting.lines import Lines, ReadLines, joined
from langchain_mara.decoding.cutting.processing import Fail, PendingPosition, cut_alike
from langchain_mara.decoding.judging.before import Outlook, choose_before, judge_before
from langchain_mara.decoding.recovery import attempt, refuse_to_part, to_host
from langchain_mara.decoding.sequence import SequenceState
from langchain_mara.policy.contract import Policy


class CandidateTable:
    """One line per candidate set: first those of the sequences' own positions, then those of drafted positions.

    Lines are read to the host once, when they are first asked for.

    Args:
        policy: The policy model.
        fail: See `Fail`.

    Attributes:
        lines: The candidate sets.
    """

    def __init__(self, policy: Policy, fail: Fail) -> None:
        no_scores, no_counts = torch.zeros((0, 0)).to(policy.device), torch.zeros(0, dtype=torch.long).to(policy.device)
        self.lines = Lines(no_scores.long(), no_scores, no_counts)
        self._host: ReadLines | None = None
        self._scores_are_read = False
        self._policy = policy
        self._fail = fail

    def __len__(self) -> int:
        return self.lines.counts.shape[0]

    def read(self, *others: Tensor) -> tuple[ReadLines, list[Any]]:
        """The lines on the host, and other tensors as lists, by one synchronization."""
        if self._host is not None:
            return self._host, to_host(*others)
        token_ids, scores, counts, accept, asks = self.lines
        lists = to_host(token_ids, scores if self._scores_are_read else None, counts, accept, asks, *others)
        self._host = ReadLines(*lists[: len(self.lines)])
        return self._host, lists[len(self.lines) :]

    def sizes(self) -> list[int]:
        """Sizes of the sets, or what none exceeds where reading them would make a GPU wait."""
        if self._host is None and self.lines.counts.device.type != "cpu":
            return [self.lines.token_ids.shape[1]] * len(self)
        return self.read()[0].counts

    def tokens(self, firsts: Sequence[int], width: int) -> Tensor:
        """(lines, width) int64 candidates of the first lines, from column `firsts` of each on.

        Past the end of a set its last column is repeated; nobody looks there.
        """
        token_ids = self.lines.token_ids[: len(firsts)]
        last = token_ids.shape[1] - 1
        if width <= last + 1 and not any(firsts):
            return token_ids[:, :width]
        columns = [[min(first + i, last) for i in range(width)] for first in firsts]
        return token_ids.gather(1, torch.tensor(columns).to(token_ids.device))

    def cut(self, positions: Sequence[PendingPosition], states: Tensor) -> None:
        """Cuts candidate sets; fewer at a time where logits take too much memory.

        Args:
            positions: Positions to cut for; the table grows as needed.
            states: (len(positions), d), state before each position.

        Raises:
            torch.OutOfMemoryError: If there is not even enough memory for one position.
        """
        error = attempt(partial(self._cut, positions, states))
        if error is None:
            return
        half = len(positions) // 2
        if isinstance(error, torch.OutOfMemoryError):
            refuse_to_part([position.sequence.request for position in positions], error)
        if not half or not isinstance(error, torch.OutOfMemoryError):
            raise error
        self.cut(positions[:half], states[:half])
        self.cut(positions[half:], states[half:])

    def _cut(self, positions: Sequence[PendingPosition], states: Tensor) -> None:
        logits = self._policy.logits(states)
        sequences = [position.sequence for position in positions]
        ahead = any(sequence.looks_ahead for sequence in sequences)
        # What is edited must be read before. Otherwise it is read only if anybody asks, which one candidate spares.
        early = Outlook.of(states, _kept(sequences, logits)) if ahead and any(map(_edits, sequences)) else None
        alike: dict[tuple[object, ...], list[int]] = {}
        for i, position in enumerate(positions):
            alike.setdefault(position.sequence.cut_like, []).append(i)
        parts = [
            cut_alike([positions[i] for i in rows], logits if len(alike) == 1 else logits[rows], self._fail)
            for rows in alike.values()
        ]
        sets = joined(parts, [*alike.values()])
        if sets.counts.device != self._policy.device:  # a model on several devices has its head where it likes
            sets = CandidateSets(*(each.to(self._policy.device) for each in sets))
        asked = self._judge(sequences, lambda: early or Outlook.of(states, logits), sets) if ahead else (None, None)
        self._scores_are_read |= any(sequence.reads_scores for sequence in sequences)
        self.lines = self.lines.replaced([position.line for position in positions], Lines(*sets, *asked))
        self._host = None

    def _judge(
        self, sequences: Sequence[SequenceState], outlook_of: Callable[[], Outlook], sets: CandidateSets
    ) -> tuple[Tensor | None, Tensor | None]:
        """Asks the agents that judge before of whole candidate sets; keeps what is known of positions at hand.

        Args:
            sequences: Sequence of each position.
            outlook_of: Gives what is known of the positions.
            sets: Their candidate sets.

        Returns:
            Fields `accept` and `asks` of the lines.
        """
        # Looking at what a GPU has computed would make it wait, which costs more there than asking for nothing.
        chosen_among = [2] * len(sequences) if sets.counts.is_cuda else sets.counts.tolist()
        heard = [sequence.judged_before and count > 1 for sequence, count in zip(sequences, chosen_among, strict=True)]
        thresholds = [sequence.gate.threshold for sequence in sequences]
        gated, kept = thresholds != [None] * len(sequences), any(each.request.keep_states for each in sequences)
        if not (gated or kept or any(heard)):
            return None, None
        outlook, asks = outlook_of(), None
        for i, sequence in enumerate(sequences):
            sequence.at_hand = outlook.at_hand(i, sets.token_ids[i]) if sequence.request.keep_states else None
        if gated:
            least = [-torch.inf if threshold is None else threshold for threshold in thresholds]
            asks = outlook.entropies > torch.tensor(least).to(outlook.entropies)
            if not asks.is_cuda:
                heard = [hears and asked for hears, asked in zip(heard, asks.tolist(), strict=True)]
        judged = [sequence if hears else None for sequence, hears in zip(sequences, heard, strict=True)]
        return judge_before(judged, outlook, sets, self._fail) if any(heard) else None, asks

    def choose(self, sequences: Sequence[SequenceState], for_rows: Callable[..., None]) -> None:
        """Chooses the candidates that go through the model where agents judge before, or are not asked.

        Args:
            sequences: The running sequences; sequence i has line i.
            for_rows: Takes rows and what is to be done for each; it handles errors.
        """
        rows = [
            i
            for i, sequence in enumerate(sequences)
            if (sequence.judged_before or sequence.gate.threshold is not None) and sequence.chosen is None
        ]
        rows = [i for i in rows if not sequences[i].request.cancelled]
        if not rows:
            return
        read, _ = self.read()

        def choose_row(i: int) -> None:
            if read.skips(i):
                sequences[i].skip()
            elif sequences[i].judged_before:
                choose_before(sequences[i], read, i, self._policy)

        for_rows(rows, choose_row)

    def keep_first(self, count: int) -> None:
        """Forgets all lines but the first ones."""
        if count < len(self):
            self.lines = self.lines.first(count)
            self._host = None if self._host is None else self._host.first(count)

    def move(self, source: int, target: int) -> None:
        """Copies the set at `source` over the one at `target`."""
        self.lines.copy_line(source, target)
        if self._host is not None:
            self._host.copy_line(source, target)


def _edits(sequence: SequenceState) -> bool:
    """Whether logits are changed in place before the sequence's candidate set is cut."""
    request = sequence.request
    forbids = request.eos_token_ids and request.options.min_new_tokens
    return bool(request.constraint or forbids or request.logits_processor or request.joint_process)


def _kept(sequences: Sequence[SequenceState], logits: Tensor) -> Tensor:
    """Logits that are still those of the policy model when processors have run."""
    processed = any(each.request.logits_processor or each.request.joint_process for each in sequences)
    return logits.clone() if processed else logits
