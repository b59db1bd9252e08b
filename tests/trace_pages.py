"""Reads the HTML of a trace back, for tests."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "meta"}


@dataclass
class Token:
    """A token as the page shows it: classes, accept probability, text, and candidates on hover."""

    classes: list[str]
    accept: float | None
    text: str = ""
    note: str = ""
    candidates: list[tuple[str, float, bool]] = field(default_factory=list)


class Page(HTMLParser):
    """Reads a trace's HTML back; every element must be closed where it belongs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, list[str]]] = []
        self.tags: set[str] = set()
        self.tokens: list[Token] = []
        self.prompt = self.caption = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append((tag, classes))
        style = re.fullmatch(r"--accept:(\d\.\d{4})", given.get("style", ""))
        accept = float(style[1]) if style else None
        if "token" in classes and not self._inside("figcaption"):
            assert given["tabindex"] == "0"
            self.tokens.append(Token(classes, accept))
        if "candidate" in classes and accept is not None:
            self.tokens[-1].candidates.append(("", accept, "emitted" in classes))
        if "candidates" in classes:
            assert "hidden" in given

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._inside("code"):
            text, *rest = self.tokens[-1].candidates[-1]
            self.tokens[-1].candidates[-1] = (text + data, *rest)  # type: ignore[assignment]
        elif self._inside("candidates"):
            self.tokens[-1].note += data
        elif self._inside("answer"):
            self.tokens[-1].text += data
        elif self._inside("prompt"):
            self.prompt += data
        elif self._inside("figcaption"):
            self.caption += data

    def _inside(self, name: str) -> bool:
        return any(name == tag or name in classes for tag, classes in self.open)
