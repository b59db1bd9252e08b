"""`mara serve`: answers for a model and its agents over HTTP."""

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_mara.cli import one_sentence
from langchain_mara.exceptions import OptionsError
from langchain_mara.options import BATCH_DEFAULTS, DEFAULT_QUEUE_SIZE, DEFAULTS
from langchain_mara.server.settings import ServerSettings, read_keys

if TYPE_CHECKING:
    from fastapi import FastAPI

    from langchain_mara.server.served import ServedModels

_DEMO, _DEMO_AGENT = "mara-demo", "harmless"
_NAME = re.compile(r"[\w.-]+")
_WHERE = ServerSettings()


def serve(
    model: Annotated[
        str | None, typer.Argument(help="Hub id or folder; by default the bundled model and its agent.")
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]AGENT", help="An agent: folder, hub id, .pth, or repo:file; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; by default its own.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _WHERE.host,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = _WHERE.port,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one per line, of which a request needs one.")
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Answer others than this machine without a key.")] = False,
    device: Annotated[str | None, typer.Option(help="Device such as cuda or cpu.")] = None,
    batch_size: Annotated[int, typer.Option(help="Most answers in one pass.", min=1)] = BATCH_DEFAULTS.batch_size,
    queue_size: Annotated[
        int, typer.Option(help="Most prompts that may wait; further requests get 503.", min=1)
    ] = DEFAULT_QUEUE_SIZE,
    max_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer, if the request does not say.", min=1)
    ] = DEFAULTS.max_new_tokens,
    timeout: Annotated[
        float | None, typer.Option(help="Most seconds of a request, waiting included; then it gets 408.")
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Most seconds for running answers once the server is told to end.", min=0)
    ] = _WHERE.drain,
    requests_per_key: Annotated[
        int | None, typer.Option(help="Most requests of a key at a time; further ones get 429.", min=1)
    ] = None,
    body_limit: Annotated[int, typer.Option(help="Most bytes of a request.", min=1)] = _WHERE.body_limit,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may ask from a browser; repeatable.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Processes that each load the model, run by Ray Serve.", min=1)
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="More of them, up to this many, while requests wait.", min=1)
    ] = None,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log a line of JSON for each request.")] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log prompts, too, with --json-log.")] = False,
) -> None:
    """Answers OpenAI's requests for a model, plain and with each of its agents.

    Example: mara serve
    """
    with one_sentence("serve"):
        settings = ServerSettings(
            host=host,
            port=port,
            api_keys=() if api_key_file is None else read_keys(api_key_file),
            no_auth=no_auth,
            body_limit=body_limit,
            drain=drain_s,
            requests_per_key=requests_per_key,
            allow_origins=tuple(allow_origin or ()),
            json_log=json_log,
            log_prompts=log_prompts,
        )
        named = dict(map(_named, agent or ()))
        options = {
            "device": device,
            "batch_size": batch_size,
            "queue_size": queue_size,
            "max_new_tokens": max_tokens,
            "timeout": timeout,
        }
        make = partial(load_app, _absolute(model), name, named, options)
        if replicas is not None:
            from langchain_mara.server.ray_serve.running import Replicas, serve_replicas

            counts = Replicas(replicas, max_replicas or replicas, batch_size, queue_size, on_gpu=_is_gpu(device))
            serve_replicas(make, settings, counts)
            return
        if max_replicas is not None:
            raise OptionsError("--max-replicas needs --replicas, the number to begin with. Add it.")
        from langchain_mara.server.process import serve as run

        run(make(settings))


def load_app(
    model: str | None, name: str | None, agents: dict[str, str], options: dict[str, Any], settings: ServerSettings
) -> "FastAPI":
    """The app of a process that computes answers.

    Args:
        model: Hub id or folder; None for the bundled model.
        name: Name of the model; None for its own.
        agents: Agents by their names.
        options: Options of the model.
        settings: Where the process listens, who may ask, and how much.

    Raises:
        MaraError: If the model or an agent cannot be loaded.
    """
    from langchain_mara.server.app import create_app

    return create_app(_load(model, name, agents, options), settings)


def _load(model: str | None, name: str | None, agents: dict[str, str], options: dict[str, Any]) -> "ServedModels":
    from langchain_mara.llms import MaraLLM
    from langchain_mara.loading.models import DEMO_AGENT_FOLDER
    from langchain_mara.server.served import ServedModels

    if model is None:
        llm = MaraLLM.demo(agent=None, **options)
        return ServedModels(llm, name or _DEMO, agents or {_DEMO_AGENT: DEMO_AGENT_FOLDER})
    llm = MaraLLM.from_model_id(model, **options)
    own_name = Path(model).resolve().name if Path(model).is_dir() else model
    return ServedModels(llm, name or own_name, agents)


def _absolute(source: str | None) -> str | None:
    """A path that is valid from every folder; any other source as it is."""
    return source if source is None or not Path(source).exists() else str(Path(source).absolute())


def _is_gpu(device: str | None) -> bool:
    import torch

    return torch.cuda.is_available() if device is None else device.startswith("cuda")


def _named(given: str) -> tuple[str, str]:
    """Name and source of an agent: `NAME=AGENT`, or the last part of where it is."""
    name, _, source = given.rpartition("=")
    if not name:
        name = re.split(r"[/:]", source.rstrip("/"))[-1].removesuffix(".pth")
    if not _NAME.fullmatch(name):
        raise OptionsError(f"--agent {given}: {name!r} is no name. Give --agent NAME={source}.")
    return name, _absolute(source) or source
