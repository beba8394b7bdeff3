"""pyproxy: a load-balancing HTTP reverse proxy in threads."""

from pyproxy.app import Proxy
from pyproxy.balancing.hashring import HashRing

__version__ = "0.4.0"

__all__ = ["HashRing", "Proxy", "__version__"]
