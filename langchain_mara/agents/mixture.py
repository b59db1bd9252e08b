"""MixtureAgent: several agents of one kind on one policy model, which answer as one."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, cast, get_args

import torch
from torch import Tensor, nn

from langchain_mara._version import __version__
from langchain_mara.agents.agent import MaraAgent
from langchain_mara.agents.base import KIND, STATE_KIND, Agent
from langchain_mara.agents.look_ahead import CandidatesAhead, LookAheadAgent
from langchain_mara.agents.recommended_options import Recommended
from langchain_mara.agents.stacking import Combination, Rule, bind_members, log_odds_of, stack_members
from langchain_mara.exceptions import AgentMismatchError, CheckpointError, OptionsError

MEMBER_KINDS: dict[str, type[MaraAgent] | type[LookAheadAgent]] = {
    MaraAgent.kind: MaraAgent,
    LookAheadAgent.kind: LookAheadAgent,
}
"""Class of each kind of agent that a mixture may hold, by its name in `config.json`."""
_FEWEST = 2
_TERM = re.compile(r"(?:(?P<weight>\d+(?:\.\d+)?)\*)?(?P<name>.+)")


class MixtureAgent(Agent):
    """Several agents of one kind on one policy model, which answer as one: harmless, concise, on topic.

    The log-odds of a member are the logarithm of its accept probability over its reject probability. The rules are

    - `product`: the log-odds of the mixture are the weighted sum of those of its members, a product of experts;
    - `all`: each member must accept, so any may refuse. The accept probability is the smallest of all members;
    - `any`: it is enough that one member accepts. The accept probability is the largest of all members.

    All members are asked in one go. If they have one shape, their matrices are stacked.

    Args:
        members: The agents, of one kind and hidden size; not mixtures. They are shared, not copied.
        weights: Weight of each member, by default one over their number, so that a mixture of an agent with itself is
            the agent. Weights of 1 give the plain product of experts. A member of weight 0 has no say by any rule;
            `all` and `any` make no other use of weights.
        rule: `product`, `all` or `any`.
        library_version: Version of langchain-mara that created the mixture.
        recommended_options: See `Agent`; by default those on which all members agree.
        calibration: See `Agent`.

    Raises:
        AgentMismatchError: If members differ in kind or hidden size.
        OptionsError: If there are fewer than two members, or rule or weights are not possible.
    """

    kind: ClassVar[str] = "mixture"

    def __init__(
        self,
        members: Sequence[Agent],
        weights: Sequence[float] | None = None,
        rule: Rule = "product",
        library_version: str = __version__,
        recommended_options: Recommended | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        _check_members(members)
        weights = [1 / len(members)] * len(members) if weights is None else list(weights)
        _check_combination(len(members), weights, rule)
        options = _common_options(members) if recommended_options is None else recommended_options
        width = sum(each.width for each in members)
        super().__init__(members[0].hidden_size, width, None, library_version, options, None, calibration)
        self.members = nn.ModuleList(members)
        self.weights, self.rule = tuple(map(float, weights)), rule
        self.judges = members[0].judges
        self._hub_mixin_config = {
            KIND: self.kind,
            "members": [each._hub_mixin_config for each in members],  # noqa: SLF001 - the kinds' own configuration
            "weights": list(self.weights),
            "rule": rule,
            "library_version": library_version,
            "recommended_options": self.recommended_options,
            "calibration": calibration,
        }

    def weighted(self, *weights: float) -> Self:
        """A mixture of the same members with other weights, for one call or for good.

        Args:
            *weights: Weight of each member.
        """
        return self.with_config(weights=weights, calibration=None)  # which was found with the weights there are now

    def with_config(self, **changes: Any) -> Self:
        """A mixture of the same members with other settings; see `Agent.with_config`."""
        names = ("weights", "rule", "library_version", "recommended_options", "calibration")
        return type(self)(self.agents, **{**{name: getattr(self, name) for name in names}, **changes}).eval()

    @property
    def agents(self) -> list[Agent]:
        """The members."""
        return [cast("Agent", member) for member in self.members]

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any weight of any member, with the weights and with the rule."""
        parts = (super().fingerprint, self.weights, self.rule)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def check_fits(self, hidden_size: int, model_name: str, embeddings: Tensor | None = None) -> None:
        """Refuses a policy model whose states any member cannot read; see `Agent.check_fits`."""
        for member in self.agents:
            member.check_fits(hidden_size, model_name, embeddings)

    def forward(self, states: Tensor) -> Tensor:
        """Computes logits of both actions, for members that judge after.

        Args:
            states: (..., d) states in any float dtype.

        Returns:
            (..., 2) float32 logits of reject and accept.
        """
        odds = self._log_odds(states, 1)
        return torch.stack([torch.zeros_like(odds), odds], -1)

    def accept_probability(self, states: Tensor, accept_action: int = 1) -> Tensor:
        """Computes the accept probability of each state's candidate, for members that judge after.

        Args:
            states: (..., d) states in any float dtype.
            accept_action: Action that means accept for every member, 0 or 1.

        Returns:
            (...,) float32 accept probabilities in [0, 1]; NaN where a state is not finite.
        """
        return self._log_odds(states, accept_action).sigmoid()

    def on_device(self, device: torch.device) -> nn.Module:
        """A copy on a device, for members that judge after, with stacked matrices where members have one shape.

        Args:
            device: The device.
        """
        members = [member for member in self.agents if isinstance(member, MaraAgent)]
        return _Placed(stack_members(members, device), self._combination, device)

    def bind(self, output_embeddings: Tensor) -> nn.Module:
        """The mixture with its members' tables for a policy model, for members that judge before.

        Args:
            output_embeddings: (vocabulary, d) weight of the policy model's head, on the device to judge on.

        Raises:
            AgentMismatchError: If the embeddings have another size.
        """
        members = [member for member in self.agents if isinstance(member, LookAheadAgent)]
        return _Placed(bind_members(members, output_embeddings), self._combination, output_embeddings.device)

    def _log_odds(self, states: Tensor, accept_action: int) -> Tensor:
        """(…) log-odds that the mixture accepts, of (…, d) states."""
        return self._combination(accept_action)(torch.stack([log_odds_of(member(states)) for member in self.members]))

    def _combination(self, accept_action: int, device: torch.device | None = None) -> Combination:
        return Combination(torch.tensor(self.weights, device=device), self.rule, accept_action)

    @classmethod
    def _from_state(cls, state: dict[str, Any], source: str, **config: Any) -> Self:
        described = config.pop("members", None)
        if not isinstance(described, list):
            raise CheckpointError(f"{source}: config.json lists no members of the mixture. Save the mixture again.")
        members = [_member(state, source, i, each) for i, each in enumerate(described)]
        if left := {name for name in state if not _is_of_a_member(name, len(members))}:
            raise CheckpointError(f"{source}: no member of the mixture has the weight {min(left)}. Save it again.")
        try:
            return cls(members, **config).eval()
        except (AgentMismatchError, OptionsError) as error:
            raise CheckpointError(f"{source}: config.json describes no mixture. {error}") from None


class _Placed(nn.Module):
    """A mixture that judges candidates of one policy model.

    Args:
        members: Module that gives (members, …) log-odds of candidates.
        combination: Makes the combination of log-odds for an action that means accept.
        device: Device of the log-odds.
    """

    def __init__(self, members: nn.Module, combination: Any, device: torch.device) -> None:
        super().__init__()
        self.members = members
        self._combine = {action: combination(action, device) for action in (0, 1)}

    def accept_probability(self, candidates: Tensor | CandidatesAhead, accept_action: int = 1) -> Tensor:
        """(…) float32 accept probabilities of candidates, as the members' kind takes them."""
        odds: Tensor = self._combine[accept_action](self.members(candidates))
        return odds.sigmoid()


class MixtureText(NamedTuple):
    """A mixture as text.

    Attributes:
        names: What to load each member by.
        weights: Weights, or None if none is given.
        rule: How members are combined.
    """

    names: list[str]
    weights: list[float] | None
    rule: Rule

    def __str__(self) -> str:
        weights = [""] * len(self.names) if self.weights is None else [f"{weight!r}*" for weight in self.weights]
        terms = "+".join(weight + name for weight, name in zip(weights, self.names, strict=True))
        return terms if self.rule == "product" else f"{self.rule}:{terms}"


def read_mixture_text(text: str) -> MixtureText | None:
    """Reads `a+b`, `0.7*a+0.3*b`, `all:a+b` or `any:a+b`; None if a text names one agent only.

    Args:
        text: What the user gave. A member without weight has weight 1 if another one has a weight.

    Raises:
        OptionsError: If a member has no name.
    """
    if "+" not in text:
        return None
    prefix, _, rest = text.partition(":")
    rule = cast("Rule", prefix) if prefix in get_args(Rule) else "product"
    terms = [_TERM.fullmatch(term.strip()) for term in (rest if prefix in get_args(Rule) else text).split("+")]
    if not all(terms):
        raise OptionsError(f"{text!r} is no mixture of agents, because a name is missing. Write a+b or 0.7*a+0.3*b.")
    found = [term.groupdict() for term in terms if term]
    weights = [float(term["weight"] or 1) for term in found] if any(term["weight"] for term in found) else None
    return MixtureText([str(term["name"]).strip() for term in found], weights, rule)


def _check_members(members: Sequence[Agent]) -> None:
    if len(members) < _FEWEST:
        raise OptionsError(f"A mixture has at least two agents, not {len(members)}. Use the agent itself.")
    for member in members:
        if type(member).kind not in MEMBER_KINDS:
            raise AgentMismatchError(
                f"A mixture cannot hold a {type(member).__name__}. Give its own members instead, each with its weight."
            )
    first = members[0]
    for member in members:
        if member.judges != first.judges:
            raise AgentMismatchError(
                f"Agents that judge {first.judges} and {member.judges} a candidate goes through the model cannot be "
                "mixed, because they read different things. Distill the state agent into a look-ahead agent first."
            )
        if member.hidden_size != first.hidden_size:
            raise AgentMismatchError(
                f"Agents that read states of size {first.hidden_size} and {member.hidden_size} cannot be mixed. Use "
                "agents of the same policy model."
            )


def _check_combination(count: int, weights: Sequence[float], rule: str) -> None:
    if rule not in get_args(Rule):
        raise OptionsError(f"rule={rule!r} should be one of {', '.join(get_args(Rule))}.")
    finite = all(isinstance(weight, int | float) and 0 <= weight < float("inf") for weight in weights)
    if len(weights) != count or not finite or not any(weights):
        raise OptionsError(
            f"weights={list(weights)} should be {count} numbers from 0 on, of which one is above 0: one for each agent."
        )


def _common_options(members: Sequence[Agent]) -> Recommended:
    first = members[0].recommended_options
    return {k: v for k, v in first.items() if all(each.recommended_options.get(k) == v for each in members)}


def _prefix(number: int) -> str:
    return f"members.{number}."


def _is_of_a_member(name: str, count: int) -> bool:
    return any(name.startswith(_prefix(i)) for i in range(count))


def _member(state: Mapping[str, Tensor], source: str, number: int, described: Any) -> Agent:
    """A member of a saved mixture."""
    config = dict(described) if isinstance(described, Mapping) else {KIND: described}
    kind = config.pop(KIND, STATE_KIND)
    if not isinstance(kind, str) or kind not in MEMBER_KINDS:
        raise CheckpointError(
            f"{source} mixes an agent of kind {kind!r}, and mixtures hold {', '.join(MEMBER_KINDS)}. Save it again."
        )
    prefix = _prefix(number)
    own = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
    return MEMBER_KINDS[kind]._from_state(own, f"{source}, member {number}", **config)  # noqa: SLF001 - agents' own
