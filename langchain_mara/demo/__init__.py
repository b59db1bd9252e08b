"""The embedded demonstration: a small policy model and its agent, with the code that makes both from nothing."""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
AGENT_FOLDER = Path(__file__).parent / "agent"
