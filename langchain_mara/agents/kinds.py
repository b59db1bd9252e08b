"""The kinds of agents, in one closed table, and loading an agent of any kind. No file names what is imported."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from langchain_mara.agents.base import KIND, STATE_KIND, Agent
from langchain_mara.agents.mixture import MEMBER_KINDS, MixtureAgent
from langchain_mara.agents.reference_checkpoints import looks_local
from langchain_mara.exceptions import CheckpointError
from langchain_mara.untrusted import read_json

AGENT_KINDS: dict[str, type[Agent]] = {**MEMBER_KINDS, MixtureAgent.kind: MixtureAgent}
"""Class of each kind of agent, by its name in `config.json`."""


def agent_from_pretrained(source: str | Path, **hub: Any) -> Agent:
    """Loads an agent of any kind from a folder that `save_pretrained` wrote, or from such a hub repository.

    Args:
        source: Folder or hub id.
        **hub: `revision`, `token`, `cache_dir` and `local_files_only` of a hub repository.

    Raises:
        CheckpointError: If it is missing, damaged, of an unknown kind, or has weights that are not finite.
    """
    return AGENT_KINDS[_kind(str(source), hub)].from_pretrained(source, **hub)


def _kind(source: str, hub: dict[str, Any]) -> str:
    config_file = Path(source, "config.json")
    if not Path(source).exists() and not looks_local(source):
        # What is wrong with a missing or broken configuration is said by the class that reads the rest.
        with suppress(OSError, HfHubHTTPError, HFValidationError):
            config_file = Path(hf_hub_download(source, "config.json", **hub))
    config = read_json(config_file, CheckpointError) if config_file.is_file() else {}
    kind = config.get(KIND, STATE_KIND) if isinstance(config, dict) else STATE_KIND
    if not isinstance(kind, str) or kind not in AGENT_KINDS:
        known = ", ".join(AGENT_KINDS)
        raise CheckpointError(
            f"{source} holds an agent of kind {kind!r}, and this version of langchain-mara knows {known}. Install the "
            "version that wrote it, or use another agent."
        )
    return kind
