"""What was decided and why: the trace of an answer, token by token, its statistics and its views."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import isnan
from typing import TYPE_CHECKING, Any, Literal, overload

import jinja2
from markupsafe import Markup, escape
from transformers import PreTrainedTokenizerBase

from langchain_mara.requests import Decision

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Outcome = Literal["accepted", "steered", "fallback", "unasked"]
Step = tuple[Decision, str]
"""A decision, and the text it released."""

_CONTEXT = 4  # tokens that a candidate is decoded behind: no character has more bytes
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# Control characters have no place in HTML, and those that turn the direction of writing would turn what follows, too.
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(_TURNING, 0x2426)
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0x2426)


@dataclass
class DecisionStatistics:
    """Counts over decisions; adding one is all it takes to keep them.

    Attributes:
        tokens: Emitted tokens.
        decided: Positions at which the agent was asked.
        fallbacks: Decided positions at which every candidate was rejected.
        examined: Candidates the agent was asked about.
        nonfinite: Examined candidates whose state was NaN or infinite; they count as rejected.
        accepted_index: How often the candidate at each index was accepted.
        drafted: Emitted tokens that had been drafted.
    """

    tokens: int = 0
    decided: int = 0
    fallbacks: int = 0
    examined: int = 0
    nonfinite: int = 0
    accepted_index: Counter[int] = field(default_factory=Counter)
    drafted: int = 0

    @classmethod
    def of(cls, decisions: Iterable[Decision]) -> "DecisionStatistics":
        """Statistics over decisions."""
        statistics = cls()
        for decision in decisions:
            statistics.add(decision)
        return statistics

    def add(self, decision: Decision) -> None:
        """Counts one decision."""
        self.tokens += decision.token_id is not None
        self.drafted += decision.drafted
        if not decision.accept_probabilities:
            return
        self.decided += 1
        self.examined += len(decision.accept_probabilities)
        self.nonfinite += sum(map(isnan, decision.accept_probabilities))
        if decision.accepted:
            self.accepted_index[decision.index] += 1
        else:
            self.fallbacks += 1

    def as_info(self) -> dict[str, Any]:
        """Plain values for LangChain's `generation_info`; `accepted_index` as a list by index."""
        longest = max(self.accepted_index, default=-1) + 1
        return {
            "tokens": self.tokens,
            "decided": self.decided,
            "fallbacks": self.fallbacks,
            "examined": self.examined,
            "nonfinite": self.nonfinite,
            "accepted_index": [self.accepted_index[i] for i in range(longest)],
            "drafted": self.drafted,
        }


class Trace(Sequence[Step]):
    """One answer with all that was decided: its decisions in order, each with the text it released.

    Notebooks show it as `to_html` does.

    Args:
        prompt: Text or messages.
        steps: The decisions and texts.
        tokenizer: Of the policy model.
    """

    def __init__(
        self, prompt: str | Sequence[Mapping[str, Any]], steps: Iterable[Step], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.prompt = prompt
        self._steps = list(steps)
        self._tokenizer = tokenizer

    @overload
    def __getitem__(self, place: int) -> Step: ...
    @overload
    def __getitem__(self, place: slice) -> list[Step]: ...
    def __getitem__(self, place: int | slice) -> Step | list[Step]:
        return self._steps[place]

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"Trace(prompt={self.prompt!r}, text={self.text!r})"

    @cached_property
    def text(self) -> str:
        """The answer."""
        return "".join(text for _, text in self)

    @cached_property
    def statistics(self) -> DecisionStatistics:
        """Counts over all decisions."""
        return DecisionStatistics.of(decision for decision, _ in self)

    def to_html(self) -> str:
        """The answer in HTML: each token coloured by its accept probability, with its candidates on hover or focus.

        It needs neither network nor script, and is ASCII throughout, so that it can stand alone in a file or be put
        into any page.
        """
        html = _template().render(trace=self, prompt=prompt_text(self.prompt), candidates=self._candidates)
        return html.encode("ascii", "xmlcharrefreplace").decode()

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws how often the candidate at each index was accepted.

        Args:
            axes: To draw on; new ones by default.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        try:
            import matplotlib.pyplot as plt  # noqa: PLC0415 - it is optional, and slow to import
        except ModuleNotFoundError as error:
            needed = "Plots need matplotlib: pip install 'langchain-mara[plot]'"
            raise ModuleNotFoundError(f"{needed} ({error}).", name=error.name) from None
        axes = plt.subplots(layout="constrained")[1] if axes is None else axes
        counts = self.statistics.as_info()["accepted_index"]
        axes.bar(range(len(counts)), counts)
        axes.locator_params(integer=True)
        axes.set_xlabel("index of the accepted candidate")
        axes.set_ylabel("positions")
        axes.set_title(
            f"{self.statistics.decided} positions decided, {self.statistics.fallbacks} fallbacks", loc="left"
        )
        return axes

    def _candidates(self, place: int) -> list[tuple[str, float]]:
        """Text and accept probability of each candidate examined at a position."""
        decision = self[place][0]
        # Where a word begins, and which bytes make a character, depends on what stands before.
        before = [one.token_id for one, _ in self[max(0, place - _CONTEXT) : place] if one.token_id is not None]
        length = len(self._decode(before))
        return [
            (self._decode([*before, token])[length:].strip(_INCOMPLETE) or self._name(token), probability)
            for token, probability in zip(decision.candidates, decision.accept_probabilities, strict=False)
        ]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))

    def _name(self, token_id: int) -> str:
        """What the vocabulary calls a token that is no text of its own, such as a single byte."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))


def outcome(decision: Decision) -> Outcome:
    """How a token came to be emitted.

    Returns:
        `accepted` for the first candidate, `steered` for a later one, `fallback` where all were rejected, and
        `unasked` where there was no agent or no choice.
    """
    if not decision.accept_probabilities:
        return "unasked"
    if not decision.accepted:
        return "fallback"
    return "steered" if decision.index else "accepted"


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as text; messages with their roles, one a line."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def visible(text: str) -> Markup:
    """Text as inert HTML that shows it faithfully; line ends are marked, control characters are pictures."""
    return Markup('<span class="newline"></span>\n').join(map(escape, text.translate(_PICTURES).split("\n")))


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("langchain_mara", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"visible": visible, "outcome": outcome, "isnan": isnan}
    return environment.get_template("trace.html.j2")
