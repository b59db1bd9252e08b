"""How a LangChain class is made of names: from transformers' models, from GGUF files, and from what is bundled."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from langchain_mara.loading.gguf import load_gguf
from langchain_mara.loading.models import DEMO_AGENT_FOLDER, DEMO_MODEL_FOLDER, AgentSource, load_agent, load_model
from langchain_mara.options import DecodingOptions, canonical, refuse_unknown
from langchain_mara.policy.llama_cpp.settings import LlamaCppSettings
from langchain_mara.policy.loaded_model import LoadedModel


class Constructors:
    """Class methods that load model, tokenizer and agent; the class takes these and its other fields as arguments."""

    model_fields: ClassVar[dict[str, Any]]
    model: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_model_id(
        cls,
        model_id: str | Path,
        *,
        agent: AgentSource | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, Any] | None = None,
        revision: str | None = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        packed: bool = True,
        gguf_file: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads model, tokenizer and agent by name.

        Args:
            model_id: Hub id or folder of the policy model, or of a PEFT adapter that changes it.
            agent: An agent, a folder, a hub id, the path of a reference `.pth`, or `repo:file` on the hub.
            device: Device such as `cuda` or `cpu`; by default CUDA if available.
            dtype: Dtype of the weights; by default the checkpoint's own (on the CPU see `load_model`).
            device_map: Placement by Accelerate, instead of `device`.
            revision: Branch, tag or commit on the hub.
            quantization_config: Quantization settings of transformers.
            attn_implementation: `sdpa` or `eager`.
            token: Hub token for gated models.
            local_files_only: Whether to use local files only and never the network.
            packed: Whether to store the weights of linear layers as the CPU's matrix products read them: about twice as
                fast, but with a second copy of the embedding if the head shares it. This replaces linear layers, so say
                False to train or change the model. It does nothing on GPUs, when quantized, or with `compile=True`.
            gguf_file: Name of a GGUF file in the folder or repository, which transformers dequantizes, for training.
                To run such a file as it is, see `from_gguf`.
            **kwargs: Other fields of this class.

        Raises:
            LoadingError: If the device is unknown or the model cannot be loaded.
            CheckpointError: If the agent cannot be loaded.
            OptionsError: If an argument is unknown or out of range.
        """
        kwargs = cls._checked_fields(kwargs, cls.from_model_id)
        loaded_agent = load_agent(agent, token=token, local_files_only=local_files_only)
        model, tokenizer = load_model(
            model_id,
            device=device,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            quantization_config=quantization_config,
            attn_implementation=attn_implementation,
            token=token,
            local_files_only=local_files_only,
            packed=packed and not kwargs.get("compile"),
            gguf_file=gguf_file,
        )
        return cls(model=model, tokenizer=tokenizer, agent=loaded_agent, model_id=str(model_id), **kwargs)

    @classmethod
    def from_gguf(
        cls,
        file: str | Path,
        *,
        agent: AgentSource | None = None,
        n_ctx: int = LlamaCppSettings().n_ctx,
        n_gpu_layers: int = LlamaCppSettings().n_gpu_layers,
        n_threads: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Loads a model from a GGUF file, which llama.cpp runs, quantized or not. Needs the extra `llamacpp`.

        Chat template, tokenizer and the tokens that end an answer are those of the file.

        Args:
            file: The file, the first one of a model in several files, or `repo:file.gguf` on the hub.
            agent: See `from_model_id`. An agent that was trained with transformers on the same model fits.
            n_ctx: Most tokens that all running answers hold together, prompts included. A single answer holds as many
                at most, and never more than the model was trained for.
            n_gpu_layers: Number of layers on the GPU, if llama.cpp was built for one; -1 for all.
            n_threads: Number of threads; by default as many as PyTorch takes.
            revision: Branch, tag or commit on the hub.
            token: Hub token for gated models.
            local_files_only: Whether to use local files only and never the network.
            **kwargs: Other fields of this class.

        Raises:
            LoadingError: If llama.cpp is not installed, or the file is missing, damaged, or of another format.
            UnsupportedModelError: If the model is no decoder with attention in all layers.
            CheckpointError: If the agent cannot be loaded.
            OptionsError: If an argument is unknown or out of range.
        """
        kwargs = cls._checked_fields(kwargs, cls.from_gguf)
        hub = {"token": token, "local_files_only": local_files_only}
        loaded_agent = load_agent(agent, **hub)
        settings = LlamaCppSettings(n_ctx, n_gpu_layers, n_threads)
        model, tokenizer = load_gguf(file, settings, revision=revision, **hub)
        return cls(model=model, tokenizer=tokenizer, agent=loaded_agent, model_id=str(file), **kwargs)

    @classmethod
    def demo(cls, **kwargs: Any) -> Self:
        """Loads the bundled demo model and its agent, without a download. It is a demo, not a useful assistant.

        Args:
            **kwargs: Arguments of `from_model_id`; `agent=None` gives the model without alignment.
        """
        values = {"agent": DEMO_AGENT_FOLDER, "dtype": torch.float32, "local_files_only": True}
        llm = cls.from_model_id(DEMO_MODEL_FOLDER, **{**values, **kwargs})
        # The bundled model needs no network, which says nothing of other models and agents.
        LoadedModel.of(llm.model).hub_options = {"local_files_only": kwargs.get("local_files_only", False)}
        return llm

    @classmethod
    def _checked_fields(cls, kwargs: Mapping[str, Any], constructor: Any) -> dict[str, Any]:
        """Fields under their canonical names, checked first: a typo should not cost the time to load a model."""
        kwargs = canonical(dict(kwargs))
        DecodingOptions.parse(**{name: kwargs[name] for name in DecodingOptions.model_fields if name in kwargs})
        settable = set(cls.model_fields) - {"model", "tokenizer"}
        refuse_unknown(kwargs, settable, {*settable, *inspect.signature(constructor).parameters})
        return kwargs
