"""Training of MARA agents: token-level labels, fitting, reinforcement, reward functions and evaluation.

Public names are imported when they are first used, so that the `mara` command starts without the training libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_mara_training.aligner import MaraAligner
    from langchain_mara_training.calibration.calibrate import CalibratedDial, calibrate
    from langchain_mara_training.distillation.distill import Distillation, distill
    from langchain_mara_training.evaluation.comparison import Answer, Comparison, compare
    from langchain_mara_training.evaluation.evaluate import Decoded, best_of_n, decode_system
    from langchain_mara_training.evaluation.preference_rate import Preference, preference_rate
    from langchain_mara_training.evaluation.report.page import write_report
    from langchain_mara_training.evaluation.report.retrace import retrace
    from langchain_mara_training.evaluation.rescoring import rescore
    from langchain_mara_training.evaluation.reward_guided import RewardGuided
    from langchain_mara_training.evaluation.systems import Aligner, BestOf, CorrectorBaseline, Decoding, System
    from langchain_mara_training.fitting.classifier import MaraClassifier
    from langchain_mara_training.labeling.preference import PreferenceLabeler
    from langchain_mara_training.labeling.rollout import RolloutLabeler
    from langchain_mara_training.labeling.rollout_options import RolloutOptions
    from langchain_mara_training.labeling.token_labels import TokenLabels
    from langchain_mara_training.reinforcement.actor_critic import UpdateOptions
    from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
    from langchain_mara_training.reinforcement.recipe import Recipe
    from langchain_mara_training.reinforcement.sac import MaraSAC
    from langchain_mara_training.rewards.fitted.state_reward import StateReward
    from langchain_mara_training.rewards.preference_reward import PreferenceReward
    from langchain_mara_training.rewards.published import (
        BeaverReward,
        SequenceClassificationReward,
        UltraRMReward,
        ZiyaReward,
    )
    from langchain_mara_training.rewards.weighted import WeightedRewards
    from langchain_mara_training.storage.callbacks import JobCallback, JobProgress

__all__ = [
    "Aligner",
    "Answer",
    "BeaverReward",
    "BestOf",
    "CalibratedDial",
    "Comparison",
    "CorrectorBaseline",
    "Decoded",
    "Decoding",
    "Distillation",
    "EnvironmentOptions",
    "JobCallback",
    "JobProgress",
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
    "StateReward",
    "System",
    "TokenLabels",
    "UltraRMReward",
    "UpdateOptions",
    "WeightedRewards",
    "ZiyaReward",
    "best_of_n",
    "calibrate",
    "compare",
    "decode_system",
    "distill",
    "preference_rate",
    "rescore",
    "retrace",
    "write_report",
]

_MODULES = {
    "Aligner": "evaluation.systems",
    "Answer": "evaluation.comparison",
    "BeaverReward": "rewards.published",
    "BestOf": "evaluation.systems",
    "CalibratedDial": "calibration.calibrate",
    "Comparison": "evaluation.comparison",
    "CorrectorBaseline": "evaluation.systems",
    "Decoded": "evaluation.evaluate",
    "Decoding": "evaluation.systems",
    "Distillation": "distillation.distill",
    "EnvironmentOptions": "reinforcement.environment",
    "JobCallback": "storage.callbacks",
    "JobProgress": "storage.callbacks",
    "MaraAligner": "aligner",
    "MaraClassifier": "fitting.classifier",
    "MaraSAC": "reinforcement.sac",
    "Preference": "evaluation.preference_rate",
    "PreferenceLabeler": "labeling.preference",
    "PreferenceReward": "rewards.preference_reward",
    "Recipe": "reinforcement.recipe",
    "RewardGuided": "evaluation.reward_guided",
    "RolloutLabeler": "labeling.rollout",
    "RolloutOptions": "labeling.rollout_options",
    "SequenceClassificationReward": "rewards.published",
    "StateReward": "rewards.fitted.state_reward",
    "System": "evaluation.systems",
    "TokenLabels": "labeling.token_labels",
    "UltraRMReward": "rewards.published",
    "UpdateOptions": "reinforcement.actor_critic",
    "WeightedRewards": "rewards.weighted",
    "ZiyaReward": "rewards.published",
    "best_of_n": "evaluation.evaluate",
    "calibrate": "calibration.calibrate",
    "compare": "evaluation.comparison",
    "decode_system": "evaluation.evaluate",
    "distill": "distillation.distill",
    "preference_rate": "evaluation.preference_rate",
    "rescore": "evaluation.rescoring",
    "retrace": "evaluation.report.retrace",
    "write_report": "evaluation.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs the training libraries: pip install 'langchain-mara[training]' ({error}).",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return __all__
