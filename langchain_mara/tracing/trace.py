"""What was decided and why: the trace of an answer, token by token."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from transformers import PreTrainedTokenizerBase

from langchain_mara.decoding.request import Decision
from langchain_mara.tracing.statistics import DecisionStatistics
from langchain_mara.tracing.views import plot_accepted_indices, render_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Step = tuple[Decision, str]
"""A decision, and the text it released."""

_CONTEXT = 4  # tokens that a candidate is decoded behind: no character has more bytes
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


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
        return render_html(self, self._candidates)

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws how often the candidate at each index was accepted.

        Args:
            axes: To draw on; new ones by default.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        return plot_accepted_indices(self.statistics, axes)

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
