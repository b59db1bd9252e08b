"""Decoding options that were found together with an agent, and when they count."""

from collections.abc import Mapping
from typing import Any

from langchain_mara.options import DEFAULTS, DecodingOptions, refuse_unknown

_RECOMMENDABLE = frozenset({"top_k", "top_p", "accept_threshold", "strategy", "strength"})
Recommended = Mapping[str, float | str]
"""Values of options by name."""


def checked_options(options: Recommended) -> dict[str, float | str]:
    """Recommended options, checked.

    Raises:
        OptionsError: If one cannot be recommended or is out of range.
    """
    refuse_unknown(options, _RECOMMENDABLE, _RECOMMENDABLE)
    parsed = DecodingOptions.parse(**options)
    return {name: getattr(parsed, name) for name in options}


def changed_options(fields: Any, left: Recommended, taken: Recommended) -> dict[str, float | str]:
    """The options that change with the agent: recommended ones, where nobody has chosen another value.

    Args:
        fields: Object with the decoding options as attributes.
        left: Recommended options of the agent before.
        taken: Recommended options of the new agent.
    """
    unchosen = [name for name in {**left, **taken} if getattr(fields, name) == left.get(name, getattr(DEFAULTS, name))]
    return {name: taken.get(name, getattr(DEFAULTS, name)) for name in unchosen}
