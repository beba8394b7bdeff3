"""pyproxy: a load-balancing HTTP and TCP reverse proxy in threads.

PYTEST_DONT_REWRITE: pytest, to which this is a plugin, would warn where it was imported before.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyproxy.app import Proxy
    from pyproxy.balancing.hashring import HashRing

__version__ = "0.5.0"

__all__ = ["HashRing", "Proxy", "__version__"]

_HOME = {"HashRing": "pyproxy.balancing.hashring", "Proxy": "pyproxy.app"}


def __getattr__(name: str) -> Any:
    """Imports it when it is asked for: pytest imports this package in every run of every project
    that has it installed."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
