"""Aligned local language models: a small agent accepts or rejects each candidate token while a frozen model decodes.

Public names are imported on first use, so `import langchain_mara` and the `mara` command start without torch and
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langchain_mara._version import __version__

if TYPE_CHECKING:
    from langchain_mara.agents.agent import MaraAgent
    from langchain_mara.agents.look_ahead import LookAheadAgent
    from langchain_mara.agents.mixture import MixtureAgent
    from langchain_mara.chat_models import ChatMara
    from langchain_mara.custom_generate import mara_generate
    from langchain_mara.exceptions import MaraError
    from langchain_mara.gates.kinds import EntropyGate, TrustGate
    from langchain_mara.llms import MaraLLM
    from langchain_mara.options import DecodingOptions

__all__ = [
    "ChatMara",
    "DecodingOptions",
    "EntropyGate",
    "LookAheadAgent",
    "MaraAgent",
    "MaraError",
    "MaraLLM",
    "MixtureAgent",
    "TrustGate",
    "__version__",
    "mara_generate",
]

_MODULES = {
    "ChatMara": "chat_models",
    "DecodingOptions": "options",
    "EntropyGate": "gates.kinds",
    "LookAheadAgent": "agents.look_ahead",
    "MaraAgent": "agents.agent",
    "MaraError": "exceptions",
    "MaraLLM": "llms",
    "MixtureAgent": "agents.mixture",
    "TrustGate": "gates.kinds",
    "mara_generate": "custom_generate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
