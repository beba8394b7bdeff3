"""How bytes travel that the proxy doesn't read."""
