"""The stored inputs of the fuzzer, checked once more, without it: what it has found stays found."""

import importlib.util
import subprocess
import sys

import pytest

from tests.fuzz import corpus
from tests.fuzz.checks import CHECKS
from tests.programs import ROOT, environment
from tests.support import DEADLINE


@pytest.mark.parametrize("name", CHECKS)
def test_every_stored_input_keeps_what_its_parser_promises(name: str) -> None:
    accepted = [CHECKS[name](data) for data in corpus.read(name)]
    assert True in accepted, "an input that gets through the whole check"
    assert False in accepted


def test_every_corpus_belongs_to_a_check_and_is_small() -> None:
    files = list(corpus.FOLDER.iterdir())
    assert {file.stem for file in files} == CHECKS.keys()
    assert sum(file.stat().st_size for file in files) < 200_000


def test_the_fuzzer_runs_or_says_what_it_needs() -> None:
    words = [sys.executable, "-m", "tests.fuzz", "--seconds", "1", "proxy_header"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=10 * DEADLINE
    )
    if importlib.util.find_spec("atheris"):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nothing found" in done.stdout
    else:
        assert done.returncode == 2
        assert "pip install -e '.[fuzz]'" in done.stderr
