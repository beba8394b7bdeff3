"""Scaling: targets that are made here: as many as are wanted, of the version that is wanted."""
