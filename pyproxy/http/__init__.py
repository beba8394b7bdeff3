"""How bytes travel between a client and a target."""
