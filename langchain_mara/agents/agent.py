"""MaraAgent: a three-layer network that accepts or rejects a candidate by its state (docs/algorithm.md)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from langchain_mara._version import __version__
from langchain_mara.agents.base import Agent
from langchain_mara.agents.recommended_options import Recommended
from langchain_mara.agents.reference_checkpoints import agent_shape, read_reference, resolve_reference
from langchain_mara.exceptions import CheckpointError
from langchain_mara.options import DEFAULT_AGENT_WIDTH


class MaraAgent(Agent):
    """Accepts or rejects candidate next tokens of a frozen policy model by their states.

    `LayerNorm(d) -> Linear(d, width) -> ReLU -> Linear(width, width // 4) -> ReLU -> Linear(width // 4, 2)`.
    It computes in float32 whatever the policy model's dtype. Action 1 is accept, action 0 is reject. Parameters have
    the names of the reference's checkpoints (IAAR-Shanghai/MARA, `train/agents`).

    Args:
        hidden_size: Size d of the policy model's states.
        width: Number of units of the first hidden layer.
        policy_model: Name of the model that the agent was trained on, for information.
        library_version: Version of langchain-mara that created the agent.
        recommended_options: See `Agent`.
        policy_sketch: See `Agent`.
        calibration: See `Agent`.

    Raises:
        OptionsError: If a recommended option is unknown or out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int = DEFAULT_AGENT_WIDTH,
        policy_model: str | None = None,
        library_version: str = __version__,
        recommended_options: Recommended | None = None,
        policy_sketch: Sequence[float] | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        common = (policy_model, library_version, recommended_options, policy_sketch, calibration)
        super().__init__(hidden_size, width, *common)
        self.ln = nn.LayerNorm(hidden_size)
        self.linear1 = nn.Linear(hidden_size, width)
        self.linear2 = nn.Linear(width, width // 4)
        self.output_linear = nn.Linear(width // 4, 2)

    def forward(self, states: Tensor) -> Tensor:
        """Computes logits of both actions.

        Args:
            states: (..., d) states in any float dtype.

        Returns:
            (..., 2) float32 logits of reject and accept.
        """
        hidden = self.linear1(self.ln(states.float())).relu()
        logits: Tensor = self.output_linear(self.linear2(hidden).relu())
        return logits

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        """Computes the accept probability of each state's candidate.

        Args:
            states: (..., d) states in any float dtype.
            accept_action: Action that means accept, 0 or 1.

        Returns:
            (...,) float32 accept probabilities in [0, 1]; NaN where a state is not finite.
        """
        probability: Tensor = self(states).softmax(-1)[..., accept_action]
        return probability

    @classmethod
    def from_reference(cls, source: str | Path, policy_model: str | None = None, **hub: Any) -> Self:
        """Loads a `.pth` state dict of the reference implementation, without running pickled code.

        Args:
            source: Path of the file, or `repo:file` for a file in a hub repository, such as
                `IAAR-Shanghai/MARA_AGENTS:mistral_v3_2_1_actor.pth`.
            policy_model: Name of the model that the agent was trained on, if known.
            **hub: `revision`, `token` and `local_files_only` of a hub repository.

        Raises:
            CheckpointError: If it is missing, truncated, not an agent, or has weights that are not finite.
        """
        file = resolve_reference(str(source), **hub)
        return cls._from_state(read_reference(file), str(file), policy_model=policy_model)

    @classmethod
    def _from_state(cls, state: dict[str, Any], source: str, **config: Any) -> Self:
        hidden_size, width = agent_shape(state, source)
        declared = (config.setdefault("hidden_size", hidden_size), config.setdefault("width", width))
        if declared != (hidden_size, width):
            raise CheckpointError(
                f"{source}: config.json says hidden size {declared[0]} and width {declared[1]}, but "
                f"the weights have {hidden_size} and {width}. Get both files from the same agent."
            )
        return cls(**config).with_weights(state, source)
