"""The logits processor through which vLLM asks a look-ahead agent.

Why this way, by vLLM 0.32's own source. Three mechanisms of vLLM meet here, each of them documented as an extension:

- `vllm.general_plugins`, an entry point that runs in every process, replaces the layer `LogitsProcessor` through
  `PluggableLayer.register_oot` (`layer.py`). All architectures compute their logits in this layer, so there is no model
  to register or to subclass. A wrapper of each model's `compute_logits` would also see states and logits, but not which
  request a row belongs to, and it would come before grammars and biases, which could then forbid the chosen token.
- Custom logits processors (`--logits-processors`) are asked after grammars, allowed tokens and biases. vLLM tells them
  the request of each row, whatever it batches, chunks, preempts or moves; this is the only stable source of it.
- `SamplingParams.extra_args`, which OpenAI clients set as `vllm_xargs`, carries options of a request, and
  `validate_params` refuses wrong ones with status 400.

vLLM has two model runners with an interface for processors each: the older one, which the CPU takes, tells of changes
to a batch whose rows are places; the newer one, which GPUs take, tells the place of each row at every step. This class
implements both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as RunnerV2LogitsProcessor

from langchain_mara.decoding.judging.rows import RowOptions, align_rows
from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DecodingOptions
from langchain_mara.serving.vllm_plugin.at_hand import AT_HAND
from langchain_mara.serving.vllm_plugin.layer import register
from langchain_mara.serving.vllm_plugin.settings import SECTION, Sampling, checked_config, request_options


class MaraLogitsProcessor(LogitsProcessor, RunnerV2LogitsProcessor):  # type: ignore[misc]
    """Leaves in the logits only what a look-ahead agent lets pass; plain requests of the batch stay as they are.

    Args:
        vllm_config: vLLM's configuration, with `{"mara": {"agent": …}}` in its `additional_config`; further entries
            are default options (`OPTION_NAMES`) and `allow_other_model`.
        device_or_state: Device of the logits, or the newer runner's state of requests, which has one.
        is_pin_memory: Ignored.

    Raises:
        MaraError: If the agent cannot be loaded or does not fit the model, or the configuration is not supported.
    """

    def __init__(self, vllm_config: Any, device_or_state: Any, is_pin_memory: bool = False) -> None:  # noqa: ARG002
        _refuse_configuration(vllm_config)
        register()  # for an installation whose entry points vLLM was told not to load
        agent, self._defaults, any_model = checked_config((vllm_config.additional_config or {}).get(SECTION) or {})
        model = vllm_config.model_config
        agent.check_fits(model.get_hidden_size(), model.model)
        self._device = torch.device(getattr(device_or_state, "device", device_or_state))
        self._places: dict[int, DecodingOptions] = {}
        self._aligned: tuple[Tensor, RowOptions] | None = None
        is_tied = getattr(model.hf_text_config, "tie_word_embeddings", False)

        def bind(embeddings: Tensor) -> nn.Module:
            if is_tied and not any_model:
                agent.check_fits(embeddings.shape[1], model.model, embeddings)
            bound: nn.Module = agent.bind(embeddings)  # type: ignore[operator]
            return bound

        AT_HAND.serve(bind)

    @classmethod
    def validate_params(cls, sampling_params: Sampling) -> None:
        """Refuses wrong options of a request.

        Args:
            sampling_params: The request's parameters.

        Raises:
            OptionsError: If an option is unknown, out of range, or contradicts others.
        """
        request_options(sampling_params, {})

    def is_argmax_invariant(self) -> bool:
        """False: the agent changes which logit is the largest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Called by the older runner before each pass, with the changes to its batch."""
        if process_dict_updates(self._places, batch_update, lambda params, *_: self._options(params)):
            rows = list(self._places)
            self._aligned = self._on_device(rows, rows)
        AT_HAND.expected = bool(self._places)

    def add_request(self, req_idx: int, sampling_params: Sampling) -> bool:
        """Called by the newer runner with the place of each request that enters its batch.

        Args:
            req_idx: The place, which another request may have had.
            sampling_params: The request's parameters.

        Returns:
            Whether it is aligned.
        """
        options = self._options(sampling_params)
        self._places.pop(req_idx, None)
        if options is not None:
            self._places[req_idx] = options
        return options is not None

    def apply_staged_writes(self) -> None:
        """Called by the newer runner before each pass."""
        AT_HAND.expected = bool(self._places)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Takes from the logits of aligned requests what the agent does not let pass.

        Args:
            logits: (rows, vocabulary) float32.
            ctx: The newer runner's place of each row.

        Returns:
            The same logits.
        """
        if ctx is not None:
            places = ctx.idx_mapping_np.tolist()
            rows = [row for row, place in enumerate(places) if place in self._places]
            self._aligned = self._on_device(rows, [places[row] for row in rows])
        if self._aligned is None:
            AT_HAND.forget()
            return logits
        outlook, agent = AT_HAND.take(len(logits))
        rows_to_align, options = self._aligned
        return align_rows(logits, rows_to_align, outlook, agent, options)

    def _options(self, params: Sampling) -> DecodingOptions | None:
        return request_options(params, self._defaults)

    def _on_device(self, rows: Sequence[int], places: Sequence[int]) -> tuple[Tensor, RowOptions] | None:
        if not rows:
            return None
        options = RowOptions.of([self._places[place] for place in places], self._device)
        return torch.tensor(rows).to(self._device), options


def _refuse_configuration(vllm_config: Any) -> None:
    """Refuses by name what cannot be served, or was not tested.

    Raises:
        OptionsError: If there is something.
    """
    parallel = vllm_config.parallel_config
    external = parallel.distributed_executor_backend == "external_launcher" and parallel.pipeline_parallel_size > 1
    refused: Mapping[str, bool] = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "batch-sharded sampling": getattr(parallel, "enable_batch_sharded_sampling", False),
        "pipeline parallelism with an external launcher": external,
        "watermarks": getattr(vllm_config, "watermark_config", None) is not None,
        "block diffusion": getattr(vllm_config, "diffusion_config", None) is not None,
    }
    if named := [name for name, is_on in refused.items() if is_on]:
        raise OptionsError(f"An agent cannot be asked in vLLM together with {' and '.join(named)}. Turn it off.")
