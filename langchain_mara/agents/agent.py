"""MaraAgent: a three-layer network that accepts or rejects a candidate by its state (docs/algorithm.md)."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from langchain_mara._version import __version__
from langchain_mara.agents.embedding_sketch import embedding_sketch, same_model
from langchain_mara.agents.recommended_options import checked_options
from langchain_mara.agents.reference_checkpoints import (
    WEIGHTS_FILE,
    agent_shape,
    looks_local,
    not_found,
    read_reference,
    resolve_reference,
)
from langchain_mara.exceptions import AgentMismatchError, CheckpointError
from langchain_mara.options import DEFAULT_AGENT_WIDTH
from langchain_mara.policy.fingerprints import WeightsFingerprint
from langchain_mara.untrusted import read_json

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
_DIGEST = "digest"  # name of the weights' digest in the file's metadata
_SMALLEST_WIDTH = 4  # the second layer has a quarter of the units


class MaraAgent(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="langchain-mara",
    paper_url="https://arxiv.org/abs/2505.19743",
    tags=["mara", "alignment"],
    model_card_template=_MODEL_CARD,
):
    """Accepts or rejects candidate next tokens of a frozen policy model by their states.

    `LayerNorm(d) -> Linear(d, width) -> ReLU -> Linear(width, width // 4) -> ReLU -> Linear(width // 4, 2)`.
    It computes in float32 whatever the policy model's dtype. Action 1 is accept, action 0 is reject. Parameters have
    the names of the reference's checkpoints (IAAR-Shanghai/MARA, `train/agents`).

    Args:
        hidden_size: Size d of the policy model's states.
        width: Number of units of the first hidden layer.
        policy_model: Name of the model that the agent was trained on, for information.
        library_version: Version of langchain-mara that created the agent.
        recommended_options: Decoding options that were found together with the agent, by name, such as
            `{"top_p": 0.75}`. A LangChain class that gets the agent uses them unless it was told others.
        policy_sketch: `embedding_sketch` of the model the agent was trained on; with it, the agent refuses another
            model of the same hidden size.

    Raises:
        OptionsError: If a recommended option is unknown or out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int = DEFAULT_AGENT_WIDTH,
        policy_model: str | None = None,
        library_version: str = __version__,
        recommended_options: Mapping[str, float] | None = None,
        policy_sketch: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if hidden_size < 1 or width < _SMALLEST_WIDTH:
            raise ValueError(f"An agent needs hidden_size >= 1 and width >= {_SMALLEST_WIDTH}.")
        self._fingerprint = WeightsFingerprint()
        self.hidden_size = hidden_size
        self.width = width
        self.policy_model = policy_model
        self.library_version = library_version
        self.recommended_options = checked_options(recommended_options or {})
        self.policy_sketch = policy_sketch
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

    def check_fits(self, hidden_size: int, model_name: str, embeddings: Tensor | None = None) -> None:
        """Refuses a policy model whose states the agent cannot read.

        Args:
            hidden_size: Size of the policy model's states.
            model_name: Name of the policy model, for the message.
            embeddings: (vocabulary, hidden size) input embeddings of the policy model, to compare with the sketch of
                the model that the agent was trained on, if the agent has one.

        Raises:
            AgentMismatchError: If the sizes differ, or the embeddings are those of another model.
        """
        if self.hidden_size != hidden_size:
            trained_on = f" (trained on {self.policy_model})" if self.policy_model else ""
            raise AgentMismatchError(
                f"The agent{trained_on} reads states of size {self.hidden_size}, but {model_name} gives "
                f"{hidden_size}. Use an agent trained on a model of hidden size {hidden_size}."
            )
        if self.policy_sketch is None or embeddings is None or embeddings.is_meta:
            return
        if not same_model(self.policy_sketch, embedding_sketch(embeddings)):
            raise AgentMismatchError(
                f"The agent was trained on {self.policy_model}, and the embeddings of {model_name} are not that "
                "model's. Use the agent with its own model, in any quantization, or train one for this model."
            )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when any weight changes; part of LangChain's cache key."""
        return self._fingerprint.of(self, sorted(self.state_dict().items()))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes the weights, with a digest of them that loading checks; completely or not at all."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"The agent has weights that are not finite in {', '.join(broken)}. It was not saved; train it again "
                "with a lower learning rate."
            )
        content = save(state, {_DIGEST: _digest(state)})  # a second entry would come in random order
        file = save_directory / WEIGHTS_FILE
        temporary = file.with_name(f".{WEIGHTS_FILE}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(file)
        except OSError as error:
            free = shutil.disk_usage(save_directory).free
            raise CheckpointError(
                f"{file} cannot be written: {error.strerror}. It needs {len(content):,} bytes, and {free:,} are free "
                "there. Make room or give another folder."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Loads an agent from a folder written by `save_pretrained`, or from such a hub repository.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `map_location`.

        Raises:
            CheckpointError: If it is missing, damaged, not an agent, or has weights that are not finite.
        """
        source = os.path.expanduser(pretrained_model_name_or_path)  # noqa: PTH111 - may be a hub id
        if looks_local(source) and not Path(source).exists():
            raise CheckpointError(f"There is no folder {source}. Give a folder, or a hub id such as user/agent.")
        if Path(source).is_file():
            raise CheckpointError(
                f"{source} is a file. from_pretrained takes the folder that save_pretrained wrote; "
                "for a reference .pth use MaraAgent.from_reference."
            )
        config = Path(source, "config.json")
        if config.is_file():
            read_json(config, CheckpointError)
        try:
            return super().from_pretrained(source, **kwargs)
        except RecursionError:
            raise CheckpointError(f"{source}: config.json is nested too deeply to be read.") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{source}: config.json is not valid JSON ({error}).") from None
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"{source}: config.json is not the configuration of an agent ({error}).") from None
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            raise CheckpointError(not_found(source, error)) from None

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
        agent = cls(**config)
        try:
            agent.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{source} has wrong shapes: {error}") from None
        return agent.eval()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    if not file.exists():
        raise CheckpointError(f"{file} is missing. Give a folder that an agent was saved to with save_pretrained.")
    try:
        with safe_open(file, "pt") as opened:
            digest = (opened.metadata() or {}).get(_DIGEST)
        state = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}). Save or download it again.") from None
    if digest not in (None, _digest(state)):
        raise CheckpointError(f"{file} is damaged: its weights do not match their digest. Save or download it again.")
    return state


def _digest(state: Mapping[str, Tensor]) -> str:
    """Digest of weights with their names, types and shapes."""
    return WeightsFingerprint().of(nn.Module(), sorted(state.items()))
