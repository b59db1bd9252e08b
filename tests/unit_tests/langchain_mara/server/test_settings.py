"""Who may ask a server."""

from pathlib import Path

import pytest

from langchain_mara.exceptions import OptionsError
from langchain_mara.server.settings import ServerSettings, read_keys


def test_strangers_need_a_key() -> None:
    with pytest.raises(OptionsError, match=r"--api-key-file, or --no-auth"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_keys=("k",)).allowed_hosts is None
    assert ServerSettings(host="0.0.0.0", no_auth=True).allowed_hosts is None
    assert "127.0.0.1" in (ServerSettings().allowed_hosts or ())


def test_keys() -> None:
    settings = ServerSettings(api_keys=("first", "sécond"))
    assert settings.key_of("sécond") == "sécond"
    assert settings.key_of("first") == "first"
    assert settings.key_of("third") is settings.key_of("") is settings.key_of("firs") is None


def test_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# mine\n abc \n\ndef\n")
    assert read_keys(tmp_path / "keys") == ("abc", "def")
    (tmp_path / "none").write_text("# nobody\n")
    with pytest.raises(OptionsError, match="holds no key"):
        read_keys(tmp_path / "none")
