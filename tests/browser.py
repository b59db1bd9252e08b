"""A headless Chromium, driven through the WebDriver protocol."""

import base64
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import httpx2
from http_servers import wait_until

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
"""Programs that this machine lacks."""


class Browser:
    """A browser with one window.

    Args:
        http: A client of the driver, whose base is the session.
    """

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def _say(self, path: str, **values: Any) -> Any:
        response = self._http.post(path, json=values)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def open(self, url: str) -> None:
        self._say("url", url=url)

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the page as it is seen, which may be smaller than a window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._say("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def be_dark(self) -> None:
        """Asks pages for dark colors."""
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        self._say("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})

    def run(self, script: str, *args: Any) -> Any:
        """The value of a script."""
        return self._say("execute/sync", script=script, args=list(args))

    def type(self, keys: str) -> None:
        """Presses keys."""
        presses = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._say("actions", actions=[{"type": "key", "id": "keyboard", "actions": presses}])

    def wait(self, script: str, seconds: float = 60) -> None:
        """Waits until a script's value is true."""
        wait_until(lambda: self.run(f"return {script}"), seconds)

    def screenshot(self, file: Path) -> None:
        """Saves what is seen as PNG."""
        file.write_bytes(base64.b64decode(self._http.get("screenshot").json()["value"]))


@contextmanager
def browsing() -> Iterator[Browser]:
    """Runs a browser while the context is open."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _is_up(base))
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": flags, "binary": shutil.which("chromium")}}}
        session = httpx2.post(f"{base}/session", json={"capabilities": wanted}, timeout=120).json()["value"]
        assert "sessionId" in session, session
        with httpx2.Client(base_url=f"{base}/session/{session['sessionId']}/", timeout=120) as http:
            yield Browser(http)
            http.delete("")
    finally:
        driver.terminate()
        driver.wait(20)


def _is_up(base: str) -> bool:
    try:
        return bool(httpx2.get(f"{base}/status").json()["value"]["ready"])
    except httpx2.TransportError:
        return False
