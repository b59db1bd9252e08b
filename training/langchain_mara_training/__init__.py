"""Training of MARA agents: token-level labels, fitting, reinforcement, reward functions, evaluation.

Names are imported when they are first used, so that the `mara` command starts without the training libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_mara_training.actor_critic import UpdateOptions
    from langchain_mara_training.aligner import MaraAligner
    from langchain_mara_training.classifier import MaraClassifier
    from langchain_mara_training.comparison import Answer, Comparison, compare
    from langchain_mara_training.environment import EnvironmentOptions
    from langchain_mara_training.evaluation import Decoded, best_of_n, decode_system
    from langchain_mara_training.features import TokenLabels
    from langchain_mara_training.labels import PreferenceLabeler
    from langchain_mara_training.preference_rates import Preference, preference_rate
    from langchain_mara_training.recipe import Recipe
    from langchain_mara_training.report import write_report
    from langchain_mara_training.reward_guided import RewardGuided
    from langchain_mara_training.reward_models import (
        BeaverReward,
        SequenceClassificationReward,
        UltraRMReward,
        ZiyaReward,
    )
    from langchain_mara_training.rewards import PreferenceReward, WeightedRewards
    from langchain_mara_training.rollouts import RolloutLabeler, RolloutOptions
    from langchain_mara_training.sac import MaraSAC
    from langchain_mara_training.systems import Aligner, BestOf, Decoding, System
    from langchain_mara_training.traces import retrace

__all__ = [
    "Aligner",
    "Answer",
    "BeaverReward",
    "BestOf",
    "Comparison",
    "Decoded",
    "Decoding",
    "EnvironmentOptions",
    "MaraAligner",
    "MaraClassifier",
    "MaraSAC",
    "Preference",
    "PreferenceLabeler",
    "PreferenceReward",
    "Recipe",
    "RewardGuided",
    "RolloutLabeler",
    "RolloutOptions",
    "SequenceClassificationReward",
    "System",
    "TokenLabels",
    "UltraRMReward",
    "UpdateOptions",
    "WeightedRewards",
    "ZiyaReward",
    "best_of_n",
    "compare",
    "decode_system",
    "preference_rate",
    "retrace",
    "write_report",
]

_ROOMS = {
    "actor_critic": ["UpdateOptions"],
    "aligner": ["MaraAligner"],
    "classifier": ["MaraClassifier"],
    "environment": ["EnvironmentOptions"],
    "comparison": ["Answer", "Comparison", "compare"],
    "evaluation": ["Decoded", "best_of_n", "decode_system"],
    "features": ["TokenLabels"],
    "labels": ["PreferenceLabeler"],
    "preference_rates": ["Preference", "preference_rate"],
    "recipe": ["Recipe"],
    "report": ["write_report"],
    "reward_guided": ["RewardGuided"],
    "reward_models": ["BeaverReward", "SequenceClassificationReward", "UltraRMReward", "ZiyaReward"],
    "rewards": ["PreferenceReward", "WeightedRewards"],
    "rollouts": ["RolloutLabeler", "RolloutOptions"],
    "sac": ["MaraSAC"],
    "systems": ["Aligner", "BestOf", "Decoding", "System"],
    "traces": ["retrace"],
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            try:
                return getattr(import_module(f"{__name__}.{room}"), name)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"{name} needs the training libraries: pip install 'langchain-mara[training]' ({error}).",
                    name=error.name,
                ) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
