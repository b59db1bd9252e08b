"""Options of rollouts and their defaults, which `RolloutLabeler` and `mara label` share. Importing them is cheap."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from langchain_mara_training.storage.defaults import TRAINING_BATCH_SIZE

Value = Literal["policy", "mean"]
"""How a position's value is averaged over its candidates."""
Ties = Literal["accept", "drop"]
"""What happens to tied candidates."""
Weighting = Literal["uniform", "advantage"]
"""How labels are weighted."""


class RolloutOptions(BaseModel):
    """How rollouts are generated and labeled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generations: int = Field(default=1, ge=1)
    """Answers per prompt to draw positions from: first the LLM's own, then further ones drawn at its temperature."""
    positions: int = Field(default=4, ge=1)
    """Most positions of an answer."""
    candidates: int = Field(default=8, ge=2)
    """Most candidates of a position: the most probable ones."""
    continuations: int = Field(default=1, ge=1)
    """Completions of each candidate: a single one is decoded as the LLM decodes, several are drawn
    (`order="sampled"`)."""
    value: Value = "policy"
    """The position's value: the mean reward of its candidates, weighted by the model's probabilities (`policy`) or
    not (`mean`)."""
    margin: float = Field(default=0.0, ge=0)
    """A candidate is tied if its mean reward differs from the position's value by at most this much."""
    ties: Ties = "accept"
    """What happens to tied candidates: `accept` keeps the agent close to the model, `drop` gives them no label."""
    weighting: Weighting = "uniform"
    """`advantage` weights a label by the distance of its reward from the position's value."""
    prompts_per_shard: int = Field(default=32, ge=1)
    """Prompts of a shard; an interruption loses at most the work of one shard."""
    batch_size: int = Field(default=TRAINING_BATCH_SIZE, ge=1)
    """Most rollouts at a time."""


ROLLOUT_DEFAULTS = RolloutOptions()
"""The options of rollouts when you set none."""
