"""The interpreter ends while requests run: no hang, no abort, and whoever waits gets an error."""

import subprocess
import sys

import pytest

from langchain_mara.exceptions import InterpreterExitError

pytestmark = pytest.mark.slow
SECONDS = 60
"""How long a process may take; the answers it asks for take hours."""
START = """
import asyncio, atexit, os, sys, threading, time
from langchain_mara import MaraLLM
llm = MaraLLM.demo(device="cpu", batch_size=2)
hours = {"max_new_tokens": 10**9, "min_new_tokens": 10**9}
# The demo model's context ends an answer, so each one is followed by thousands more.
prompts = ["hi"] * 2000

def answer():
    try:
        llm.generate(prompts, **hours)
    except BaseException as error:
        print(type(error).__name__, flush=True)

def running():
    while not any(thread.name == "mara-decoding" for thread in threading.enumerate()):
        time.sleep(0.01)
    time.sleep(0.3)
"""
ENDS = {
    "threads that wait": "[threading.Thread(target=answer).start() for _ in range(3)]; running()",
    "a daemon thread that waits": "threading.Thread(target=answer, daemon=True).start(); running()",
    "an unread stream": "stream = iter(llm.stream('hi')); next(stream); answers = threading.Thread(target=answer); "
    "answers.start(); running()",
    "an error in the main thread": "threading.Thread(target=answer).start(); running(); 1 / 0",
    "an exit": "threading.Thread(target=answer).start(); running(); sys.exit(3)",
    "a loop that is over": "asyncio.run(asyncio.wait_for(asyncio.sleep(0), 1)); "
    "threading.Thread(target=lambda: asyncio.run(llm.agenerate(prompts, **hours))).start(); running()",
}
RETURN_CODES = {"an error in the main thread": 1, "an exit": 3}


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_exits_at_once(end: str) -> None:
    done = run(ENDS[end])
    assert done.returncode == RETURN_CODES.get(end, 0), done.stderr[-2000:]
    assert "Fatal" not in done.stderr
    waiting = {"threads that wait": 3, "a daemon thread that waits": None, "a loop that is over": 0}.get(end, 1)
    if waiting is not None:
        assert done.stdout.count(InterpreterExitError.__name__) == waiting
    if end == "a loop that is over":
        assert InterpreterExitError.__name__ in done.stderr


def test_nothing_begins_after_the_end() -> None:
    code = "atexit.register(answer)"
    assert InterpreterExitError.__name__ in run(code).stdout


def test_a_forked_child_answers_for_itself() -> None:
    code = """
expected = llm.invoke("hi", max_new_tokens=4)
threading.Thread(target=answer, daemon=True).start()
running()
for _ in range(3):
    child = os.fork()
    if not child:
        os._exit(0 if llm.invoke("hi", max_new_tokens=4) == expected else 5)
    assert os.waitpid(child, 0)[1] == 0
print("children answered")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "children answered" in done.stdout
