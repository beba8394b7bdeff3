"""pyproxy: a load-balancing HTTP reverse proxy in threads."""

__version__ = "0.1.0"
