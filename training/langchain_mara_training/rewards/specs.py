"""Rewards as the command line names them: a file of pairs, a reward model, or a function of the user's own."""

import sys
from importlib import import_module
from pathlib import Path

from langchain_mara.exceptions import RewardError
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.preference_reward import PreferenceReward
from langchain_mara_training.rewards.published import (
    BeaverReward,
    SequenceClassificationReward,
    UltraRMReward,
    ZiyaReward,
)

PAIRS = "pairs:"
"""What a reward begins with that is fitted on preference pairs."""
_ADAPTERS = {"beaver:": BeaverReward, "ultrarm:": UltraRMReward, "ziya:": ZiyaReward}


def reward_function(spec: str, device: str | None = None) -> RewardFunction:
    """The reward function that a text names.

    Args:
        spec: `pairs:SOURCE` fits a `PreferenceReward`; `beaver:`, `ultrarm:` and `ziya:` before a hub id or folder load
            these reward models; `module:name` imports whatever can be called, from the current folder or installed;
            anything else is a sequence classifier, by hub id or folder.
        device: Where a reward model computes.

    Raises:
        RewardError: If the module or its function cannot be imported.
        DataError: If the pairs cannot be read.
        LoadingError: If the reward model cannot be loaded.
        CheckpointError: If the checkpoint holds another kind of reward model.
    """
    prefix, source = split_prefix(spec)
    if prefix == PAIRS:
        return PreferenceReward().fit(source)
    if prefix:
        return _ADAPTERS[prefix](source, device=device)
    if ":" not in spec or Path(spec).exists():
        return SequenceClassificationReward(spec, device=device)
    return _imported(spec)


def split_prefix(spec: str) -> tuple[str, str]:
    """`pairs:`, `beaver:` and the like, and what follows; or nothing and the text."""
    prefix = next((one for one in (PAIRS, *_ADAPTERS) if spec.startswith(one)), "")
    return prefix, spec.removeprefix(prefix)


def _imported(spec: str) -> RewardFunction:
    module, _, name = spec.partition(":")
    # A console script, unlike `python -m`, does not look for modules in the folder it is called in.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # whatever a user's module does when it is imported
        raise RewardError(
            f"Cannot import the reward function {spec}: {type(error).__name__}: {error}. "
            "Give module:function, of the current folder or installed."
        ) from error
    if not callable(found):
        raise RewardError(f"{spec} is no function but a {type(found).__name__}. Give module:function.")
    function: RewardFunction = found
    return function
