"""Decoding options, batch settings and their defaults. Each default of the library is written here, once."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_mara.exceptions import OptionsError

Order = Literal["descending", "reversed", "top-1-last", "sampled"]
"""Order in which candidates are examined."""
Strategy = Literal["first-accept", "max-prob", "random", "sampled"]
"""Which of the accepted candidates is emitted."""

SYNONYMS = {"max_tokens": "max_new_tokens"}
"""Names that LangChain's chat models share, and ours."""

DEFAULT_QUEUE_SIZE = 4096
"""Most prompts that may wait for a loaded model."""


class DecodingFields(BaseModel):
    """The fields of `DecodingOptions`, which the LangChain classes have too. Defaults are the paper's."""

    top_k: int = Field(default=40, ge=1)
    """Most candidates a position may have."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus mass, on the renormalised top-k."""
    order: Order = "descending"
    """Order in which the agent is asked: `descending`, `reversed`, `top-1-last` or `sampled`."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the `sampled` order alone, which is descending at 0: no other order depends on it."""
    strategy: Strategy = "first-accept"
    """`first-accept`, `max-prob` (highest accept probability), `random` (uniform over accepted), or `sampled`: the
    first that a draw accepts, each with its accept probability, whatever the threshold."""
    accept_threshold: float = Field(default=0.5, ge=0, le=1)
    """A candidate is accepted when its accept probability is above this; 0.5 is the paper's argmax."""
    accept_action: Literal[0, 1] = 1
    """The agent's action that means accept; 0 swaps the two, as a control."""
    fallback: int = 0
    """Index of the candidate emitted when all are rejected, in order of examination; negative from
    the end, clamped to the set. In `reversed` order it counts from the end, so that 0 is the most
    probable candidate there too, as in the reference."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Upper limit of emitted tokens, EOS included."""
    min_new_tokens: int = Field(default=0, ge=0)
    """EOS is no candidate before this many tokens."""
    seed: int = 0
    """Of the `sampled` order and the `random` and `sampled` strategies; a row's draws depend on nothing else."""


class DecodingOptions(DecodingFields):
    """How one prompt is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def fallback_index(self, count: int) -> int:
        """Which of `count` candidates, in order of examination, is emitted when all are rejected."""
        index = min(self.fallback, count - 1) if self.fallback >= 0 else max(self.fallback + count, 0)
        return count - 1 - index if self.order == "reversed" else index

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Builds options, turning pydantic's report into one readable sentence.

        Args:
            **values: Fields of this class.

        Raises:
            OptionsError: If a field is unknown or out of range.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise options_error(error, cls.model_fields) from None


DEFAULTS = DecodingOptions()
"""The decoding options where nothing else is said."""


class BatchConfig(NamedTuple):
    """What decides speed and memory, never results. Only requests with equal settings share a batch.

    Attributes:
        batch_size: Most sequences at a time.
        width: Most siblings of a sequence in one pass; None chooses the width pass by pass, by measuring.
        prefix_memory: Most bytes of keys and values kept for prompts that begin like earlier ones.
        draft: Most drafted tokens of a sequence in one pass.
        compile: Whether passes over siblings run as compiled graphs.
    """

    batch_size: int = 8
    width: int | None = None
    prefix_memory: int = 512 * 2**20
    draft: int = 0
    compile: bool = False


BATCH_DEFAULTS = BatchConfig()
"""The batch settings where nothing else is said."""


def options_error(error: ValidationError, known: Iterable[str]) -> OptionsError:
    """One sentence for a pydantic report; an unknown name comes with the nearest known one."""
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "arguments"
        if item["type"] == "extra_forbidden":
            parts.append(f"{name} is unknown{_suggestion(name, known)}")
        elif item["type"] == "missing":
            parts.append(f"{name} is required")
        else:
            message = item["msg"].replace("Input should", "should").removeprefix("Value error, ")
            parts.append(f"{name}={item['input']!r} {message}")
    return OptionsError("Invalid options: " + "; ".join(parts) + ".")


def refuse_unknown(given: Iterable[str], allowed: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names that are not allowed, each with the nearest known one.

    Raises:
        OptionsError: Naming every offender.
    """
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        named = "; ".join(f"{name} is unknown{_suggestion(name, known)}" for name in unknown)
        raise OptionsError(f"Invalid options: {named}.")


def canonical(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under this library's names; both names of one at once are refused.

    Raises:
        OptionsError: If one is given twice.
    """
    twice = [f"{name} and {ours}" for name, ours in SYNONYMS.items() if name in kwargs and ours in kwargs]
    if twice:
        raise OptionsError(f"Invalid options: {'; '.join(twice)} mean the same, give one of them.")
    return {SYNONYMS.get(name, name): value for name, value in kwargs.items()}


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
