"""Tables of options, made from pydantic fields, so that names, defaults and descriptions are written once: in the code.

It needs no Sphinx, so that the tests can use it without the documentation's libraries.
"""

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
_MEBIBYTE = 2**20
# "name, name: text" and its deeper-indented continuation lines, in a Google-style section.
_ENTRY = re.compile(r"^( +)([a-z_]+(?:, [a-z_]+)*): (.*(?:\n\1 +.*)*)", re.MULTILINE)


class OptionRow(NamedTuple):
    """One line of a table.

    Attributes:
        name: The field's name.
        kind: The values it takes.
        default: Its default as Python code, or "required".
        description: One or more sentences in Markdown.
    """

    name: str
    kind: str
    default: str
    description: str


def option_rows(model: type[BaseModel], package: str = "langchain_mara") -> list[OptionRow]:
    """The options of a pydantic model, in order.

    Args:
        model: Class whose fields are listed.
        package: Only fields declared in packages with this prefix are listed, which leaves out LangChain's own fields.

    Raises:
        ValueError: If a field has no description, neither below the field nor in the class's docstring.
    """
    # A docstring below a field says more than an entry of a class's docstring.
    ours = [owner for owner in reversed(model.__mro__) if owner.__module__.startswith(package)]
    descriptions = {
        name: text for describe in (_entries, _below) for owner in ours for name, text in describe(owner).items()
    }
    declared = _declared(model, package)
    undescribed = sorted(declared - set(descriptions))
    if undescribed:
        raise ValueError(
            f"{model.__name__} has fields without a description: {', '.join(undescribed)}. "
            "Write a docstring below each field."
        )
    fields = {name: field for name, field in model.model_fields.items() if name in declared}
    return [OptionRow(name, _kind(field), _default(field), descriptions[name]) for name, field in fields.items()]


def option_table(model: type[BaseModel], without: type[BaseModel] | None = None) -> str:
    """The options of a pydantic model as a Markdown table.

    Args:
        model: Class whose fields are listed.
        without: Class whose fields are left out, because they have a table of their own.
    """
    left_out = set() if without is None else set(without.model_fields)
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for row in option_rows(model):
        if row.name not in left_out:
            cells = (f"`{row.name}`", row.kind, row.default, row.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _declared(model: type[BaseModel], package: str) -> set[str]:
    """Names of the fields that one of our classes declares."""
    ours = [owner for owner in model.__mro__ if owner.__module__.startswith(package)]
    return {name for owner in ours for name in inspect.get_annotations(owner)} & set(model.model_fields)


def _entries(owner: type) -> dict[str, str]:
    """Descriptions of fields in a class's docstring."""
    entries = _ENTRY.findall(inspect.getdoc(owner) or "")
    return {name: _one_line(text) for _, names, text in entries for name in names.split(", ")}


def _below(owner: type) -> dict[str, str]:
    """Docstrings below the fields that a class declares."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: _one_line(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _kind(field: FieldInfo) -> str:
    """The values a field takes, such as `int`, ≥ 1."""
    bounds = [
        f"{symbol} {getattr(rule, name)}"
        for rule in field.metadata
        for name, symbol in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        return "`None`" if annotation is type(None) else f"`{annotation.__name__}`"
    if get_origin(annotation) in (list, tuple, dict):
        return f"`{get_origin(annotation).__name__}`"
    return " or ".join(_type(part) for part in get_args(annotation)) or f"`{annotation}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{type(value).__name__}()`"
    if isinstance(value, int) and value >= _MEBIBYTE and value % _MEBIBYTE == 0:
        return f"`{value}` ({value // _MEBIBYTE} MiB)"
    return f"`{value!r}`"
