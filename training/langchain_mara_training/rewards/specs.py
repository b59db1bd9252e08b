"""Rewards as the command line names them: pairs, a saved reward, a reward model, or a function of your own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from langchain_mara.exceptions import RewardError
from langchain_mara_training.rewards.calling import RewardFunction
from langchain_mara_training.rewards.fitted.state_reward import StateReward
from langchain_mara_training.rewards.preference_reward import PreferenceReward
from langchain_mara_training.rewards.published import (
    BeaverReward,
    SequenceClassificationReward,
    UltraRMReward,
    ZiyaReward,
)

PAIRS = "pairs:"
"""Prefix of a reward that is fitted on preference pairs."""
STATES = "state:"
"""Prefix of the folder of a saved `StateReward`."""
_ADAPTERS = {"beaver:": BeaverReward, "ultrarm:": UltraRMReward, "ziya:": ZiyaReward}


def reward_function(spec: str, device: str | None = None) -> RewardFunction:
    """The reward function that a text names.

    `sys.path` is as before when this returns. If your function itself imports modules of the current folder when it
    is called, call it inside `current_folder_first`.

    Args:
        spec: `pairs:SOURCE` fits a `PreferenceReward`. `state:FOLDER` loads a saved `StateReward`. `beaver:`,
            `ultrarm:` and `ziya:` followed by a hub id or folder load these reward models. `module:name` imports a
            callable from the current folder or an installed package. Anything else is the hub id or folder of a
            sequence classifier.
        device: Device of a reward model.

    Raises:
        RewardError: If the module or its function cannot be imported.
        DataError: If the pairs cannot be read.
        LoadingError: If the reward model cannot be loaded.
        CheckpointError: If the checkpoint holds another kind of reward model.
    """
    prefix, source = split_prefix(spec)
    if prefix == PAIRS:
        return PreferenceReward().fit(source)
    if prefix == STATES:
        return StateReward.load(source, device=device)
    if prefix:
        return _ADAPTERS[prefix](source, device=device)
    return _imported(spec) if names_code(spec) else SequenceClassificationReward(spec, device=device)


def split_prefix(spec: str) -> tuple[str, str]:
    """Splits a reward's name into its prefix, such as `pairs:` or `beaver:`, and the rest; the prefix may be empty."""
    prefix = next((known for known in (PAIRS, STATES, *_ADAPTERS) if spec.startswith(known)), "")
    return prefix, spec.removeprefix(prefix)


def names_code(spec: str) -> bool:
    """Whether a reward's name is that of a function to import. Only what the user writes may be such a name."""
    return not split_prefix(spec)[0] and ":" in spec and not Path(spec).exists()


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Puts the current folder first on `sys.path` while the context is open, and takes it off afterwards.

    A console script such as `mara`, unlike `python -m`, does not look for modules in the current folder. Paths that
    an imported module adds itself are left alone.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # Removes the first occurrence: the entry made here, even if the folder was on the path before.
        with suppress(ValueError):
            sys.path.remove(folder)


def _imported(spec: str) -> RewardFunction:
    module, _, name = spec.partition(":")
    try:
        with current_folder_first():
            function = getattr(import_module(module), name)
    except Exception as error:  # a user's module may raise anything on import
        raise RewardError(
            f"Cannot import the reward function {spec}: {type(error).__name__}: {error}. "
            "Give module:function, from the current folder or an installed package."
        ) from error
    if not callable(function):
        raise RewardError(f"{spec} is not a function but a {type(function).__name__}. Give module:function.")
    imported: RewardFunction = function
    return imported
