"""Runs vLLM on jobs of token ids, in a process of its own: `python tests/vllm_engine.py JOB.json RESULT.json`.

A job holds `engine` (arguments of `LLM`), and `batches`: lists of requests with `prompt` (token ids), `params` (of
`SamplingParams`, with `extra_args`) and, for structured output, `choice` or `regex`. The result holds for each batch
the answers, with `tokens`, `logs` (log-probabilities of the tokens, where asked for) and `prompt_logs`, or the error's
text where vLLM refuses the batch; and the number of `preemptions`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams


def sampling(request: dict[str, Any]) -> SamplingParams:
    """Parameters of a request."""
    constraint = {name: request[name] for name in ("choice", "regex") if name in request}
    structured = StructuredOutputsParams(**constraint) if constraint else None
    params = dict(request["params"])
    if "logit_bias" in params:  # JSON has no whole numbers for names
        params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
    return SamplingParams(**params, structured_outputs=structured)


def answers(llm: LLM, batch: list[dict[str, Any]]) -> Any:
    """What vLLM answers to requests that it gets at once."""
    try:
        prompts = [TokensPrompt(prompt_token_ids=request["prompt"]) for request in batch]
        outputs = llm.generate(prompts, [sampling(request) for request in batch], use_tqdm=False)
    except (ValueError, VLLMValidationError) as error:
        return str(error)
    return [
        {
            "tokens": list(output.outputs[0].token_ids),
            "logs": [each[token].logprob for each, token in zip(logs, output.outputs[0].token_ids, strict=True)]
            if (logs := output.outputs[0].logprobs)
            else None,
            "prompt_logs": [
                None if each is None else each[token].logprob
                for each, token in zip(output.prompt_logprobs, output.prompt_token_ids, strict=True)
            ]
            if output.prompt_logprobs
            else None,
            "cached": output.num_cached_tokens,
        }
        for output in outputs
    ]


def preemptions(llm: LLM) -> float:
    """How often a request had to make room for others; 0 if the engine keeps no statistics."""
    if not llm.llm_engine.log_stats:
        return 0
    return sum(each.value for each in llm.get_metrics() if each.name == "vllm:num_preemptions")


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    engine = LLM(**job["engine"])
    result = {"batches": [answers(engine, batch) for batch in job["batches"]], "preemptions": preemptions(engine)}
    Path(sys.argv[2]).write_text(json.dumps(result))
