"""Workers of MaraSAC: Ray plays what this process would, one round ahead; kills and interruptions change nothing."""

import pytest
from ray_scripts import noted_by

# A separate process, because Ray needs sockets and this process has none.
SCRIPT = """
import json, signal, sys, tempfile
import psutil, ray, torch
from langchain_mara import MaraLLM
from langchain_mara.exceptions import MaraError
from langchain_mara_training import MaraSAC
from langchain_mara_training.reinforcement.rollout_workers import InProcessWorkers
from langchain_mara_training.reinforcement.setup import environment_of

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

fewer_vowels.version = "1"  # `rounds` changes, and the rewards do not

def kill_a_worker():  # they play the next round by now
    workers = [process for process in psutil.process_iter() if process.name().startswith("ray::_Worker")]
    workers[0].send_signal(signal.SIGKILL)
    killed.append(workers[0].pid)

def interrupt():
    raise KeyboardInterrupt

def weights(folder=None, what=None, policy=llm, **options):
    rounds.clear()
    do_in_round.update(what or {})
    sac = MaraSAC(policy, fewer_vowels, parallel=8, width=32, batch_size=32, updates=2, warm_up=1, evaluate_every=16,
                  episodes=48, output=folder, **{"workers": 2, "worker_options": {"num_cpus": 0}, **options})
    return sac.fit(PROMPTS).agent_.state_dict()

def distance(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)

class AheadHere(InProcessWorkers):
    plays_ahead = True
    def begin(self, prompts, seeds, weights):
        current = {name: tensor.clone() for name, tensor in self.llm.agent.state_dict().items()}
        self.llm.agent.load_state_dict(weights)
        played = super().begin(prompts, seeds, weights)()
        self.llm.agent.load_state_dict(current)
        return lambda: played

whole = weights()
results = {"worker killed": distance(whole, weights(what={3: kill_a_worker})), "killed": len(killed)}
with tempfile.TemporaryDirectory() as folder:
    try:
        weights(folder, {4: interrupt})
    except KeyboardInterrupt:
        results["interrupted in round"] = len(rounds)
    results["resumed"] = distance(whole, weights(folder))
    results["rounds after resuming"] = len(rounds)
MaraSAC._new_workers = lambda self: AheadHere(self._training.llm, environment_of(self), self.parallel)
results["played here"] = distance(whole, weights())
print("results", json.dumps(results), flush=True)
"""


@pytest.mark.slow
def test_killed_workers_and_learners_change_nothing() -> None:
    results = noted_by(SCRIPT)
    assert results["killed"] == 1
    assert results["worker killed"] == 0.0
    assert results["interrupted in round"] == 4
    assert results["rounds after resuming"] == 4  # the checkpoint holds two of six
    assert results["resumed"] == 0.0
    # Rows share passes with other rows here, which changes the last digits.
    assert results["played here"] == pytest.approx(0.0, abs=1e-3)
