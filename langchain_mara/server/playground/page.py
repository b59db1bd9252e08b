"""The page as a response: one file, which may run its own script, speak to this server, and nothing else."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")


async def playground(_: Request) -> HTMLResponse:
    """The page, with a policy under which a browser runs no other script than the page's own."""
    text, policy = _page()
    return HTMLResponse(text, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})


@cache
def _page() -> tuple[str, str]:
    text = _FILE.read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    own = f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    rules = {
        "default-src": "'none'",
        "script-src": own,
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text, "; ".join(f"{name} {value}" for name, value in rules.items())
