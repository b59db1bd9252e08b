"""Settings of the server: where it listens, who may ask, and how much."""

import hmac
from dataclasses import dataclass
from pathlib import Path

from langchain_mara.exceptions import OptionsError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Hosts that only this machine reaches."""


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, who may ask, and how much.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        api_keys: Keys of which a request needs one; none if everyone may ask.
        no_auth: Whether everyone may ask although others than this machine reach the server.
        body_limit: Most bytes of a request.
        body_timeout: Most seconds that a request may take to arrive.
        header_timeout: Most seconds until the head of a connection's first request has arrived.
        idle_timeout: Seconds after which an idle connection is closed.
        send_timeout: Most seconds that a reader may take to accept a chunk of a stream.
        keep_alive: Seconds of silence after which a stream gets a comment, so that no proxy closes it.
        drain: Most seconds that running requests may take to finish once the server is to end.
        requests_per_key: Most requests of one key that run at a time; None for any number.
        allow_origins: Origins whose pages may ask from a browser; `*` for all.
        json_log: Whether to log one line of JSON per request.
        log_prompts: Whether the log holds prompts.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    no_auth: bool = False
    body_limit: int = 8 * 2**20
    body_timeout: float = 30
    header_timeout: float = 10
    idle_timeout: float = 30
    send_timeout: float = 60
    keep_alive: float = 15
    drain: float = 30
    requests_per_key: int | None = None
    allow_origins: tuple[str, ...] = ()
    json_log: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.api_keys and not self.no_auth:
            raise OptionsError(
                f"Others than this machine would reach {self.host}, and nobody would need a key. Give --api-key-file, "
                "or --no-auth if something else keeps strangers out."
            )

    @property
    def allowed_hosts(self) -> frozenset[str] | None:
        """Names under which a request may ask for this server; None for any.

        Without a key, a page of another site could ask through the reader's browser, if its name led here.
        """
        return LOOPBACK | {self.host} if self.host in LOOPBACK and not self.api_keys else None

    def key_of(self, given: str) -> str | None:
        """The known key that equals the given one; the time this takes says nothing about the keys."""
        found = None
        for key in self.api_keys:
            if hmac.compare_digest(key.encode(), given.encode()):
                found = key
        return found


def read_keys(file: Path) -> tuple[str, ...]:
    """Keys from a file, one per line; empty lines and those that begin with # do not count.

    Args:
        file: The file.

    Raises:
        OptionsError: If it holds no key.
        OSError: If it cannot be read.
    """
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise OptionsError(f"{file} holds no key. Write one key per line.")
    return keys
