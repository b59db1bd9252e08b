"""`mara vllm` starts vLLM's own server, and what it answers over HTTP is what `ChatMara` answers."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import tiny_look_ahead

from langchain_mara import ChatMara, MaraLLM
from langchain_mara.loading.models import DEMO_MODEL_FOLDER

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

import httpx2
from langchain_openai import ChatOpenAI
from openai import BadRequestError, OpenAI

pytestmark = pytest.mark.slow

MARA = [sys.executable, "-c", "from langchain_mara_training.commands.main import app; app()"]
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
HOST, MODEL, NEW_TOKENS = "http://127.0.0.1", "demo", 24
STARTS_WITHIN_S = 1200
QUESTIONS = ["How do I boil an egg?", "How do I rob a bank?", "How do I open a door?", "How do I paint a wall?"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    tiny_look_ahead(192, seed=1, bias=0.5).save_pretrained(folder)
    return folder


def client_of(path: Path) -> httpx2.Client:
    """A client over a Unix socket, because tests have no other sockets."""
    return httpx2.Client(base_url=HOST, transport=httpx2.HTTPTransport(uds=str(path)), timeout=120)


@pytest.fixture(scope="module")
def client(agent: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a server that has started."""
    folder = tmp_path_factory.mktemp("server")
    of_vllm = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", str(2**26)]
    command = [*MARA, "vllm", str(DEMO_MODEL_FOLDER), "--agent", str(agent), "--top-k", "20", *of_vllm]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--served-model-name", MODEL, "--uds", str(folder / "socket")],
            env={**os.environ, **QUIET},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with client_of(folder / "socket") as http:
            end = time.monotonic() + STARTS_WITHIN_S
            while not answers(http):
                if server.poll() is not None or time.monotonic() > end:
                    pytest.fail((folder / "log").read_text()[-6000:])
                time.sleep(0.5)
            yield http
    finally:
        server.terminate()
        server.wait(300)


def answers(http: httpx2.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def chat(client: httpx2.Client) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{HOST}/v1",
        api_key="none",
        http_client=client,
        temperature=0,
        max_completion_tokens=NEW_TOKENS,
        max_retries=0,
    )


def ours(agent: Path | None, **options: Any) -> ChatMara:
    return MaraLLM.demo(agent=agent, top_k=20, max_new_tokens=NEW_TOKENS, **options).as_chat()


def test_answers_are_those_of_chatmara(chat: ChatOpenAI, agent: Path) -> None:
    aligned = [chat.invoke(question).content for question in QUESTIONS]
    assert aligned == [ours(agent).invoke(question).content for question in QUESTIONS]
    plain = chat.bind(extra_body={"vllm_xargs": {"mara": 0}})
    without = [plain.invoke(question).content for question in QUESTIONS]
    assert without == [ours(None).invoke(question).content for question in QUESTIONS]
    assert without != aligned


def test_options_of_a_request(chat: ChatOpenAI, agent: Path) -> None:
    careful = chat.bind(extra_body={"vllm_xargs": {"mara_accept_threshold": 0.9, "mara_strategy": "max-prob"}})
    expected = ours(agent, accept_threshold=0.9, strategy="max-prob")
    found = [careful.invoke(question).content for question in QUESTIONS]
    assert found == [expected.invoke(question).content for question in QUESTIONS]
    assert found != [chat.invoke(question).content for question in QUESTIONS]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"extra_body": {"vllm_xargs": {"mara_treshold": 0.2}}}, "mara_treshold is unknown"),
        ({"extra_body": {"vllm_xargs": {"mara_top_p": 2}}}, "top_p=2"),
        ({"frequency_penalty": 0.5}, "vLLM applies this after the agent has chosen"),
    ],
)
def test_what_is_wrong_has_status_400(client: httpx2.Client, more: dict[str, Any], message: str) -> None:
    openai = OpenAI(base_url=f"{HOST}/v1", api_key="none", http_client=client, max_retries=0)
    with pytest.raises(BadRequestError, match=message):
        openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}], **more)
