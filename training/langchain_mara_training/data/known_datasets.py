"""Data sets of the paper and related work by name: their hub ids and the names of their splits."""

from pathlib import Path
from typing import NamedTuple


class KnownSet(NamedTuple):
    """A data set on the hub.

    Attributes:
        hub_id: Name of the data set on the hub.
        splits: Names on the hub of `train` and `test`, if they differ; other splits keep their names.
    """

    hub_id: str
    splits: dict[str, str]


KNOWN_SETS = {
    # Columns prompt, response_0, response_1, better_response_id, safer_response_id, is_response_0_safe, …
    "PKU-SafeRLHF": KnownSet("PKU-Alignment/PKU-SafeRLHF", {}),
    # Columns prompt, response, category, is_safe; the splits 30k_train and 30k_test are subsets of these.
    "BeaverTails": KnownSet("PKU-Alignment/BeaverTails", {"train": "330k_train", "test": "330k_test"}),
    # Columns prompt, category, category_id: the 700 prompts of the paper's table; there is no training split.
    "BeaverTails-Evaluation": KnownSet("PKU-Alignment/BeaverTails-Evaluation", {}),
    # Columns question, topic, subtopic, blue_conversations, red_conversations. It has a single split, named train
    # but made for tests: if you train on it, nothing is left to measure on.
    "HarmfulQA": KnownSet("declare-lab/HarmfulQA", {"test": "train"}),
    # Columns chosen and rejected, whole dialogues as text.
    "HH-RLHF": KnownSet("Anthropic/hh-rlhf", {}),
    # Columns prompt, prompt_id, chosen, rejected (messages), messages, score_chosen, score_rejected.
    "UltraFeedback": KnownSet("HuggingFaceH4/ultrafeedback_binarized", {"train": "train_prefs", "test": "test_prefs"}),
}
"""Known data sets by name. Case does not matter, and the hub's own name works too."""


def known_set(source: str | Path) -> KnownSet | None:
    """The known data set that a name refers to; None for files, folders and unknown names."""
    if isinstance(source, Path) or Path(source).expanduser().exists():
        return None
    wanted = source.casefold()
    return next(
        (dataset for name, dataset in KNOWN_SETS.items() if wanted in (name.casefold(), dataset.hub_id.casefold())),
        None,
    )
