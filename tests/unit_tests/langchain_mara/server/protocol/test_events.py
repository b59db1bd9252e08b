"""Server-sent events as bytes."""

import json

from langchain_mara.server.protocol.events import DONE, WAITING, TextEvent, event

AWKWARD = 'a "quoted"\nline\r\n\\ ü 🥚 \u2028 </script>'


def test_an_event_is_one_line_of_json() -> None:
    made = event({"id": "x", "text": AWKWARD})
    assert made.startswith(b"data: ")
    assert made.endswith(b"\n\n")
    assert made.count(b"\n") == 2
    assert b"\r" not in made
    assert json.loads(made.removeprefix(b"data: ")) == {"id": "x", "text": AWKWARD}
    assert event({"type": "response.created"}) == b'event: response.created\ndata: {"type":"response.created"}\n\n'


def test_a_text_is_put_into_its_place() -> None:
    def chunk(text: str) -> dict[str, object]:
        return {"id": "x", "choices": [{"delta": {"content": text}}], "usage": None}

    events = TextEvent(chunk)
    for text in ("", "egg", AWKWARD):
        assert events.of(text) == event(chunk(text))


def test_the_end_and_the_comment_are_no_json() -> None:
    assert DONE == b"data: [DONE]\n\n"
    assert WAITING.startswith(b":")
    assert WAITING.endswith(b"\n\n")
