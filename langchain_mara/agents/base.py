"""Agent: what all agents have in common. Settings, the check against a model, fingerprint, saving and loading."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from langchain_mara.agents.embedding_sketch import embedding_sketch, same_model, same_weights
from langchain_mara.agents.recommended_options import Recommended, checked_options
from langchain_mara.agents.reference_checkpoints import WEIGHTS_FILE, looks_local, not_found
from langchain_mara.exceptions import AgentMismatchError, CheckpointError
from langchain_mara.policy.fingerprints import WeightsFingerprint
from langchain_mara.untrusted import read_json

Judges = Literal["before", "after"]
"""Which state an agent judges a candidate by: the one `before` it, or the one `after` it, which costs a pass."""
KIND = "kind"
"""Name in `config.json` of the kind of an agent."""
STATE_KIND = "state"
"""Kind of agents whose `config.json` names none."""
SMALLEST_WIDTH = 4
"""Fewest units of the first hidden layer; the second one has a quarter of them."""

_MODEL_CARD = """---
{{ card_data }}
---

# A MARA agent

Accepts or rejects candidate next tokens of a frozen policy model while it decodes
([paper](https://arxiv.org/abs/2505.19743)). `config.json` names the policy model it was trained on, the size of the
states it reads, and its kind: `state` judges the state after a candidate, `look-ahead` the state before it.

```python
from langchain_mara import MaraLLM

llm = MaraLLM.from_model_id("<the policy model>", agent="<this folder or repository>")
```
"""
_DIGEST = "digest"  # name of the weights' digest in the file's metadata


class Agent(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="langchain-mara",
    paper_url="https://arxiv.org/abs/2505.19743",
    tags=["mara", "alignment"],
    model_card_template=_MODEL_CARD,
):
    """Accepts or rejects candidate next tokens of a frozen policy model: the base of all kinds of agents.

    The decode loop asks an agent only which state it judges by. One that judges `after` has
    `accept_probability(states, accept_action)`, as `MaraAgent`. One that judges `before` has `bind(output_embeddings)`,
    which returns a module that has `accept_probability(candidates, accept_action)`, as `LookAheadAgent`.

    Args:
        hidden_size: Size d of the policy model's states.
        width: Number of units of the first hidden layer.
        policy_model: Name of the model that the agent was trained on, for information.
        library_version: Version of langchain-mara that created the agent.
        recommended_options: Decoding options that were found together with the agent, by name, such as
            `{"top_p": 0.75}`. A LangChain class that gets the agent uses them unless it was told others.
        policy_sketch: `embedding_sketch` of the model the agent was trained on; with it, the agent refuses another
            model of the same hidden size.
        calibration: How the recommended options were found on prompts, as plain values by name, for information. The
            `calibrate` of the training package writes it.

    Attributes:
        kind: Name of the kind in `config.json`.
        judges: The state that it judges by.

    Raises:
        OptionsError: If a recommended option is unknown or out of range.
        ValueError: If a size is out of range, or the calibration is no mapping.
    """

    kind: ClassVar[str] = STATE_KIND
    judges: Judges = "after"

    def __init__(
        self,
        hidden_size: int,
        width: int,
        policy_model: str | None,
        library_version: str,
        recommended_options: Recommended | None,
        policy_sketch: Sequence[float] | None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if calibration is not None and not isinstance(calibration, Mapping):
            raise ValueError(f"calibration must map names to values, not be a {type(calibration).__name__}.")
        if hidden_size < 1 or width < SMALLEST_WIDTH:
            raise ValueError(f"An agent needs hidden_size >= 1 and width >= {SMALLEST_WIDTH}.")
        config: Any = self._hub_mixin_config or {}
        self._hub_mixin_config = {**config, KIND: self.kind}
        self._fingerprint = WeightsFingerprint()
        self.hidden_size = hidden_size
        self.width = width
        self.policy_model = policy_model
        self.library_version = library_version
        self.recommended_options = checked_options(recommended_options or {})
        self.policy_sketch = policy_sketch
        self.calibration = calibration

    def check_fits(self, hidden_size: int, model_name: str, embeddings: Tensor | None = None) -> None:
        """Refuses a policy model whose states the agent cannot read.

        Args:
            hidden_size: Size of the policy model's states.
            model_name: Name of the policy model, for the message.
            embeddings: (vocabulary, hidden size) input embeddings of the policy model, to compare with the sketch of
                the model that the agent was trained on, if the agent has one.

        Warns:
            UserWarning: If the embeddings are those of the same model in another quantization, or fine-tuned.

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
        sketch = embedding_sketch(embeddings)
        if not same_model(self.policy_sketch, sketch):
            raise AgentMismatchError(
                f"The agent was trained on {self.policy_model}, and the embeddings of {model_name} are not that "
                "model's. Use the agent with its own model, in any quantization, train one for this model, or try this "
                "one with allow_other_model=True."
            )
        if not same_weights(self.policy_sketch, sketch):
            warnings.warn(
                f"The agent was trained on {self.policy_model} in another quantization than {model_name}, or before it "
                "was fine-tuned. It works, but some of its decisions will differ.",
                stacklevel=2,
            )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when any weight changes; part of LangChain's cache key."""
        return self._fingerprint.of(self, sorted(self.state_dict().items()))

    def with_config(self, **changes: Any) -> Self:
        """A copy in eval mode, on the same device, with other settings.

        Args:
            **changes: Arguments of the class that are not to be those of this agent, such as `recommended_options`.

        Raises:
            OptionsError: If a recommended option is unknown or out of range.
            CheckpointError: If the weights do not fit the new sizes.
        """
        config = {name: getattr(self, name) for name in list(signature(type(self)).parameters)}
        device = next(self.parameters()).device
        return type(self)(**{**config, **changes}).to(device).with_weights(self.state_dict(), "The agent")

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
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", config: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Self:
        if (kind := (config or {}).get(KIND, STATE_KIND)) != cls.kind:
            raise CheckpointError(
                f"{model_id} holds an agent of kind {kind!r}, and {cls.__name__} is of kind {cls.kind!r}. Give it as "
                "agent= of MaraLLM, or to load_agent, which load every kind."
            )
        hub = {
            key: kwargs.pop(key, None)
            for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")
        }
        folder = Path(model_id)
        file = folder / WEIGHTS_FILE if folder.is_dir() else Path(hf_hub_download(model_id, WEIGHTS_FILE, **hub))
        return cls._from_state(_read_safetensors(file), str(file), **kwargs).to(map_location)

    @classmethod
    def _from_state(cls, state: dict[str, Any], source: str, **config: Any) -> Self:
        """An agent in eval mode from its weights and configuration.

        Raises:
            CheckpointError: If they do not belong together.
        """
        raise NotImplementedError

    def with_weights(self, state: Mapping[str, Tensor], source: str) -> Self:
        """The agent itself with other weights, in eval mode.

        Args:
            state: Weights by name.
            source: Name of their source, for messages.

        Raises:
            CheckpointError: If one is missing, unexpected, or of another shape.
        """
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"{source} has wrong shapes: {error}") from None
        return self.eval()


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
