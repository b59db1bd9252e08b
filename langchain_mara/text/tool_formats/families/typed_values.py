"""Values that models write without quotes, turned into what the schema of a tool says they are."""

import ast
import json
from collections.abc import Mapping
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def typed(text: str, schema: Mapping[str, Any], key: str) -> Any:
    """The value of an argument: a text where the schema allows a text and nothing else fits, otherwise JSON.

    Args:
        text: The value as the model wrote it, without quotes.
        schema: JSON schema of the tool's arguments.
        key: Name of the argument.
    """
    kinds = _kinds((schema.get("properties") or {}).get(key), schema)
    if kinds == {"string"}:
        return text
    try:
        value = _value(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    if "string" not in kinds:
        return value
    return value if any(_is(value, kind) for kind in kinds - {"string"}) else text


def _value(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except ValueError:
        # Some templates write Python's True and None.
        return ast.literal_eval(text.strip())


def _is(value: Any, kind: str) -> bool:
    number_is_a_bool = isinstance(value, bool) and kind in ("integer", "number")
    return isinstance(value, _KINDS.get(kind, ())) and not number_is_a_bool


def _kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that a schema allows; empty if it does not say."""
    if not isinstance(schema, Mapping) or depth > len(root) + 8:
        return set()
    if isinstance(reference := schema.get("$ref"), str):
        found: Any = root
        for part in reference.removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        return _kinds(found, root, depth + 1)
    kind = schema.get("type")
    kinds = {kind} if isinstance(kind, str) else set(kind or ())
    values = [*(schema.get("enum") or ()), *([schema["const"]] if "const" in schema else ())]
    if not kinds:
        kinds = {"string" if isinstance(value, str) else next(k for k in _KINDS if _is(value, k)) for value in values}
    return kinds.union(
        *(_kinds(part, root, depth + 1) for name in ("anyOf", "oneOf", "allOf") for part in schema.get(name) or ())
    )
