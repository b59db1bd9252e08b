"""MaraAgent: the three-layer network that accepts or rejects a candidate's state (ALGORITHM.md section 1)."""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from langchain_mara._version import __version__
from langchain_mara.exceptions import AgentMismatchError, CheckpointError
from langchain_mara.fingerprints import weights_fingerprint

WEIGHTS_FILE = "model.safetensors"
_MODEL_CARD = """---
{{ card_data }}
---

# A MARA agent

Accepts or rejects candidate next tokens of a frozen policy model while it decodes
([paper](https://arxiv.org/abs/2505.19743)). `config.json` names the policy model it was trained on and the size of the
states it reads.

```python
from langchain_mara import MaraLLM

llm = MaraLLM.from_model_id("<the policy model>", agent="<this folder or repository>")
```
"""
_SMALLEST_WIDTH = 4  # the second layer has a quarter of it


class MaraAgent(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="langchain-mara",
    paper_url="https://arxiv.org/abs/2505.19743",
    tags=["mara", "alignment"],
    model_card_template=_MODEL_CARD,
):
    """Accepts or rejects candidate next tokens of a frozen policy model, by their states.

    `LayerNorm(d) -> Linear(d, width) -> ReLU -> Linear(width, width // 4) -> ReLU -> Linear(width // 4, 2)`,
    in float32 whatever the policy model's dtype. Action 1 is accept, 0 is reject. Parameter names are
    those of the reference's checkpoints (IAAR-Shanghai/MARA, `train/agents`).

    Args:
        hidden_size: Size d of the policy model's states.
        width: Units of the first hidden layer.
        policy_model: Name of the model the agent was trained on, kept for the user's orientation.
        library_version: Version of langchain-mara that made the agent.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int = 1024,
        policy_model: str | None = None,
        library_version: str = __version__,
    ) -> None:
        super().__init__()
        if hidden_size < 1 or width < _SMALLEST_WIDTH:
            raise ValueError(f"An agent needs hidden_size >= 1 and width >= {_SMALLEST_WIDTH}.")
        self.hidden_size = hidden_size
        self.width = width
        self.policy_model = policy_model
        self.library_version = library_version
        self.ln = nn.LayerNorm(hidden_size)
        self.linear1 = nn.Linear(hidden_size, width)
        self.linear2 = nn.Linear(width, width // 4)
        self.output_linear = nn.Linear(width // 4, 2)

    def forward(self, states: Tensor) -> Tensor:
        """Scores both actions.

        Args:
            states: (..., d), any float dtype.

        Returns:
            (..., 2) float32 logits: reject, accept.
        """
        hidden = self.linear1(self.ln(states.float())).relu()
        logits: Tensor = self.output_linear(self.linear2(hidden).relu())
        return logits

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        """Probability that each state's candidate is accepted.

        Args:
            states: (..., d), any float dtype.
            accept_action: Which action counts as accept.

        Returns:
            (...,) float32 in [0, 1]; NaN where a state is not finite.
        """
        probability: Tensor = self(states).softmax(-1)[..., accept_action]
        return probability

    def check_fits(self, hidden_size: int, model_name: str) -> None:
        """Refuses a policy model whose states the agent cannot read.

        Raises:
            AgentMismatchError: If the sizes differ.
        """
        if self.hidden_size != hidden_size:
            trained_on = f" (trained on {self.policy_model})" if self.policy_model else ""
            raise AgentMismatchError(
                f"The agent{trained_on} reads states of size {self.hidden_size}, but {model_name} gives "
                f"{hidden_size}. Use an agent trained on a model of hidden size {hidden_size}."
            )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any weight; part of LangChain's cache key."""
        return weights_fingerprint(self, sorted(self.state_dict().items()))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads a folder written by `save_pretrained`, or a hub repository of that form.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `map_location`.

        Raises:
            CheckpointError: If it is missing, truncated, or holds something else than an agent.
        """
        source = os.path.expanduser(pretrained_model_name_or_path)  # noqa: PTH111 - may be a hub id
        if looks_local(source) and not Path(source).exists():
            raise CheckpointError(f"There is no folder {source}. Give a folder, or a hub id such as user/agent.")
        if Path(source).is_file():
            raise CheckpointError(
                f"{source} is a file. from_pretrained takes the folder that save_pretrained wrote; "
                "for a reference .pth use MaraAgent.from_reference."
            )
        try:
            return super().from_pretrained(source, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{source}: config.json is not valid JSON ({error}).") from None
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"{source}: config.json holds no agent's configuration ({error}).") from None
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise CheckpointError(_not_found(source, error)) from None

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> Self:
        hub = {
            key: kwargs.pop(key, None)
            for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")
        }
        folder = Path(model_id)
        file = folder / WEIGHTS_FILE if folder.is_dir() else Path(hf_hub_download(model_id, WEIGHTS_FILE, **hub))
        return cls._from_state(_read_safetensors(file), str(file), **kwargs).to(map_location)

    @classmethod
    def from_reference(cls, source: str | Path, policy_model: str | None = None) -> Self:
        """Loads a `.pth` state dict of the reference implementation, without unpickling code.

        Args:
            source: Path of the file, or `repo:file` for a file in a hub repository, such as
                `IAAR-Shanghai/MARA_AGENTS:mistral_v3_2_1_actor.pth`.
            policy_model: Name of the model the agent was trained on, if known.

        Raises:
            CheckpointError: If it is missing, truncated, or holds something else than an agent.
        """
        file = resolve_reference(str(source))
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"{file} is truncated or no PyTorch state dict, or holds other objects than tensors. It was read with "
                "weights_only=True, because unpickling could run code; ask its author for a state dict of tensors."
            ) from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"{file} is truncated or no PyTorch state dict ({reason}).") from None
        if not isinstance(state, Mapping):
            raise CheckpointError(f"{file} holds a {type(state).__name__}, not a state dict of tensors.")
        return cls._from_state(dict(state), str(file), policy_model=policy_model)

    @classmethod
    def _from_state(cls, state: dict[str, Any], source: str, **config: Any) -> Self:
        hidden_size, width = _shape_of(state, source)
        declared = (config.setdefault("hidden_size", hidden_size), config.setdefault("width", width))
        if declared != (hidden_size, width):
            raise CheckpointError(
                f"{source}: config.json says hidden size {declared[0]} and width {declared[1]}, "
                f"the weights have {hidden_size} and {width}. The two files do not belong together."
            )
        agent = cls(**config)
        try:
            agent.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{source} has wrong shapes: {error}") from None
        return agent.eval()


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id has at most one slash and no leading one."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def resolve_reference(source: str) -> Path:
    """Turns a path or a hub `repo:file` into the path of a local file, downloading if need be.

    Raises:
        CheckpointError: If there is no such file.
    """
    if (path := Path(source).expanduser()).exists():
        return path
    repository, colon, filename = source.rpartition(":")
    is_drive = len(repository) == 1
    if not colon or not repository or is_drive:
        raise CheckpointError(f"There is no file {source}. Give a path, or repo:file for a hub repository.")
    try:
        return Path(hf_hub_download(repository, filename))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(_not_found(source, error)) from None


def _not_found(source: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return (
        f"No agent at {source}: it is no local folder with config.json and {WEIGHTS_FILE}, and the hub "
        f"did not provide it ({reason}). Check the path or id, the network, and your access."
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise CheckpointError(f"{file} is missing. The folder is no agent saved with save_pretrained.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}). Save or download it again.") from None


def _shape_of(state: Mapping[str, Any], source: str) -> tuple[int, int]:
    """Hidden size and width of an agent's weights, after checking names and finiteness."""
    with torch.device("meta"):
        expected = set(MaraAgent(8, 8).state_dict())
    missing, extra = sorted(expected - set(state)), sorted(map(str, set(state) - expected))
    if missing or extra:
        raise CheckpointError(
            f"{source} is no MARA agent: missing keys {missing}, unexpected keys {extra[:6]}. "
            "An agent has the keys ln.*, linear1.*, linear2.*, output_linear.*."
        )
    for name, weight in state.items():
        if not isinstance(weight, Tensor) or weight.layout is not torch.strided:
            raise CheckpointError(f"{source} is no MARA agent: {name} is a {type(weight).__name__}, not a tensor.")
        if not weight.isfinite().all():
            raise CheckpointError(f"{source}: {name} holds NaN or infinite values; the agent is unusable.")
    if state["ln.weight"].ndim != 1 or state["linear1.bias"].ndim != 1:
        raise CheckpointError(f"{source} has wrong shapes: ln.weight and linear1.bias must be vectors.")
    return len(state["ln.weight"]), len(state["linear1.bias"])
