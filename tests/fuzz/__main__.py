"""``python -m tests.fuzz [--seconds N] [--keep] [NAME …]``: fuzzes parsers, one after the other.

Begins with the stored corpus. What breaks a check is printed as a line for the corpus, and the exit
status is 1. ``--keep`` adds what reached code that nothing stored reaches. Needs atheris (extra
``fuzz``); the stored inputs alone are checked by tests/test_fuzz_corpus.py without it.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pyproxy import settings
from tests.fuzz import corpus
from tests.fuzz.checks import CHECKS

LONGEST = 600  # bytes of an input: all that these parsers do shows in less

HTTP_WORDS = (
    "Host: Content-Length: Transfer-Encoding: chunked Connection: close keep-alive Upgrade: TE:"
    " trailers Expect: 100-continue HTTP/1.1 HTTP/1.0 http:// OPTIONS CONNECT HEAD X-Forwarded-For:"
    " Forwarded: Cookie: Via: :method :path :scheme :authority content-length cookie"
)


def words(name: str) -> list[str]:
    """What makes sense to the parser: a fuzzer wouldn't soon guess it."""
    if name in ("settings_file", "variables"):
        paths = [path for path, _, _ in settings.options()]
        return sorted({part for path in paths for part in (path, *path.split("."))})
    return HTTP_WORDS.split()


def libfuzzer(name: str, *arguments: str) -> tuple[int, str]:
    """Its exit status, and what it said."""
    command = [sys.executable, "-m", "tests.fuzz.run", name, f"-max_len={LONGEST}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def fuzz(name: str, seconds: int, keep: bool) -> bool:
    """Whether nothing was found."""
    with tempfile.TemporaryDirectory(prefix="pyproxy-fuzz-") as temporary:
        folders = [Path(temporary) / part for part in ("corpus", "found")]
        for folder in folders:
            folder.mkdir()
        stored, found = folders
        for at, data in enumerate(corpus.read(name)):
            (stored / str(at)).write_bytes(data)
        dictionary = Path(temporary) / "words"
        dictionary.write_text("".join(f'"{word}"\n' for word in words(name)), "ascii")
        status, said = libfuzzer(
            name,
            f"-dict={dictionary}",
            f"-max_total_time={seconds}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
            "-timeout=10",
            "-len_control=10",
            str(stored),
        )
        runs = re.findall(r"stat::number_of_executed_units: (\d+)", said)
        covered = re.findall(r"cov: (\d+) ft: (\d+)", said)
        units = runs[-1] if runs else "?"
        cov = "{} edges, {} features".format(*covered[-1]) if covered else "?"
        print(f"{name}: {units} executions, {cov}, {'broken' if status else 'nothing found'}")
        if status:
            print(said[-4000:])
            for one in found.iterdir():
                print(f"for tests/fuzz/corpus/{name}.txt:\n{one.read_bytes()!r}")
            return False
        if keep:
            # libFuzzer has put there what reached something new, and made it as short as it could.
            corpus.write(name, [one.read_bytes() for one in stored.iterdir()])
            print(f"{name}: {len(corpus.read(name))} inputs kept")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    parser.add_argument("--seconds", type=int, default=60, help="for each parser")
    parser.add_argument("--keep", action="store_true", help="add to the stored corpus")
    said = parser.parse_args()
    if unknown := set(said.names) - CHECKS.keys():
        parser.error(f"no such parser: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is missing: pip install -e '.[fuzz]'")
    found = [name for name in said.names or CHECKS if not fuzz(name, said.seconds, said.keep)]
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
