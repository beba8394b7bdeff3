"""Other programs' configurations as settings."""

import re
from pathlib import Path

from pyproxy.contrib import haproxy, nginx
from pyproxy.contrib.converting import Converted

_HAPROXY = re.compile(r"^[ \t]*(global|defaults|frontend|backend|listen)\b[^{};]*$", re.MULTILINE)


def convert(path: Path, kind: str | None = None) -> Converted:
    """A file of ``nginx`` or ``haproxy`` (None: what it looks like). Raises ``ConvertError`` and
    ``OSError``."""
    text = path.read_text("utf-8", "replace")
    if kind is None:
        kind = "haproxy" if _HAPROXY.search(re.sub("#.*", "", text)) else "nginx"
    return haproxy.convert(text, str(path)) if kind == "haproxy" else nginx.convert(str(path))
