"""The page: safe to open by its text, and in a real browser by what it does."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browser import MISSING, Browser, browsing
from http_servers import Listening, app_of, wait_until
from scripted import scripted_chat

from langchain_mara import MaraLLM
from langchain_mara.server.playground import page
from langchain_mara.server.process import server_of

TEXT = Path(page.__file__).with_name("page.html").read_text(encoding="utf-8")
SCREENSHOTS = os.environ.get("MARA_SCREENSHOTS")
needs_browser = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)}: apt-get install chromium-driver"
)


def test_the_page_needs_nothing_else() -> None:
    assert len(TEXT.encode()) < 60_000
    assert re.findall(r"https?://|//cdn|@import|<link (?!rel=\"icon\" href=\"data:)", TEXT) == []


def test_text_is_inserted_as_text_only() -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", TEXT) == []


def test_the_page_is_served_with_a_policy(server: Listening) -> None:
    response = server.http().get("/")
    assert response.text == TEXT
    policy = response.headers["content-security-policy"]
    assert re.search(r"default-src 'none'; script-src 'sha256-[\w+/]{43}='; ", policy)
    assert "connect-src 'self'" in policy


def test_all_fields_have_labels() -> None:
    fields = set(re.findall(r"<(?:textarea|select|input) id=\"([\w-]+)\"", TEXT))
    assert fields == set(re.findall(r"<label for=\"([\w-]+)\"", TEXT))
    assert len(fields) == 5


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


def served(llm: MaraLLM) -> Iterator[str]:
    app = app_of(llm, port=0)
    running = server_of(app)
    thread = Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/"
    running.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def address(demo: MaraLLM) -> Iterator[str]:
    yield from served(demo)


def ask(browser: Browser, address: str, **values: Any) -> None:
    browser.open(address)
    browser.wait("document.getElementById('agent').options.length > 0")
    for name, value in values.items():
        browser.run(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input'))",
            name,
            value,
        )
    browser.run("document.getElementById('ask').click()")


def done(browser: Browser) -> None:
    browser.wait("document.getElementById('status').textContent === 'Done.'")


def text(browser: Browser, name: str) -> str:
    return str(browser.run("return document.getElementById(arguments[0]).textContent", name))


def picture(browser: Browser, name: str) -> None:
    if SCREENSHOTS:
        browser.screenshot(Path(SCREENSHOTS) / f"{name}.png")


RISKY = "I want to keep a lost wallet. Where should I start?"

in_browser = [needs_browser, pytest.mark.slow, pytest.mark.enable_socket]


class TestInABrowser:
    pytestmark = in_browser

    def test_plain_and_aligned_side_by_side(self, browser: Browser, address: str, demo: MaraLLM) -> None:
        browser.resize(1200, 900)
        ask(browser, address, prompt=RISKY, length="40")
        done(browser)
        chat = demo.as_chat(max_tokens=40)
        assert text(browser, "plain") == chat.with_agent(None).invoke(RISKY).text
        assert text(browser, "aligned") == chat.invoke(RISKY).text
        assert "candidates examined per token" in text(browser, "aligned-figures")
        assert re.search(r"[01]\.\d\d passes per token", text(browser, "plain-figures"))
        assert browser.run("return document.querySelectorAll('#plain .asked').length") == 0
        assert browser.run("return document.querySelectorAll('#aligned .asked').length") > 5

        browser.run("document.querySelector('#aligned .steered').focus()")
        said = text(browser, "details")
        assert "Accepted after others were refused." in said
        assert "refused" in said.split("refused.")[1]
        assert said.count("emitted") == 1
        picture(browser, "light")
        browser.be_dark()
        picture(browser, "dark")

    def test_keys_move_between_tokens(self, browser: Browser, address: str) -> None:
        ask(browser, address, prompt=RISKY, length="12")
        done(browser)
        browser.run("document.querySelector('#aligned .token').focus()")
        first = text(browser, "details")
        browser.type("\ue014\ue014")  # right, twice
        place = "return [...document.querySelectorAll('#aligned .token')].indexOf(document.activeElement)"
        assert browser.run(place) == 2
        assert text(browser, "details") != first

    def test_the_threshold_counts(self, browser: Browser, address: str, demo: MaraLLM) -> None:
        ask(browser, address, prompt=RISKY, length="20", threshold="0.99")
        done(browser)
        assert text(browser, "aligned") == demo.as_chat(max_tokens=20, accept_threshold=0.99).invoke(RISKY).text
        assert text(browser, "threshold-value") == "0.99"

    def test_a_narrow_screen(self, browser: Browser, address: str) -> None:
        browser.resize(375, 800)
        ask(browser, address, prompt="a" * 300 + RISKY, length="20")
        done(browser)
        assert browser.run("return document.documentElement.scrollWidth") <= 375
        picture(browser, "narrow")
        browser.resize(1200, 900)

    def test_stop(self, browser: Browser, endless: MaraLLM) -> None:
        for address in served(endless):
            ask(browser, address, prompt="abc", length="4096")
            browser.wait("document.querySelectorAll('#plain .token').length > 3")
            browser.run("document.getElementById('stop').click()")
            browser.wait("document.getElementById('status').textContent === 'Stopped.'")

    def test_an_answer_that_holds_a_script(self, browser: Browser) -> None:
        evil = "<img src=x onerror=alert(1)><script>window.hacked = true</script>"
        chat = scripted_chat("hermes", evil, after="assistant\n")
        for address in served(MaraLLM(model=chat.model, tokenizer=chat.tokenizer)):
            ask(browser, address, prompt=evil, length="100")
            done(browser)
            assert text(browser, "plain") == evil
            assert browser.run("return document.querySelectorAll('#plain img, #plain script').length") == 0
            assert browser.run("return window.hacked === undefined")
