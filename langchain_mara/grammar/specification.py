"""What an answer is to conform to, as users give it: a response format, a regular expression, a grammar or a choice."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, PydanticUserError, TypeAdapter, field_validator

from langchain_mara.exceptions import GrammarError, OptionsError

# As llama.cpp has it: JSON in one line or indented, and an end to a model that would write blanks for ever.
_BLANKS = r"( |\n{1,2}[ \t]{0,20})?"
_FORMATS = "{'type': 'json_schema', 'json_schema': {'schema': …}}, {'type': 'json_object'} or {'type': 'text'}"


class GrammarText(NamedTuple):
    """What an answer is to conform to, as the engine reads it.

    Attributes:
        kind: `json_schema`, `regex`, `grammar` (Lark or GBNF) or `lark`.
        text: The schema as JSON, the expression, or the grammar.
        option: Option that it came from, for messages.
    """

    kind: str
    text: str
    option: str


class GrammarFields(BaseModel):
    """Fields that the LangChain classes share and that promise a form of the answer. Give at most one."""

    response_format: dict[str, Any] | None = None
    """A JSON schema that the answer conforms to, as hosted models take it: `{"type": "json_schema", "json_schema":
    {"schema": …}}`, or `{"type": "json_object"}` for any object. A pydantic class, a dataclass or a `TypedDict` means
    its schema. Needs `pip install "langchain-mara[grammar]"`, as the next three do."""
    regex: str | None = None
    """A regular expression that the whole answer matches (Rust's syntax, without look-around and back-references)."""
    grammar: str | None = None
    """A context-free grammar that the answer conforms to, in Lark's or llama.cpp's (GBNF) syntax."""
    choice: list[str] | None = Field(default=None, min_length=1)
    """Texts of which the answer is one."""

    @field_validator("response_format", mode="before")
    @classmethod
    def _as_format(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, Mapping) else schema_format(value)


def schema_format(schema: Any, *, name: str | None = None, strict: bool | None = None) -> dict[str, Any]:
    """The `response_format` of a schema, as OpenAI's API has it.

    Args:
        schema: A pydantic class, a dataclass, a `TypedDict`, any other type that pydantic knows, or a JSON schema.
        name: Name of the schema; by default its title, or the type's name.
        strict: False permits properties that the schema does not name, and ignores what of it cannot be enforced.

    Raises:
        GrammarError: If pydantic makes no JSON schema of the type.
    """
    if isinstance(schema, Mapping):
        found = dict(schema)
    else:
        try:
            found = TypeAdapter(schema).json_schema()
        except PydanticUserError as error:
            reason = str(error).partition("\n")[0]
            raise GrammarError(f"{schema!r:.80} has no JSON schema: {reason} Give a schema as a dict.") from None
    title = name or found.get("title") or getattr(schema, "__name__", "answer")
    promised = {"name": title, "schema": found, **({} if strict is None else {"strict": strict})}
    return {"type": "json_schema", "json_schema": promised}


def grammar_text(fields: Any) -> GrammarText | None:
    """What the answers of an instance conform to; None if they are free.

    Args:
        fields: An object with the fields of `GrammarFields`.

    Raises:
        OptionsError: If several of them are given, or if the response format is of an unknown form.
    """
    given = [name for name in GrammarFields.model_fields if getattr(fields, name) is not None]
    if len(given) > 1:
        raise OptionsError(f"Invalid options: {' and '.join(given)} each say what the answer conforms to. Give one.")
    if not given:
        return None
    value = getattr(fields, given[0])
    if given[0] == "response_format":
        return _format_text(value)
    if given[0] == "choice":
        return GrammarText("lark", "start: " + " | ".join(map(_quoted, value)), "choice")
    return GrammarText(given[0], value, given[0])


def or_calls(grammar: GrammarText, openings: Sequence[Sequence[str | int]]) -> GrammarText:
    """A JSON schema's grammar that also permits tool calls, of which only the beginnings are prescribed.

    A call that is a JSON object has to be a whole one, and the only one.

    Args:
        grammar: Grammar of a response format.
        openings: Beginnings of calls, each of texts and ids of special tokens.
    """
    # The engine reads the longest terminal, so a call that begins like JSON would leave no other JSON.
    objects = [str(each[0]) for each in openings if str(each[0]).startswith("{")]
    if objects:
        grammar = grammar._replace(text=_with_objects(grammar.text, objects))
    marked = [each for each in openings if not str(each[0]).startswith("{")]
    if not marked:
        return grammar
    begun = [" ".join(f"<[{part}]>" if isinstance(part, int) else _quoted(part) for part in each) for each in marked]
    calls = "".join(f" | {each} <[*]>*" for each in begun)
    return GrammarText("lark", f"start: schema{calls}\nschema: %json {grammar.text}", grammar.option)


def _with_objects(text: str, beginnings: Sequence[str]) -> str:
    """A schema that also permits calls that are JSON objects, each of which begins up to its arguments."""
    schema = json.loads(text)
    outer = {name: schema.pop(name) for name in ("x-guidance", *_OUTER) if name in schema}
    calls = []
    for beginning in beginnings:
        fields = json.loads(beginning + "{}}")
        kinds = {
            name: {"const": value} if isinstance(value, str) else {"type": "object"} for name, value in fields.items()
        }
        calls.append({"type": "object", "properties": kinds, "required": [*kinds], "additionalProperties": False})
    return json.dumps({**outer, "anyOf": [schema, *calls]}, ensure_ascii=False)


def _format_text(value: Mapping[str, Any]) -> GrammarText | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _schema_text({"type": "object"}, strict=None)
    outer = value.get("json_schema", value)
    schema = outer.get("schema") if isinstance(outer, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping | bool):
        raise OptionsError(
            f"Invalid options: response_format={dict(value)!r:.200} has an unknown form. Give {_FORMATS}."
        )
    return _schema_text(schema, strict=outer.get("strict"))


def _schema_text(schema: Mapping[str, Any] | bool, *, strict: bool | None) -> GrammarText:
    given = dict(schema) if isinstance(schema, Mapping) else {} if schema else {"not": {}}
    engine = {"whitespace_pattern": _BLANKS, "lenient": strict is False}
    try:
        is_open = strict is False or _COMBINING.search(json.dumps(given))
        text = json.dumps({**(given if is_open else _closed(given)), "x-guidance": engine}, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise GrammarError(f"The schema of response_format is no JSON: {error}. Give values that JSON has.") from None
    return GrammarText("json_schema", text, "response_format")


_OUTER = ("$schema", "$id", "$defs", "definitions")
_OF_SCHEMAS = ("properties", "$defs", "definitions")
_ONE_SCHEMA = ("items", "additionalProperties")
_MANY_SCHEMAS = ("anyOf", "oneOf", "prefixItems")
# With these, one part of a schema may ask for what another one names, so closing a part would refuse it.
_COMBINING = re.compile(
    r'"(?:allOf|not|if|then|else|dependent\w+|dependencies|unevaluated\w+|patternProperties|propertyNames|minProperties)":'
)


def _closed(schema: Any) -> Any:
    """A schema whose objects hold no other properties than it names, unless it says that they may."""
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    for name in set(_OF_SCHEMAS) & set(closed):
        if isinstance(closed[name], Mapping):
            closed[name] = {key: _closed(each) for key, each in closed[name].items()}
    for name in set(_ONE_SCHEMA) & set(closed):
        closed[name] = _closed(closed[name])
    # Beside properties, an alternative is of the same object.
    for name in set(_MANY_SCHEMAS) & set(closed) if "properties" not in closed else ():
        if isinstance(closed[name], list):
            closed[name] = [_closed(each) for each in closed[name]]
    properties, required = closed.get("properties"), closed.get("required", [])
    if (
        not isinstance(properties, Mapping)
        or not isinstance(required, list)
        or {"$ref", "anyOf", "oneOf"} & set(closed)
    ):
        return closed
    if all(name in properties for name in required):
        closed.setdefault("additionalProperties", False)
    return closed


def _quoted(text: str) -> str:
    """A text as a terminal of Lark."""
    return json.dumps(text, ensure_ascii=False)
