"""What users give as the form of an answer, and what the engine reads of it."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from grammars import promised, text_of
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from langchain_mara.exceptions import GrammarError, OptionsError
from langchain_mara.grammar.specification import GrammarFields, grammar_text, or_calls, schema_format


class Recipe(BaseModel):
    title: str = Field(description="What it is")
    minutes: int


@dataclass
class Step:
    text: str


class Person(TypedDict):
    name: Annotated[str, ..., "The whole name"]


def schema_of(options: dict[str, Any]) -> dict[str, Any]:
    return json.loads(text_of(**options).text)


@pytest.mark.parametrize(("kind", "properties"), [(Recipe, {"title", "minutes"}), (Step, {"text"}), (Person, {"name"})])
def test_a_type_means_its_schema_and_nothing_more(kind: type, properties: set[str]) -> None:
    promise = schema_format(kind)
    assert promise["json_schema"]["name"] == kind.__name__
    assert GrammarFields(response_format=kind).response_format == promise
    schema = schema_of({"response_format": kind})
    assert set(schema["properties"]) == properties
    assert schema["additionalProperties"] is False


def test_a_type_without_schema_is_refused() -> None:
    with pytest.raises(GrammarError, match="has no JSON schema"):
        schema_format(object())


def test_objects_hold_what_the_schema_names() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "integer"}}}
    beside = {"properties": {"c": {}}, "anyOf": [inner, {"required": ["c"]}]}
    elsewhere = {"properties": {"c": {}}, "required": ["d"]}
    schema = {"properties": {"a": {"items": inner}, "e": beside, "f": elsewhere}, "$defs": {"d": inner}}
    closed = schema_of({"response_format": promised(schema)})
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["items"]["additionalProperties"] is False
    assert closed["$defs"]["d"]["additionalProperties"] is False
    assert closed["properties"]["e"] == beside
    assert closed["properties"]["f"] == elsewhere
    kept = schema_of({"response_format": promised({**inner, "additionalProperties": True})})
    assert kept["additionalProperties"] is True


@pytest.mark.parametrize(("more", "strict"), [({}, False), ({"allOf": [{}]}, True), ({"minProperties": 2}, None)])
def test_a_schema_stays_open_where_parts_combine(more: dict[str, Any], strict: bool | None) -> None:
    schema = {"properties": {"a": {}}, **more}
    enforced = schema_of({"response_format": promised(schema, strict=strict)})
    enforced.pop("x-guidance")
    assert enforced == schema


def test_formats_of_hosted_models() -> None:
    assert schema_of({"response_format": {"type": "json_object"}})["type"] == "object"
    assert schema_of({"response_format": {"type": "json_schema", "schema": {"type": "null"}}})["type"] == "null"
    assert grammar_text(GrammarFields(response_format={"type": "text"})) is None
    assert grammar_text(GrammarFields()) is None
    lenient = schema_of({"response_format": promised({"not": {}}, strict=False)})
    assert lenient["x-guidance"]["lenient"] is True


@pytest.mark.parametrize(
    "form", [{"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": 3}, {}]
)
def test_an_unknown_form_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="has an unknown form"):
        text_of(response_format=form)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(GrammarError, match=r"no JSON: Object of type set"):
        text_of(response_format=promised({"enum": {1, 2}}))
    with pytest.raises(GrammarError, match=r"no JSON: .*surrogates"):
        text_of(response_format=promised({"const": "\ud83d"}))


def test_only_one_form_is_promised() -> None:
    with pytest.raises(OptionsError, match="regex and choice each say"):
        text_of(regex="a", choice=["a"])


def test_other_forms() -> None:
    assert text_of(regex="a+")[:2] == ("regex", "a+")
    assert text_of(grammar='start: "a"')[:2] == ("grammar", 'start: "a"')
    assert text_of(choice=["é", '"\n']).text == 'start: "é" | "\\"\\n"'
    both = or_calls(text_of(response_format=promised({"type": "null"})), [[5, '\n{"name": "f"']])
    assert both.text.startswith('start: schema | <[5]> "\\n{\\"name\\": \\"f\\"" <[*]>*\nschema: %json {"type": "null"')
