"""Kinds of agents, mixtures and gates: tokens/s over plain `generate`, as loaded and packed.

    look-ahead   judges before a candidate goes through the model: one pass per token
    mixture      two look-ahead agents that answer as one, asked together
    state        judges the state after a candidate; width tuned by measuring
    trust gate   the state agent, asked only where it is certain
    entropy gate the state agent, asked only where the policy model is uncertain

The model is random and has the 135 M shape, or is loaded by name. A hash decides in place of each agent's network,
which runs all the same, so that a fixed share of candidates is accepted. All systems answer the same prompts,
interleaved; ratios are formed within each repeat, and their medians are reported. Agents alone are measured with every
share; the mixture, which costs the same with any, and the gates with the first.

    python benchmarks/agents.py                                            all rows
    python benchmarks/agents.py --batch 32 --only mixture --only "gate"    some
"""

from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Annotated, Any

import torch
import typer
from decoding import (
    CoinAgent,
    Measured,
    PassCounter,
    Run,
    load,
    make_prompts,
    measure,
    packed_twin,
    ratio,
    run_generate,
)
from rich.progress import track
from rich.table import Table
from tables import Output, console, publish
from torch import Tensor

from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.base import Agent
from langchain_mara.agents.look_ahead import CandidatesAhead, LookAheadAgent
from langchain_mara.agents.mixture import MixtureAgent
from langchain_mara.decoding.loop import decode
from langchain_mara.decoding.request import Request
from langchain_mara.gates.kinds import EntropyGate, Gate, TrustGate
from langchain_mara.options import DecodingOptions
from langchain_mara.policy.model import PolicyModel

LOOK_AHEAD, MIXTURE, STATE = "look-ahead", "mixture", "state"
TRUST, ENTROPY = "state, trust gate", "state, entropy gate"
YARDSTICKS = 3
"""Systems that the others are compared with: `generate`, `generate` packed, and look-ahead at the first share."""


class LookAheadCoin(LookAheadAgent):
    """Costs as much as a look-ahead agent, and accepts a fixed share of candidates; uniform in [0, 1)."""

    def accept_probability(self, candidates: CandidatesAhead, table: Tensor, accept_action: int = 1) -> Tensor:
        """Accept probabilities, (n,) float32. The network runs, and its result is replaced."""
        network = super().accept_probability(candidates, table, accept_action)
        return (candidates.log_probabilities * 1e3 + 0 * network).remainder(1.0)


class CertainCoin(CoinAgent):
    """A coin that is sure of half of its verdicts: a trust gate skips about half of the positions."""

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        """Accept probabilities, (...,) float32: where a second hash says so, so near the threshold as to be unsure."""
        coin = super().accept_probability(states, accept_action)
        unsure = (states.float().sum(-1) * 7e3).remainder(1.0) < 0.5  # noqa: PLR2004 - half
        return torch.where(unsure, 0.5 + (coin - 0.5) * 1e-3, coin)


def make_agents(policy: PolicyModel) -> dict[str, Agent]:
    """The agents to measure, by name."""
    size, device = policy.hidden_size, policy.device
    torch.manual_seed(0)
    agents: dict[str, Agent] = {
        LOOK_AHEAD: LookAheadCoin(size),
        # Stacked matrices bypass the coins; a look-ahead agent costs the same whatever it accepts.
        MIXTURE: MixtureAgent([LookAheadAgent(size), LookAheadAgent(size)]),
        STATE: CoinAgent(size),
        TRUST: CertainCoin(size),
        ENTROPY: CoinAgent(size),
    }
    return {name: agent.to(device).eval() for name, agent in agents.items()}


def run_agent(policy: PolicyModel, agent: Agent | MaraAgent, prompts: list[list[int]], options: DecodingOptions) -> int:
    """This library's decode loop. Returns the number of emitted tokens."""
    requests = [Request(prompt, options, agent) for prompt in prompts]
    return sum(1 for _ in decode(policy, requests, batch_size=len(prompts), width=None, draft=0))


def median_entropy(policy: PolicyModel, prompts: list[list[int]], options: DecodingOptions) -> float:
    """Median entropy of the policy model at the positions of plain answers, in nats."""
    requests = [Request(prompt, options, None, keep_states=True) for prompt in prompts]
    decisions = list(decode(policy, requests, batch_size=len(prompts), width=1, draft=0))
    kept = [decision.candidate_states for decision in decisions]
    return median(float(states.at_hand.entropy) for states in kept if states is not None)


def systems(
    plain: Any, policy: PolicyModel, prompts: list[list[int]], new_tokens: int, shares: list[int]
) -> dict[str, Run]:
    """What is compared, by name; the yardsticks come first.

    Args:
        plain: The model as loaded.
        policy: The model as this library runs it.
        prompts: Prompts of one batch.
        new_tokens: Tokens of each answer.
        shares: Percent of candidates accepted. Mixture and gates are measured with the first.
    """
    agents = make_agents(policy)
    options = {share: DecodingOptions(max_new_tokens=new_tokens, accept_threshold=1 - share / 100) for share in shares}
    gates: dict[str, Gate] = {
        TRUST: TrustGate(alpha=1.0),
        ENTROPY: EntropyGate(threshold=median_entropy(policy, prompts, options[shares[0]])),
    }
    asked = [(LOOK_AHEAD, share) for share in shares] + [(MIXTURE, shares[0])]
    asked += [(STATE, share) for share in shares] + [(gated, shares[0]) for gated in gates]
    runs: dict[str, Run] = {
        "generate": lambda: run_generate(plain, prompts, new_tokens),
        "generate, packed": lambda: run_generate(policy.model, prompts, new_tokens),
    }
    for name, share in asked:
        chosen = options[share].model_copy(update={"gate": gates.get(name)})
        runs[f"{name}, {share} %"] = partial(run_agent, policy, agents[name], prompts, chosen)
    return runs


def main(
    model: Annotated[str | None, typer.Option(help="Hub id or folder; by default a random model, 135 M.")] = None,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    batch: Annotated[list[int], typer.Option(help="Prompts per batch; repeatable.")] = [1, 32],  # noqa: B006
    accept: Annotated[list[int], typer.Option(help="Percent accepted; repeatable.")] = [50, 70, 90],  # noqa: B006
    only: Annotated[list[str] | None, typer.Option(help="Systems whose name contains this; repeatable.")] = None,
    prompt_tokens: Annotated[int, typer.Option()] = 64,
    new_tokens: Annotated[int, typer.Option()] = 24,
    repeats: Annotated[int, typer.Option()] = 3,
    output: Output = None,
) -> None:
    """Prints one table of ratios per batch size."""
    torch.set_flush_denormal(True)
    plain = load(model, device, getattr(torch, dtype))
    policy = PolicyModel(packed_twin(plain))
    counter = PassCounter([plain, policy.model], [policy])
    for size in track(batch, console=console, transient=True):
        prompts = make_prompts(size, prompt_tokens, policy.vocabulary_size)
        runs = selected(systems(plain, policy, prompts, new_tokens, accept), only)
        results = measure(runs, counter, repeats, device)
        publish(_table(f"agents, batch {size}, {device}, {dtype}", results), output, [asdict(each) for each in results])


def selected(runs: dict[str, Run], only: list[str] | None) -> dict[str, Run]:
    """The yardsticks, and the systems whose name contains one of the texts; all without texts."""
    unknown = [text for text in only or () if not any(text in name for name in runs)]
    if unknown:
        raise typer.BadParameter(f"No system is called {unknown[0]!r}. There are: {'; '.join(runs)}.")
    yardsticks = list(runs)[:YARDSTICKS]
    return {
        name: run for name, run in runs.items() if not only or name in yardsticks or any(text in name for text in only)
    }


def _table(title: str, results: list[Measured]) -> Table:
    yardsticks = results[:YARDSTICKS]
    columns = [f"over {yardstick.system}" for yardstick in yardsticks]
    table = Table("system", "tokens/s", *columns, "passes/token", title=title)
    for result in results:
        ratios = [f"{ratio(result, yardstick):.2f}" for yardstick in yardsticks]
        table.add_row(
            result.system, f"{median(result.tokens_per_second):.1f}", *ratios, f"{result.passes_per_token:.3f}"
        )
    return table


if __name__ == "__main__":
    typer.run(main)
