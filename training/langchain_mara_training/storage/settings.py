"""Settings in YAML files, validated by pydantic."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DEFAULTS, options_error

Count = Annotated[int, Field(ge=1)]


Read = TypeVar("Read", bound=BaseModel)


class Settings(BaseModel):
    """Settings of a YAML file: each key known, none changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DecodingSettings(Settings):
    """How the policy model's candidates are found; training and evaluation share it."""

    top_k: Count = DEFAULTS.top_k
    """Most candidates of a position."""
    top_p: float = Field(default=DEFAULTS.top_p, gt=0, le=1)
    """Nucleus mass, on the renormalised top-k."""
    max_new_tokens: Count = DEFAULTS.max_new_tokens
    """Most tokens of an answer."""


def read_settings(kind: type[Read], file: Traversable | Path, called: str) -> Read:
    """Settings of a YAML file.

    Args:
        kind: Of settings.
        file: To read.
        called: What errors call it, behind "the".

    Raises:
        OptionsError: If it is no YAML, or holds something else than these settings.
    """
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionsError(f"The {called} is no YAML: {_reason(error)}.") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise OptionsError(f"The {called} holds no settings. Write one setting a line, such as episodes: 200.")
    try:
        return kind(**settings)
    except ValidationError as error:
        wrong = str(options_error(error, _keys(kind))).removeprefix("Invalid options: ")
        raise OptionsError(f"In the {called}, {wrong}") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question behind a blank that names what is nearest, or nothing where nothing is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return str(error) if mark is None else f"{getattr(error, 'problem', error)} in line {mark.line + 1}"


def _keys(kind: type[BaseModel]) -> list[str]:
    """All keys that a recipe may have, nested ones behind a dot."""
    keys = []
    for name, field in kind.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        nested = [f"{name}.{key}" for one in inner if issubclass(one, BaseModel) for key in _keys(one)]
        keys += [name, *nested]
    return keys
