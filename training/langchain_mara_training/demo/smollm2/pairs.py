"""1,800 human preference pairs about harmlessness, divided by conversation.

Source: anthropics/hh-rlhf, harmless-base, test split (Bai et al. 2022, arXiv 2204.05862), MIT license. The
conversations are red-team prompts, offensive in places; they are for training and measuring harmlessness only.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import GroupShuffleSplit

from langchain_mara_training.data.readers import read_pairs

PAIRS = Path(__file__).parent / "hh_harmless.jsonl.gz"
"""The pairs, in TRL's conversational layout."""
_JUDGE_SHARE, _TEST_SHARE = 0.3, 0.2
_SPLIT_SEED = 20261129

Pairs = list[dict[str, Any]]


class Split(NamedTuple):
    """Pairs divided so that no conversation is in two parts. A conversation is told by its first message.

    Attributes:
        train: Pairs that agents and their rewards learn from.
        judge: Pairs that the independent judge learns from.
        test: Pairs whose prompts are answered and judged.
    """

    train: Pairs
    judge: Pairs
    test: Pairs


def split_pairs() -> Split:
    """The pairs in three parts: one half, three tenths and two tenths of the conversations, always the same."""
    pairs = read_pairs(PAIRS)
    openings = [pair["prompt"][0]["content"] for pair in pairs]
    numbers = {opening: number for number, opening in enumerate(dict.fromkeys(openings))}
    groups = np.array([numbers[opening] for opening in openings])
    numbered = [{**pair, "group": int(group)} for pair, group in zip(pairs, groups, strict=True)]
    rest, test = _cut(np.arange(len(pairs)), groups, _TEST_SHARE)
    train, judge = _cut(rest, groups, _JUDGE_SHARE / (1 - _TEST_SHARE))
    return Split(*([numbered[row] for row in part] for part in (train, judge, test)))


def _cut(rows: Any, groups: Any, share: float) -> tuple[Any, Any]:
    """Rows in two parts, the second with the given share of the groups."""
    cut = GroupShuffleSplit(1, test_size=share, random_state=_SPLIT_SEED)
    first, second = next(cut.split(rows, groups=groups[rows]))
    return rows[np.sort(first)], rows[np.sort(second)]
