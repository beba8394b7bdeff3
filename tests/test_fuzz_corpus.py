"""The stored inputs of the fuzzer, checked once more, without it: what it has found stays found."""

import pytest

from tests.fuzz import corpus
from tests.fuzz.checks import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_every_stored_input_keeps_what_its_parser_promises(name: str) -> None:
    accepted = [CHECKS[name](data) for data in corpus.read(name)]
    assert True in accepted, "an input that gets through the whole check"
    assert False in accepted


def test_every_corpus_belongs_to_a_check_and_is_small() -> None:
    files = list(corpus.FOLDER.iterdir())
    assert {file.stem for file in files} == CHECKS.keys()
    assert sum(file.stat().st_size for file in files) < 200_000
