"""`mara serve --replicas`: a killed replica takes only its own answers along, and SIGTERM ends everything."""

import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from http_servers import mara_serve, wait_until
from ray_scripts import RAY_ENVIRONMENT

from langchain_mara.exceptions import OptionsError
from langchain_mara.server.ray_serve.running import Replicas

ASKED: Any = [{"role": "user", "content": "How do I boil an egg?"}]
LONG = {"mara": {"regex": "[a-z ]{900}"}}


def test_numbers_of_replicas_are_checked() -> None:
    with pytest.raises(OptionsError, match="--max-replicas 1 is below --replicas 2"):
        Replicas(2, 1, running=4, waiting=4)
    assert Replicas(1, 1, running=4, waiting=4, on_gpu=True).needs == {"num_cpus": 1, "num_gpus": 1}
    assert Replicas(1, 1000, running=4, waiting=4).needs == {"num_cpus": 1, "num_gpus": 0}


def replicas_of(server: psutil.Process) -> list[psutil.Process]:
    return [each for each in server.children(recursive=True) if each.name().startswith("ray::ServeRepl")]


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_killed_replica_loses_only_what_it_was_generating(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    outcomes: list[str] = []
    begun = threading.Semaphore(0)

    def stream(client: openai.OpenAI, number: int) -> None:
        try:
            settings: Any = {
                "model": "mara-demo",
                "messages": ASKED,
                "max_tokens": 1000,
                "seed": number,
                "stream": True,
            }
            chunks = iter(client.chat.completions.create(**settings, temperature=1.5, extra_body=LONG))
            next(chunks)
            begun.release()
            outcomes.append(list(chunks)[-1].choices[0].finish_reason)
        except openai.APIError as error:
            outcomes.append(str(error.code))

    with mara_serve("--replicas", "2", "--device", "cpu", "--drain-s", "60", seconds=600) as (server, client):
        assert server.poll() is None, server.stderr and server.stderr.read()
        process = psutil.Process(server.pid)
        asking = [threading.Thread(target=stream, args=(client, number)) for number in range(8)]
        for thread in asking:
            thread.start()
        assert all(begun.acquire(timeout=60) for _ in asking)
        before = replicas_of(process)
        assert len(before) == 2
        before[0].kill()
        plain: Any = {"model": "mara-demo+harmless", "messages": ASKED, "max_tokens": 8}
        assert client.chat.completions.create(**plain).choices[0].message.content
        for thread in asking:
            thread.join(120)
        counts = Counter(outcomes)
        assert sum(counts.values()) == 8
        assert set(counts) == {"stop", "replica_ended"}
        wait_until(lambda: len(replicas_of(process)) == 2, 120)
        assert before[1] in replicas_of(process)
        last = threading.Thread(target=stream, args=(client, 9))
        last.start()
        assert begun.acquire(timeout=60)
        everything = process.children(recursive=True)
        server.send_signal(signal.SIGTERM)
        last.join(120)
        assert outcomes[-1] == "stop"
        assert server.wait(60) == 0
        _, alive = psutil.wait_procs(everything, timeout=60)
        assert [each.name() for each in alive] == []


@pytest.mark.slow
@pytest.mark.enable_socket
def test_replicas_that_cannot_start_are_one_sentence(tmp_path: Path) -> None:
    with mara_serve(str(tmp_path / "missing"), "--replicas", "1", "--device", "cpu", seconds=300) as (server, _):
        assert server.wait(120) == 1
        assert server.stderr is not None
        message = " ".join(server.stderr.read().split())
        assert "The replicas did not start." in message
        assert str(tmp_path / "missing") in message
