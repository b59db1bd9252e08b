"""Data sets of the paper and its peers by name: where they lie on the hub, and what their splits are called there."""

from pathlib import Path
from typing import NamedTuple


class KnownSet(NamedTuple):
    """A data set on the hub.

    Attributes:
        hub_id: Its name there.
        splits: What `train` and `test` are called there; any other split goes by its own name.
    """

    hub_id: str
    splits: dict[str, str]


KNOWN_SETS = {
    # Columns prompt, response_0, response_1, better_response_id, safer_response_id, is_response_0_safe, …
    "PKU-SafeRLHF": KnownSet("PKU-Alignment/PKU-SafeRLHF", {}),
    # Columns prompt, response, category, is_safe; splits 30k_train and 30k_test are a part of these.
    "BeaverTails": KnownSet("PKU-Alignment/BeaverTails", {"train": "330k_train", "test": "330k_test"}),
    # Columns prompt, category, category_id: the 700 prompts of the paper's table; there is no training split.
    "BeaverTails-Evaluation": KnownSet("PKU-Alignment/BeaverTails-Evaluation", {}),
    # Columns question, topic, subtopic, blue_conversations, red_conversations; all of it is one split, which is
    # called train and made for tests: train on it, and there is nothing left to measure on.
    "HarmfulQA": KnownSet("declare-lab/HarmfulQA", {"test": "train"}),
    # Columns chosen and rejected, whole dialogues as text.
    "HH-RLHF": KnownSet("Anthropic/hh-rlhf", {}),
    # Columns prompt, prompt_id, chosen, rejected (messages), messages, score_chosen, score_rejected.
    "UltraFeedback": KnownSet("HuggingFaceH4/ultrafeedback_binarized", {"train": "train_prefs", "test": "test_prefs"}),
}
"""By name; upper and lower case do not matter, and the hub's own name does as well."""


def known_set(source: str | Path) -> KnownSet | None:
    """The data set that a name means; None for files, folders, and other names."""
    if isinstance(source, Path) or Path(source).expanduser().exists():
        return None
    wanted = source.casefold()
    return next((one for name, one in KNOWN_SETS.items() if wanted in (name.casefold(), one.hub_id.casefold())), None)
