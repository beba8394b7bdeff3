"""A long run of a real proxy under load and faults. ``python -m tests.soak`` says how."""
