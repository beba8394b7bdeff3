"""Writes the results in docs/choosing-a-policy.md: runs each command there, and puts what it prints
below it. The plots are drawn, too.

    python docs/make_choosing.py            # in the repository's folder; some minutes
    python docs/make_choosing.py --small    # without those of 100,000 requests and more

A test fails when the results of the small ones are not current.
"""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pyproxy.cli import main

PAGE = Path(__file__).with_name("choosing-a-policy.md")
LONG = 100_000  # requests

_SHOWN = re.compile(r"```sh\n(python -m pyproxy simulate .*?)\n```\n\n```\n(.*?)```", re.DOTALL)


def shown(page: str) -> Iterator[tuple[list[str], str]]:
    """Each command that the page shows, from ``simulate`` on, and what it has printed."""
    for match in _SHOWN.finditer(page):
        yield words(match[1]), match[2]


def words(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "))[3:]


def requests(said: list[str]) -> int:
    return int(said[said.index("--requests") + 1])


def current(page: str, run: Callable[[list[str]], str], most: float) -> str:
    """The page with the results of its commands, but for those of more than ``most`` requests."""

    def again(match: re.Match[str]) -> str:
        said = words(match[1])
        if requests(said) > most:
            return match[0]
        return f"```sh\n{match[1]}\n```\n\n```\n{run(said)}```"

    return _SHOWN.sub(again, page)


def run(said: list[str]) -> str:
    """What ``python -m pyproxy`` prints with these words."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(said, standalone_mode=False)
    return printed.getvalue()


if __name__ == "__main__":
    most = LONG - 1 if "--small" in sys.argv[1:] else float("inf")
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(current(old, run, most), encoding="utf-8", newline="\n")
