"""One parser under libFuzzer, to its end: ``python -m tests.fuzz.run NAME [libFuzzer's options]``.

``python -m tests.fuzz`` starts it.
"""

import sys

import atheris

with atheris.instrument_imports(include=["pyproxy"]):
    from tests.fuzz.checks import CHECKS


def main() -> None:
    check = CHECKS[sys.argv[1]]

    def once(data: bytes) -> None:
        check(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
