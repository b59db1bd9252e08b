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
AnySettings = TypeVar("AnySettings", bound=BaseModel)


class Settings(BaseModel):
    """Settings of a YAML file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DecodingSettings(Settings):
    """How the policy model's candidates are chosen. Training and evaluation share these settings."""

    top_k: Count = DEFAULTS.top_k
    """Most candidates of a position."""
    top_p: float = Field(default=DEFAULTS.top_p, gt=0, le=1)
    """Nucleus mass, on the renormalized top-k."""
    max_new_tokens: Count = DEFAULTS.max_new_tokens
    """Most tokens of an answer."""


def read_settings(kind: type[AnySettings], file: Traversable | Path, description: str) -> AnySettings:
    """Reads the settings in a YAML file.

    Args:
        kind: Class of the settings.
        file: YAML file.
        description: What error messages call the file, after "the": such as `recipe llama-3.1-8b`.

    Raises:
        OptionsError: If the file is not YAML, or a setting is unknown or out of range.
    """
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionsError(f"The {description} is not YAML: {_reason(error)}. Correct the file.") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise OptionsError(f"The {description} holds no settings. Write one setting per line, such as episodes: 200.")
    try:
        return kind(**settings)
    except ValidationError as error:
        problems = str(options_error(error, _keys(kind))).removeprefix("Invalid options: ")
        raise OptionsError(f"In the {description}, {problems}") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question " Did you mean X?" for the nearest known name, or an empty text if none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return str(error) if mark is None else f"{getattr(error, 'problem', error)} in line {mark.line + 1}"


def _keys(kind: type[BaseModel]) -> list[str]:
    """All keys that the settings may have; nested ones as `outer.inner`."""
    keys = []
    for name, field in kind.model_fields.items():
        types = [item for item in (field.annotation, *get_args(field.annotation)) if isinstance(item, type)]
        inner_keys = [key for inner in types if issubclass(inner, BaseModel) for key in _keys(inner)]
        keys += [name, *(f"{name}.{key}" for key in inner_keys)]
    return keys
