"""pyproxy: a load-balancing HTTP reverse proxy in threads."""

__version__ = "0.2.0"  # first, so that what is imported may look at it

from pyproxy.app import Proxy
from pyproxy.balancing.hashring import HashRing

__all__ = ["HashRing", "Proxy", "__version__"]
