"""The app: OpenAI's paths over the running batch of the loaded model."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from langchain_mara._version import __version__
from langchain_mara.exceptions import MaraError, PromptError, QueueFullError
from langchain_mara.policy.model import PolicyModel
from langchain_mara.server.answering import respond
from langchain_mara.server.errors import ApiError, api_error, handle_errors
from langchain_mara.server.gatekeeper import Gatekeeper
from langchain_mara.server.metrics import Metrics
from langchain_mara.server.playground.page import playground
from langchain_mara.server.protocol.answers import Answering
from langchain_mara.server.protocol.chat import ChatAnswering, ChatRequest
from langchain_mara.server.protocol.completions import CompletionRequest, TextAnswering
from langchain_mara.server.protocol.messages import Message
from langchain_mara.server.protocol.responses import ResponseAnswering, ResponsesRequest
from langchain_mara.server.reading.body import ReadingRoute
from langchain_mara.server.served import ServedModel, ServedModels
from langchain_mara.server.settings import ServerSettings
from langchain_mara.server.state import ProcessState, ServerState

_STARTED = int(time.time())


class TokenizeRequest(BaseModel):
    """A request for the tokens of a text or of a conversation."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    """Name of a model of the server."""
    prompt: str | None = None
    """A text."""
    messages: list[Message] | None = Field(default=None, min_length=1)
    """A conversation, up to where the answer begins."""


def create_app(models: ServedModels, settings: ServerSettings | None = None) -> FastAPI:
    """The app that answers for models.

    Args:
        models: The models.
        settings: The settings; by default those of a server for this machine alone.
    """
    settings = settings or ServerSettings()
    metrics = Metrics(PolicyModel(models.default.llm.model))
    # FastAPI's own log of OpenTelemetry would hold requests that were refused, and so prompts.
    app = FastAPI(title="mara serve", version=__version__, docs_url=None, redoc_url=None, telemetry={"logs": False})
    app.state.server = ServerState(models=models, settings=settings, metrics=metrics)
    app.router.route_class = ReadingRoute
    handle_errors(app)
    for method, path, endpoint in _ROUTES:
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    guard(app)
    return app


def guard(app: FastAPI) -> None:
    """Puts what a request passes before it is read in front of an app, which knows its `ServerState`.

    Args:
        app: The app, whose paths are those of `create_app`.
    """
    state: ProcessState = app.state.server
    app.add_middleware(Gatekeeper, state=state, paths=frozenset(path for _, path, _ in _ROUTES))
    if origins := list(state.settings.allow_origins):
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


async def _chat(request: Request, body: ChatRequest) -> Response:
    models = _state(request).models
    model = models.find(body.model, body.mara.agent)
    chat = models.chat_of(model)
    _note_prompt(request, [message.model_dump(exclude_none=True) for message in body.messages])
    model.refuse_long(sum(message.length for message in body.messages), "messages")
    answering = await _begun(ChatAnswering, body, chat)
    return await respond(request, answering, stream=bool(body.stream))


async def _respond(request: Request, body: ResponsesRequest) -> Response:
    models = _state(request).models
    model = models.find(body.model, body.mara.agent)
    chat = models.chat_of(model)
    _note_prompt(request, body.input)
    model.refuse_long(len(body.input), "input")  # each item is at least one token
    answering = await _begun(ResponseAnswering, body, chat)
    return await respond(request, answering, stream=bool(body.stream))


async def _complete(request: Request, body: CompletionRequest) -> Response:
    model = _state(request).models.find(body.model, body.mara.agent)
    _note_prompt(request, body.prompt)
    model.refuse_long(max(map(len, body.prompts())), "prompt")
    answering = await _begun(TextAnswering, body, model.llm)
    return await respond(request, answering, stream=bool(body.stream))


async def _begun(kind: type[Answering], body: Any, model: Any) -> Answering:
    """The answers to a request. They are prepared in a thread, because long prompts take long to encode."""
    make: Any = kind
    try:
        answering: Answering = await run_in_threadpool(make, body, model)
    except QueueFullError as error:  # more than could ever wait, whatever else waits
        raise ApiError(400, str(error), param="n") from error
    except PromptError as error:
        raise ApiError(400, str(error), param=kind.prompt_field) from error
    except (ApiError, MaraError) as error:
        told = api_error(error)
        told.param = told.param and kind.param_names.get(told.param, told.param)
        raise told from error
    return answering


def _note_prompt(request: Request, prompt: Any) -> None:
    if _state(request).settings.log_prompts:
        request.scope["state"]["visit"].noted["prompt"] = prompt


async def _models(request: Request) -> Response:
    models = [_described(model) for model in _state(request).models]
    return JSONResponse({"object": "list", "data": models})


async def _model(request: Request, name: str) -> Response:
    return JSONResponse(_described(_state(request).models.find(name)))


def _described(model: ServedModel) -> dict[str, Any]:
    described = {"id": model.name, "object": "model", "created": _STARTED, "owned_by": "langchain-mara"}
    return {**described, "max_model_len": model.context, "mara": {"agent": model.agent}}


async def _tokenize(request: Request, body: TokenizeRequest) -> Response:
    models = _state(request).models
    model = models.find(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give prompt or messages, one of them.", param="prompt")
    if body.messages is None:
        ids = await run_in_threadpool(model.llm.encode, body.prompt or "")
    else:
        chat = models.chat_of(model)
        messages = chat._convert_input([message.as_langchain() for message in body.messages]).to_messages()
        ids = await run_in_threadpool(chat._encode, messages, [])
    return JSONResponse({"tokens": list(ids), "count": len(ids), "max_model_len": model.context})


async def _embeddings() -> Response:
    message = "This server generates text and makes no embeddings. Use a server for embedding models."
    raise ApiError(400, message, code="unsupported_endpoint")


async def _health() -> Response:
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    if _state(request).is_draining:
        return JSONResponse({"status": "draining"}, 503)
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    return PlainTextResponse(_state(request).metrics.text(), media_type="text/plain; version=0.0.4")


def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


_ROUTES: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
    ("GET", "/", playground),
    ("POST", "/v1/chat/completions", _chat),
    ("POST", "/v1/responses", _respond),
    ("POST", "/v1/completions", _complete),
    ("GET", "/v1/models", _models),
    ("GET", "/v1/models/{name:path}", _model),
    ("POST", "/v1/embeddings", _embeddings),
    ("POST", "/tokenize", _tokenize),
    ("GET", "/health", _health),
    ("GET", "/ready", _ready),
    ("GET", "/metrics", _metrics),
]
