"""A page to look at, for whoever has the gateway's key: one file without anything from elsewhere, under a strict policy.

It is served at the client's own gateway alone: what a person types there is in the clear between page and gateway.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib.resources import files

from starlette.responses import Response

PAGE = "/"


@functools.cache
def _page() -> tuple[str, str]:
    """Return the page and the policy that names its script and its style by their hashes."""
    text = files("launch.serve.gateway").joinpath("page.html").read_text(encoding="utf-8")

    def source(tag: str) -> str:
        found = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert found is not None
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def page(demo: bool = False) -> Response:
    """Return the page. demo: it shows what a `launch.demo.web` tells beside."""
    text, policy = _page()
    text = text.replace('<html lang="en">', '<html lang="en" data-demo="yes">') if demo else text
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Response(text, 200, headers, "text/html")
