"""The test client: asks the proxy ten times, and prints what it answers."""

import sys

import requests


def main(url: str = "http://127.0.0.1:8000") -> None:
    with requests.Session() as session:
        session.trust_env = False  # no other proxy on the way to this one
        for _ in range(10):
            try:
                answer = session.get(f"{url}/getInfo", timeout=70)
            except requests.ConnectionError:
                sys.exit(f"nobody answers on {url}: does the proxy run?")
            print(answer.json() if answer.ok else f"{answer.status_code} {answer.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
