"""Fields that requests of OpenAI's API share: which count, which are refused, which change nothing."""

import secrets
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from langchain_mara.gates.kinds import Gate
from langchain_mara.options import Order, Strategy

_SAME = (
    "temperature", "top_p", "stop", "n", "presence_penalty", "frequency_penalty", "max_tokens",
)  # fmt: skip
_OWN_NAMES = {"threshold": "accept_threshold"}
_DRAWS = ("random", "sampled")

_StopString = Annotated[str, Field(min_length=1)]
StopStrings = _StopString | Annotated[list[_StopString], Field(max_length=16)]
"""One stop string, or several."""


def _refusal(reason: str) -> Callable[[Any], Any]:
    def refuse(value: Any) -> Any:
        if value is not None and value is not False:
            raise ValueError(f"is not supported. {reason}")
        return value

    return refuse


LogitBias = Annotated[Any, AfterValidator(_refusal("Use regex, choice or grammar under mara to restrict an answer"))]
"""A field that is refused: biases of single tokens."""
NotText = Annotated[Any, AfterValidator(_refusal("This server reads and writes text only"))]
"""A field that is refused: media."""
Elsewhere = Annotated[Any, AfterValidator(_refusal("It runs on the servers of its provider"))]
"""A field that is refused: services of a provider."""
Old = Annotated[Any, AfterValidator(_refusal("Use tools and tool_choice"))]
"""A field that is refused: what OpenAI itself has replaced."""
Stored = Annotated[Any, AfterValidator(_refusal("This server keeps no answers"))]
"""A field that is refused: what asks for a memory of requests."""


class MaraFields(BaseModel):
    """What this library adds to a request, under `mara`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    agent: str | None = None
    """Name of an agent instead of the one in the model's name; `none` for the plain model."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Accept probability that a candidate must exceed."""
    strategy: Strategy | None = None
    """Which candidate is emitted."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """Weight of the agent in the `guided` strategy."""
    order: Order | None = None
    """Order in which the agent examines candidates."""
    fallback: int | None = None
    """Index of the candidate to emit if all are rejected."""
    gate: Gate | None = None
    """Where the agent is asked."""
    top_k: int | None = Field(default=None, ge=1)
    """Most candidates at a position."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a candidate, as a share of the most probable one's."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Penalty of tokens that were said before."""
    regex: str | None = Field(default=None, max_length=10_000)
    """A regular expression that the answer matches."""
    grammar: str | None = Field(default=None, max_length=100_000)
    """A grammar that the answer conforms to."""
    choice: list[str] | None = Field(default=None, min_length=1, max_length=1000)
    """Texts of which the answer is one."""
    trace: bool = False
    """Whether the answer comes with every token's candidates and their accept probabilities."""

    def options(self) -> dict[str, Any]:
        """The fields that were given, under the names of `MaraLLM`."""
        given = self.model_dump(exclude_none=True, exclude={"agent", "trace", "gate"})
        named = {_OWN_NAMES.get(name, name): value for name, value in given.items()}
        return named if self.gate is None else {**named, "gate": self.gate}


class StreamOptions(BaseModel):
    """What a stream holds besides the answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    """Whether the last chunk holds the numbers of tokens."""
    include_obfuscation: Any = None
    """Changes nothing here."""


class RequestFields(BaseModel):
    """Fields of chat and text requests."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, min_length=1)
    """Name of a model of the server; by default the one with the first agent."""
    stream: bool | None = None
    """Whether the answer comes in chunks while it is generated."""
    stream_options: StreamOptions | None = None
    """What a stream holds besides the answer."""
    n: int | None = Field(default=None, ge=1, le=128)
    """Number of answers."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Seed of samples; drawn anew for each request by default."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Temperature of samples; by default the most probable candidates come first, without chance."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus mass of the candidates."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Penalty of tokens that the answer holds."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Penalty of tokens for each time that the answer holds them."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the answer."""
    stop: StopStrings | None = None
    """Strings that end the answer and are not part of it."""
    mara: MaraFields = Field(default_factory=MaraFields)
    """What this library adds."""

    logit_bias: LogitBias = None
    """Refused."""
    user: Any = None
    """Changes nothing."""

    def options(self) -> dict[str, Any]:
        """What was given, as options of `MaraLLM` and `ChatMara`."""
        options = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        options |= self.mara.options()
        if options.get("n", 1) > 1 and not options.keys() & {"temperature", "order", "strategy"}:
            options["temperature"] = 1.0  # as in OpenAI's API; several answers without chance would all be the same
        if self.seed is not None:
            options["seed"] = self.seed % 2**62
        elif _draws(options):
            options["seed"] = secrets.randbelow(2**62)
        return options

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def _draws(options: dict[str, Any]) -> bool:
    return bool(options.get("temperature")) or options.get("order") == "sampled" or options.get("strategy") in _DRAWS
