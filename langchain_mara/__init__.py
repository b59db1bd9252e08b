"""Aligned local language models: token-level accept/reject decoding by a small agent."""

from langchain_mara._version import __version__
