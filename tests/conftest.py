"""Unit tests run without network, on one thread (the models are tiny), and without denormals."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"

torch.set_num_threads(1)
torch.set_flush_denormal(True)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the vectors recorded from the reference implementation."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the reference's golden vectors are not at {GOLDEN}; they are not part of the repository")
    return GOLDEN
