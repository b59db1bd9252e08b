"""Which files are looked at, and which settings are no code. What is refused is in `tests/faults`."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from langchain_mara.exceptions import LoadingError
from langchain_mara.loading.declared_code import refuse_code


def test_a_saved_model_names_no_code(model_folder: Path, model: PreTrainedModel) -> None:
    assert model.config.model_type == "llama"
    refuse_code(str(model_folder))
    refuse_code(str(model_folder), {"revision": "main"}, "eager")


def test_a_folder_without_files_names_no_code(tmp_path: Path) -> None:
    refuse_code(str(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"_attn_implementation": None, "text_config": {"_attn_implementation": "sdpa"}},
        {"attn_implementation": {"": "eager", "text_config": "sdpa"}, "experts_implementation": "grouped_mm"},
        {"auto_map": None, "kernel_config": None, "quantization_config": {"quant_method": "bitsandbytes"}},
    ],
)
def test_settings_that_transformers_has_itself_are_no_code(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    refuse_code(str(tmp_path))


def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(LoadingError, match="config.json holds no settings"):
        refuse_code(str(tmp_path))
