"""Settings in YAML files, validated by pydantic."""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_mara.exceptions import OptionsError
from langchain_mara.options import DEFAULTS, options_error

MOST_BYTES = 2**16
"""Most bytes of a file of settings."""

Count = Annotated[int, Field(ge=1)]
AnySettings = TypeVar("AnySettings", bound=BaseModel)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads plain values only, and no aliases: a few lines of them expand to billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)


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
        OptionsError: If the file is not YAML, is too large, nested too deeply or uses aliases, or if a setting is
            unknown or out of range.
    """
    with file.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OptionsError(
            f"The {description} has more than {MOST_BYTES:,} bytes, and settings are short. Shorten the file."
        )
    try:
        settings = yaml.load(content.decode(), Loader=_Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise OptionsError(f"The {description} is nested too deeply to be read. Correct the file.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
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
