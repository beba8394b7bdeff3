"""Page: the one that the admin API shows, and the policy that lets it run nothing but its own."""

import base64
import functools
import hashlib
import re
from importlib import resources


@functools.cache
def page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy."""
    text = resources.files("pyproxy.control").joinpath("dashboard.html").read_text("utf-8")
    return text.encode(), policy(text)


def policy(text: str) -> str:
    """Its own blocks alone, known by their hashes."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(text, 'script')}",
            f"style-src {_hashes(text, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hashes(text: str, tag: str) -> str:
    blocks = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in blocks]
    return " ".join(f"'sha256-{one.decode()}'" for one in digests) or "'none'"
