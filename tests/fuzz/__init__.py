"""Fuzzing of what reads bytes from strangers. ``python -m tests.fuzz`` says how."""
