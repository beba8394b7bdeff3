"""The stored inputs: ``corpus/NAME.txt``, a bytes literal a line, so that people can read them."""

import ast
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def read(name: str) -> list[bytes]:
    lines = (FOLDER / f"{name}.txt").read_text("ascii").splitlines()
    return [ast.literal_eval(line) for line in lines]


def write(name: str, inputs: list[bytes]) -> None:
    """Shortest first."""
    ordered = sorted(set(inputs), key=lambda one: (len(one), one))
    lines = "".join(f"{one!r}\n" for one in ordered)
    (FOLDER / f"{name}.txt").write_text(lines, "ascii")
