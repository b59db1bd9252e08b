"""Runs completions and records the decisions of each."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from langchain_mara.serving.completion import Completion, CompletionDelta, GenerationJob, complete
from langchain_mara.tracing.trace import Trace


def record(job: GenerationJob, prompts: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> list[Trace]:
    """Runs a job and records its decisions.

    Args:
        job: The job, with equally many completions for each prompt.
        prompts: The prompts, for the traces.
        tokenizer: The model's tokenizer.

    Returns:
        The trace of each completion, in order.
    """
    deltas: dict[Completion, list[CompletionDelta]] = {completion: [] for completion in job.completions}
    for delta in complete(job):
        deltas[delta.completion].append(delta)
    repeated = (prompt for prompt in prompts for _ in range(len(deltas) // len(prompts)))
    return [
        Trace(prompt, [(delta.decision, delta.text) for delta in answer], tokenizer)
        for prompt, answer in zip(repeated, deltas.values(), strict=True)
    ]
