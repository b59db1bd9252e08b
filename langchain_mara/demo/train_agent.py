"""Trains the demonstration's agent on preference pairs: a token is accepted if its answer was chosen.

The simplest honest supervision (ALGORITHM.md section 5): after the prefix two answers share, every
token of the helpful one is labelled accept and every token of the other one reject.
"""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langchain_mara.agent import MaraAgent
from langchain_mara.candidates import candidate_sets
from langchain_mara.demo.corpus import PreferencePair, preference_pairs
from langchain_mara.loading import load_model
from langchain_mara.policy import PolicyModel
from langchain_mara.templates import encode_messages

_WIDTH = 256
_PAIRS_PER_TOPIC = 24
_EPOCHS = 12
_BATCH = 512
_LEARNING_RATE = 1e-3
_WEIGHT_DECAY = 1e-2


class LabelledStates(NamedTuple):
    """States of candidate tokens with their labels.

    Attributes:
        states: (tokens, d) float32.
        accept: (tokens,) int64, 1 for tokens of a chosen answer.
    """

    states: Tensor
    accept: Tensor


def build_agent(model_folder: Path, agent_folder: Path, seed: int) -> None:
    """Trains the agent on the training topics and saves it.

    Args:
        model_folder: The demonstration's policy model.
        agent_folder: Where the agent goes; it is created.
        seed: Of the pairs, the initial weights and the order of batches.
    """
    torch.manual_seed(seed)
    model, tokenizer = load_model(model_folder, dtype=torch.float32, device="cpu", local_files_only=True)
    pairs = preference_pairs("train", seed, _PAIRS_PER_TOPIC)
    labelled = label(PolicyModel(model), tokenizer, pairs)
    agent = MaraAgent(model.config.hidden_size, width=_WIDTH, policy_model="langchain-mara demo")
    fit(agent, labelled)
    agent.save_pretrained(agent_folder)


@torch.inference_mode()
def label(policy: PolicyModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair]) -> LabelledStates:
    """States of both answers' tokens from the first difference on, with their labels.

    Only tokens the agent can be asked about are kept: members of a candidate set of at least two.
    """
    states, accept = [], []
    for pair in track(pairs, "labelling"):
        prompt = encode_messages(tokenizer, [{"role": "user", "content": pair.prompt}])
        chosen, rejected = _answer_ids(tokenizer, pair.chosen), _answer_ids(tokenizer, pair.rejected)
        both = zip(chosen, rejected, strict=False)
        shared = sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], both))
        for answer, verdict in ((chosen, 1), (rejected, 0)):
            own = _states(policy, prompt + answer[:shared], answer[shared:])
            states.append(own)
            accept.append(torch.full((own.shape[0],), verdict))
    return LabelledStates(torch.cat(states), torch.cat(accept))


def _states(policy: PolicyModel, prefix: list[int], answer: list[int]) -> Tensor:
    """States of the answer's tokens that belong to a candidate set of at least two."""
    hidden = policy.backbone(input_ids=torch.tensor([prefix + answer]), use_cache=False).last_hidden_state[0]
    sets = candidate_sets(policy.logits(hidden[len(prefix) - 1 : -1]))
    columns = torch.arange(sets.token_ids.shape[1])
    is_member = (sets.token_ids == torch.tensor(answer)[:, None]) & (columns < sets.counts[:, None])
    own: Tensor = hidden[len(prefix) :][is_member.any(-1) & (sets.counts > 1)]
    return own


def _answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    ids: list[int] = tokenizer(answer, add_special_tokens=False).input_ids
    return [*ids, tokenizer.eos_token_id]


def fit(agent: MaraAgent, labelled: LabelledStates) -> None:
    """Cross-entropy with AdamW and a linear decay of the learning rate, in place."""
    steps = _EPOCHS * -(-len(labelled.accept) // _BATCH)
    optimizer = torch.optim.AdamW(agent.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    agent.train()
    for _ in track(range(_EPOCHS), "fitting"):
        for batch in torch.randperm(len(labelled.accept)).split(_BATCH):
            loss = torch.nn.functional.cross_entropy(agent(labelled.states[batch]), labelled.accept[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    agent.eval()
