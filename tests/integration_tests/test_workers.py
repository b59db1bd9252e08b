"""Workers of MaraSAC: Ray plays what this process would, a round ahead; killed or interrupted, nothing changes."""

import json
import os
import subprocess
import sys

import pytest

# A process of its own: Ray's sockets are not this one's, which has none.
SCRIPT = """
import json, signal, sys, tempfile
import psutil, ray, torch
from langchain_mara import MaraLLM
from langchain_mara.exceptions import MaraError
from langchain_mara_training import MaraSAC
from langchain_mara_training.reinforcement.rollout_workers import InProcessWorkers

torch.set_num_threads(1)
torch.set_flush_denormal(True)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
PROMPTS = ["How do I boil an egg?", "How do I pick a lock?", "What is a good book?", "How do I clean a carpet?"]
llm = MaraLLM.demo(agent=None, device="cpu", max_new_tokens=10, top_k=10)
rounds, do_in_round, killed = [], {}, []

def fewer_vowels(completions, **_):
    rounds.append(len(completions))
    do_in_round.pop(len(rounds), lambda: None)()
    return [-float(sum(text.count(letter) for letter in "aeiou")) for text in completions]

def kill_a_worker():  # they play the next round by now
    workers = [one for one in psutil.process_iter() if one.name().startswith("ray::_Worker")]
    workers[0].send_signal(signal.SIGKILL)
    killed.append(workers[0].pid)

def interrupt():
    raise KeyboardInterrupt

def weights(folder=None, what=None, own=llm, **options):
    rounds.clear()
    do_in_round.update(what or {})
    sac = MaraSAC(own, fewer_vowels, parallel=8, width=32, batch_size=32, updates=2, warm_up=1, evaluate_every=16,
                  episodes=48, output=folder, **{"workers": 2, "worker_options": {"num_cpus": 0}, **options})
    return sac.fit(PROMPTS).agent_.state_dict()

def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)

class AheadHere(InProcessWorkers):
    ahead = True
    def begin(self, prompts, seeds, weights):
        now = {name: one.clone() for name, one in self.llm.agent.state_dict().items()}
        self.llm.agent.load_state_dict(weights)
        played = super().begin(prompts, seeds, weights)()
        self.llm.agent.load_state_dict(now)
        return lambda: played

whole = weights()
found = {"worker killed": distance(whole, weights(what={3: kill_a_worker})), "killed": len(killed)}
with tempfile.TemporaryDirectory() as folder:
    try:
        weights(folder, {4: interrupt})
    except KeyboardInterrupt:
        found["interrupted in round"] = len(rounds)
    found["resumed"] = distance(whole, weights(folder))
    found["rounds after resuming"] = len(rounds)
MaraSAC._new_players = lambda self: AheadHere(self._training.llm, self._environment, self.parallel)
found["played here"] = distance(whole, weights())
print("found", json.dumps(found), flush=True)
"""

# Ray gives its workers the lowest priority. On a busy machine they then take minutes to start, and time out.
RAY_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "300",
}


@pytest.mark.slow
def test_killed_workers_and_learners_change_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **RAY_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray itself prints, too, whenever something died.
    (line,) = (one for one in done.stdout.splitlines() if one.startswith("found "))
    found = json.loads(line.removeprefix("found "))
    assert found["killed"] == 1
    assert found["worker killed"] == 0.0
    assert found["interrupted in round"] == 4
    assert found["rounds after resuming"] == 4  # the checkpoint holds two of six
    assert found["resumed"] == 0.0
    # Rows share passes with other rows here, which changes the last digits.
    assert found["played here"] == pytest.approx(0.0, abs=1e-3)
