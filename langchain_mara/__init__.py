"""Aligned local language models: token-level accept/reject decoding by a small agent."""

from langchain_mara._version import __version__
from langchain_mara.agent import MaraAgent
from langchain_mara.chat_models import ChatMara
from langchain_mara.exceptions import MaraError
from langchain_mara.generation import mara_generate
from langchain_mara.llms import MaraLLM
from langchain_mara.options import DecodingOptions

__all__ = ["ChatMara", "DecodingOptions", "MaraAgent", "MaraError", "MaraLLM", "__version__", "mara_generate"]
