"""Configuration of the documentation: `make docs` builds it into build/docs, without network."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "training"), str(ROOT / "docs" / "extensions")]

from langchain_mara import __version__  # noqa: E402 - from this checkout

project = "langchain-mara"
author = "the langchain-mara authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mara_docs"]
exclude_patterns = ["extensions"]
default_role = "code"  # docstrings are written with single backticks
nitpicky = True
# Types of other libraries have no pages here, and looking them up would need the network.
nitpick_ignore_regex = [("py:.*", r"(?!langchain_mara).*"), ("py:.*", r"langchain_mara\w*\.\w+\..*")]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a NamedTuple are documented once
napoleon_custom_sections = [
    *(("Key init args " + kind, "params_style") for kind in ("decoding", "model")),
    *("Setup", "Instantiate", "Invoke", "Stream", "Async", "Tool calling", "Structured output"),
]
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = "langchain-mara"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
