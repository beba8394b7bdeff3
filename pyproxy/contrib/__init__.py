"""Adapters for what is not a proxy: each imports its own library, which is an extra."""
