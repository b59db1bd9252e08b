"""Values without quotes become what the schema says."""

from typing import Any

import pytest

from langchain_mara.text.tool_formats.families.typed_values import typed

SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "any": {},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "both": {"type": ["string", "integer"]},
        "named": {"enum": ["1", "2"]},
        "size": {"$ref": "#/$defs/Size"},
        "loop": {"$ref": "#/properties/loop"},
    },
    "$defs": {"Size": {"type": "array"}},
}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "5", "5"),
        ("text", "null", "null"),
        ("text", '"quoted"', '"quoted"'),
        ("count", "5", 5),
        ("count", "five", "five"),
        ("any", "5", 5),
        ("any", "True", True),
        ("any", "five", "five"),
        ("any", "{'a': None}", {"a": None}),
        ("maybe", "null", None),
        ("maybe", "5", "5"),
        ("both", "5", 5),
        ("both", "true", "true"),
        ("named", "1", "1"),
        ("size", "[1]", [1]),
        ("loop", "5", 5),
        ("unheard", "x", "x"),
        ("any", "[" * 100_000, "[" * 100_000),
    ],
)
def test_values_fit_the_schema(key: str, text: str, value: Any) -> None:
    found = typed(text, SCHEMA, key)
    assert (found, type(found)) == (value, type(value))
