"""Episodes: the reference's 72, number by number, and the project's own rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_mara_training.generation.generate import AnswerStart, generate_answers
from langchain_mara_training.generation.states import candidate_features
from langchain_mara_training.reinforcement.environment import Episode, episode_of, play, steps_of
from langchain_mara_training.reinforcement.penalties import EnvironmentOptions
from langchain_mara_training.rewards.weighted import WeightedRewards
from safetensors.torch import load_file
from torch import Tensor

from langchain_mara import LookAheadAgent, MaraAgent, MaraLLM
from langchain_mara.exceptions import PromptError

VARIANTS = {
    "paper": {},
    "no_cond_prob": {"conditional": False},
    "kl_abs": {"distance": "absolute"},
    "kl_mse": {"distance": "squared"},
    "kl_full": {"distance": "full"},
    "no_postback": {"post_back": "none"},
    "baseline": {"baseline": -15.0, "scale": 0.5},
    "reverse": {},
    "top1_last": {},
}
ORDERS = {"reverse": "reversed", "top1_last": "top-1-last"}


class Replayed(MaraAgent):
    """Accepts what was accepted in a recorded episode, pass by pass, each position in one."""

    def __init__(self, steps: list[dict[str, Any]], hidden_size: int) -> None:
        super().__init__(hidden_size, 4)
        self.actions = {step["position"]: step["actions"] for step in steps}
        self.position = -1

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        self.position += 1
        actions = self.actions.get(self.position, [])
        return torch.tensor([[float(action) for action in actions] + [0.0] * (states.shape[1] - len(actions))])


@pytest.fixture(scope="module")
def recorded(golden: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    return json.loads((golden / "episodes.json").read_text()), load_file(golden / "episodes.safetensors")


@pytest.fixture(scope="module")
def models(golden: Path) -> dict[str, MaraLLM]:
    names = sorted({record["model"] for record in json.loads((golden / "episodes.json").read_text())})
    return {name: MaraLLM.from_model_id(str(golden / "models" / name), device="cpu") for name in names}


def reference_episode(record: dict[str, Any], llm: MaraLLM, golden: Path) -> Episode:
    options = record["options"]
    how = {"top_k": options["topk"], "top_p": options["topp"], "max_new_tokens": options["max_new_token"]}
    order = ORDERS.get(record["variant"], "descending")
    playing = llm.with_agent(Replayed(record["steps"], 64)).model_copy(update={**how, "order": order, "width": 6})
    (answered,) = generate_answers(
        playing,
        [AnswerStart(record["prompt_ids"])],
        1,
        keep_states=True,
        strategy="sampled",
        fallback=0 if order == "reversed" else -1,
    )
    assert answered.token_ids == record["generated_ids"]
    score = float(np.dot(options["reward_multiplier"], record["reward_model_scores"]))
    agent = MaraAgent.from_reference(golden / "agents" / record["agent"])
    environment = EnvironmentOptions.reference(**VARIANTS[record["variant"]])
    return episode_of(steps_of(answered, agent, environment), score, environment)


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_episodes_are_the_reference_s(
    recorded: tuple[list[dict[str, Any]], dict[str, Tensor]], models: dict[str, MaraLLM], golden: Path, variant: str
) -> None:
    records, tensors = recorded
    of_variant = [record for record in records if record["variant"] == variant]
    assert of_variant
    for record in of_variant:
        episode = reference_episode(record, models[record["model"]], golden)
        transitions = record["transitions"]
        assert episode.actions.tolist() == transitions["action"]
        torch.testing.assert_close(episode.states, tensors[f"{record['id']}/state"], atol=1e-4, rtol=0)
        following = tensors[f"{record['id']}/next_state"]
        torch.testing.assert_close(episode.states[1:], following[:-1], atol=1e-4, rtol=0)
        assert transitions["done"] == [False] * (len(episode.actions) - 1) + [True]
        assert episode.rewards.numpy() == pytest.approx(np.array(transitions["reward_after_final"]), abs=1e-4)
        assert episode.usable


def count_vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


PROMPTS = [{"prompt": text} for text in ("How do I boil an egg?", "How do I pick a lock?", "What is a good book?")]


def look_ahead_agent(llm: MaraLLM) -> LookAheadAgent:
    """An agent that is unsure, so that it rejects and accepts; its say depends on all that it reads."""
    torch.manual_seed(0)
    agent = LookAheadAgent(llm.model.config.hidden_size, 16, 4)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return agent.eval()


@pytest.fixture(params=["state", "look-ahead"])
def played(demo_llm: MaraLLM, request: pytest.FixtureRequest) -> tuple[MaraLLM, list[Episode]]:
    agent = MaraLLM.demo(device="cpu").agent if request.param == "state" else look_ahead_agent(demo_llm)
    llm = demo_llm.with_agent(agent).model_copy(update={"max_new_tokens": 12})
    return llm, play(llm, PROMPTS * 2, WeightedRewards(count_vowels), EnvironmentOptions(), range(6), batch_size=4)


def test_an_episode_is_an_answer_and_its_steps(played: tuple[MaraLLM, list[Episode]]) -> None:
    llm, episodes = played
    assert llm.agent is not None
    for episode in episodes:
        decided = [decision for decision in episode.answer.decisions if len(decision.candidates) > 1]
        assert episode.score == count_vowels([episode.answer.text])[0]
        assert len(episode.actions) == sum(len(decision.accept_probabilities) for decision in decided)
        assert int(episode.actions.sum()) == sum(decision.accepted for decision in decided)
        accept = llm.agent(episode.states).softmax(-1)[:, 1]
        expected = [p for decision in decided for p in decision.accept_probabilities]
        assert accept.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({episode.answer.text for episode in episodes}) > 3


def test_rewards_are_the_score_discounted_and_the_penalty_of_what_was_emitted(
    played: tuple[MaraLLM, list[Episode]],
) -> None:
    _, episodes = played
    for episode in episodes:
        place, later = 0, int(episode.actions.sum())
        for decision in [decision for decision in episode.answer.decisions if len(decision.candidates) > 1]:
            p = decision.accept_probabilities
            reached = float(np.prod([1 - q for q in p[:-1]]))
            if decision.accepted:
                chance = reached * p[-1]
                if decision.index == 0 and len(decision.candidates) == 1:
                    chance = 1.0
            else:
                chance = float(np.prod([1 - q for q in p])) + p[0]
            assert decision.candidate_states is not None
            penalty = 0.1 * (np.log(chance) - float(decision.candidate_states.log_probabilities[decision.index]))
            for i in range(len(p)):
                last_accepts = int(episode.actions[-1])
                share = 0.99 ** (later - last_accepts)
                expected = episode.score * share - (penalty if i == len(p) - 1 else 0.0)
                assert float(episode.rewards[place]) == pytest.approx(expected, abs=1e-4)
                later -= int(episode.actions[place])
                place += 1


def test_the_whole_candidate_set_of_a_look_ahead_agent_is_compared(demo_llm: MaraLLM) -> None:
    llm = demo_llm.with_agent(look_ahead_agent(demo_llm)).model_copy(update={"max_new_tokens": 8, "top_k": 5})
    options = EnvironmentOptions(log_probability="log-softmax", conditional=False)
    (episode,) = play(llm, PROMPTS[:1], WeightedRewards(lambda **_: [0.0]), options, [3])
    decision = next(each for each in episode.answer.decisions if len(each.candidates) > 1)
    kept = decision.candidate_states
    assert kept is not None
    assert len(kept.states) == 0  # nothing but the chosen candidate went through the model
    embeddings = llm.model.get_output_embeddings().weight.detach()
    features = candidate_features(decision, len(decision.candidates), embeddings)
    accept = look_ahead_agent(demo_llm)(features).softmax(-1)[:, 1].detach()
    penalties = 0.1 * (accept.log_softmax(-1) - kept.log_probabilities)
    count = len(decision.accept_probabilities)
    assert episode.rewards[:count].tolist() == pytest.approx((-penalties[:count]).tolist(), abs=1e-5)


def test_an_episode_depends_on_its_seed_alone(played: tuple[MaraLLM, list[Episode]]) -> None:
    llm, episodes = played
    again = play(llm, PROMPTS[1:2], WeightedRewards(count_vowels), EnvironmentOptions(), [4], batch_size=1)[0]
    assert again.answer.token_ids == episodes[4].answer.token_ids
    assert again.actions.tolist() == episodes[4].actions.tolist()
    other_seeds = play(llm, PROMPTS[1:2] * 8, WeightedRewards(count_vowels), EnvironmentOptions(), range(10, 18))
    assert len({tuple(episode.answer.token_ids) for episode in other_seeds}) > 1


def test_where_all_are_rejected_decoding_s_fallback_is_emitted(demo_llm: MaraLLM) -> None:
    class Never(MaraAgent):
        def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
            return torch.zeros(states.shape[:-1])

    llm = demo_llm.with_agent(Never(demo_llm.model.config.hidden_size, 4)).model_copy(update={"max_new_tokens": 5})
    environments = (EnvironmentOptions(), EnvironmentOptions.reference())
    default, reference = (
        play(llm, PROMPTS[:1], WeightedRewards(count_vowels), options, [0])[0] for options in environments
    )
    plain = demo_llm.with_agent(None).invoke(PROMPTS[0]["prompt"], max_new_tokens=5)
    assert default.answer.text == plain != reference.answer.text
    assert default.actions.sum() == 0
    decided = [decision for decision in reference.answer.decisions if len(decision.candidates) > 1]
    assert [decision.index for decision in decided] == [len(decision.candidates) - 1 for decision in decided]
    assert int(reference.actions.sum()) == len(decided)


def test_scores_that_are_missing_make_an_episode_unusable() -> None:
    llm = MaraLLM.demo(device="cpu").model_copy(update={"max_new_tokens": 4})
    (episode,) = play(llm, PROMPTS[:1], WeightedRewards(lambda **_: [None]), EnvironmentOptions(), [0])
    assert not episode.usable
    assert len(episode.actions)


def test_refusals(demo_llm: MaraLLM) -> None:
    with pytest.raises(ValueError, match="need an agent"):
        play(demo_llm.with_agent(None), PROMPTS[:1], WeightedRewards(count_vowels), EnvironmentOptions(), [0])
    with pytest.raises(PromptError, match="Shorten"):
        play(demo_llm, [{"prompt": "egg " * 5000}], WeightedRewards(count_vowels), EnvironmentOptions(), [0])
