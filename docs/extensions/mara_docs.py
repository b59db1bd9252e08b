"""Sphinx extension: option tables, Mermaid pictures, formulas without scripts, and docstrings with Markdown fences."""

import re
from importlib import import_module
from typing import Any, ClassVar

import mermaid_pictures
import option_tables
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_KEY_ARGUMENTS = re.compile(r"^(Key init args), (\w+:)$")
_FENCE = re.compile(r"^( *)```(\w+)$")


class OptionTable(SphinxDirective):
    """`{option-table} module.Class` gives the table of a pydantic model's fields, without those of another model."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"without": str}

    def run(self) -> list[nodes.Node]:
        """The table, parsed as part of the page."""
        without = self.options.get("without")
        left_out = None if without is None else _imported(without)
        return self.parse_text_to_nodes(option_tables.option_table(_imported(self.arguments[0]), left_out))


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


class Mermaid(SphinxDirective):
    """`{mermaid}` gives the committed picture of a diagram."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The picture; an error where it is missing or was drawn from another source."""
        source = "\n".join(self.content)
        if not mermaid_pictures.is_current(source):
            raise self.error(
                f"{mermaid_pictures.picture_of(source)} was not drawn from this diagram. "
                "Run python docs/extensions/mermaid_pictures.py."
            )
        picture = mermaid_pictures.picture_of(source)
        location = f"/{picture.relative_to(mermaid_pictures.DOCS).as_posix()}"
        return [nodes.image(uri=location, alt=mermaid_pictures.title_of(source), classes=["diagram"])]


def fences_to_directives(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    """Turns Markdown code fences of a docstring into reStructuredText code blocks."""
    # Napoleon knows no section whose name has a comma.
    lines[:] = [_KEY_ARGUMENTS.sub(r"\1 \2", line) for line in lines]
    converted: list[str] = []
    indent: str | None = None
    for line in lines:
        opening = _FENCE.match(line)
        if indent is None and opening:
            indent = opening.group(1)
            converted += ["", f"{indent}.. code-block:: {opening.group(2)}", ""]
        elif indent is not None and line == f"{indent}```":
            indent = None
            converted.append("")
        else:
            converted.append(line if indent is None or not line else f"    {line}")
    lines[:] = converted


def show_inline(translator: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def show_block(translator: Any, node: nodes.math_block) -> None:
    """A formula of its own, as MathML."""
    translator.body.append(f'<div class="math-block">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers everything."""
    app.add_directive("option-table", OptionTable)
    app.add_directive("mermaid", Mermaid)
    app.connect("autodoc-process-docstring", fences_to_directives, priority=100)  # before napoleon
    app.add_html_math_renderer("mathml", (show_inline, None), (show_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
