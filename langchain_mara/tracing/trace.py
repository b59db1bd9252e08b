"""The trace of an answer: what was decided for each token, and why."""

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
"""A decision, and the text that it released."""

_CONTEXT = 4  # tokens decoded before a candidate: a character has at most four bytes
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Trace(Sequence[Step]):
    """The decisions of one answer in order, each with the text that it released.

    Notebooks display it as the HTML of `to_html`.

    Args:
        prompt: Text or messages.
        steps: Decisions and their texts.
        tokenizer: The policy model's tokenizer.
    """

    def __init__(
        self, prompt: str | Sequence[Mapping[str, Any]], steps: Iterable[Step], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.prompt = prompt
        self._steps = list(steps)
        self._tokenizer = tokenizer

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        return self._steps[index]

    def __len__(self) -> int:
        return len(self._steps)

    def __repr__(self) -> str:
        return f"Trace(prompt={self.prompt!r}, text={self.text!r})"

    @cached_property
    def text(self) -> str:
        """The text of the answer."""
        return "".join(text for _, text in self)

    @cached_property
    def statistics(self) -> DecisionStatistics:
        """Counts over all decisions."""
        return DecisionStatistics.of(decision for decision, _ in self)

    def to_html(self) -> str:
        """The answer as HTML: tokens are colored by accept probability and show their candidates on hover or focus.

        It needs no network and no scripts and is pure ASCII, so you can save it as a file or embed it in any page.
        """
        return render_html(self, self._candidates)

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws how often the candidate at each index was accepted.

        Args:
            axes: Axes to draw on; new ones by default.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        return plot_accepted_indices(self.statistics, axes)

    def _candidates(self, index: int) -> list[tuple[str, float]]:
        """Text and accept probability of each candidate examined at a position."""
        decision = self[index][0]
        # Spaces before words and characters of several bytes depend on the tokens before.
        steps_before = self[max(0, index - _CONTEXT) : index]
        tokens_before = [before.token_id for before, _ in steps_before]
        length = len(self._decode(tokens_before))
        return [
            (self._decode([*tokens_before, token])[length:].strip(_INCOMPLETE) or self._name(token), probability)
            for token, probability in zip(decision.candidates, decision.accept_probabilities, strict=False)
        ]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))

    def _name(self, token_id: int) -> str:
        """Name in the vocabulary of a token without text of its own, such as a single byte."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id))
