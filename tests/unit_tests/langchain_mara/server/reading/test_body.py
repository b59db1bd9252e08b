"""Bodies are JSON of whole characters and finite numbers."""

from typing import Any

import pytest

from langchain_mara.server.errors import ApiError
from langchain_mara.server.reading.body import parsed


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1.5, "b": "\\ud83d\\ude00"}', {"a": 1.5, "b": "\U0001f600"}),
        ('["\u96ea", 1e3]'.encode(), ["\u96ea", 1000]),
        (b"\xef\xbb\xbf{}", {}),
        (b"[" * 100 + b"]" * 100, None),
    ],
)
def test_what_can_be_read(body: bytes, value: Any) -> None:
    assert parsed(body) == value or value is None


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b'{"a": NaN}', "holds NaN", None),
        (b'{"a": -Infinity}', "holds -Infinity", None),
        (b'{"a": 1e999}', "holds 1e999", None),
        (b'{"a": %b}' % (b"9" * 5000), "too many digits", None),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply", None),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply", None),
        ("\u00e9".encode("latin1"), "not UTF-8", None),
        (b'{"a": ["x", {"b": "\\ud800"}]}', "a.1.b holds", "a.1.b"),
        (b'"\xed\xa0\x80"', "The body holds", None),
        (b'{"\\udfff": 1}', "The body holds", None),
    ],
)
def test_what_cannot(body: bytes, message: str, param: str | None) -> None:
    with pytest.raises(ApiError, match=message) as refused:
        parsed(body)
    assert (refused.value.status, refused.value.param) == (400, param)
