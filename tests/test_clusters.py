"""Several proxies that know nothing of each other, as docs/clusters.md has them."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyproxy import Proxy
from tests.support import get, letters

PAGE = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")


@contextlib.contextmanager
def two_proxies(**said: Any) -> Iterator[tuple[Proxy, Proxy]]:
    """With the settings of the page, but on free ports and with targets in another order."""
    [block] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    shown = json.loads(block) | {
        "listen": "http://127.0.0.1:0",
        "admin": {"listen": "http://127.0.0.1:0"},
        **said,
    }
    with contextlib.ExitStack() as stack:
        urls = [one.url for one in stack.enter_context(letters("abcdefg"))]
        one, other = (
            stack.enter_context(Proxy(**{**shown, "targets": targets}))
            for targets in (urls, urls[::-1])
        )
        yield one, other


def chosen(proxy: Proxy, *fields: str) -> bytes:
    answer = get(proxy.url, "/", *fields)
    assert answer.status == 200
    return answer.body


@pytest.mark.parametrize("policy", ["consistent_hash", "rendezvous_hash"])
def test_proxies_choose_the_same_target_for_a_key_in_whatever_order_they_know_them(
    policy: str,
) -> None:
    with two_proxies(policy={"name": policy, "key": "header:X-User"}) as (one, other):
        users = [f"X-User: {number}" for number in range(40)]
        first = [chosen(one, user) for user in users]
        assert [chosen(other, user) for user in users] == first
        assert len(set(first)) > 3


def test_a_client_keeps_its_target_at_whichever_proxy_it_asks() -> None:
    with two_proxies(policy="hash_ring") as (one, other):
        for proxy, next_one in ((one, other), (other, one)):
            answer = get(proxy.url)
            [line] = answer.all("Set-Cookie")
            cookie = f"Cookie: {line.partition(';')[0]}"
            assert {chosen(next_one, cookie) for _ in range(10)} == {answer.body}


def test_the_settings_on_the_page_need_no_more_than_targets() -> None:
    with two_proxies() as (one, other):
        assert chosen(one) == chosen(other)


@pytest.mark.skipif(not shutil.which("curl"), reason="not installed: curl")
def test_the_check_on_the_page_tells_whether_there_is_a_live_target() -> None:
    [command] = re.findall(r"^curl .*", PAGE, re.MULTILINE)

    def check(proxy: Proxy) -> int:
        asked = command.replace("http://127.0.0.1:8404", str(proxy.admin_url))
        return subprocess.run(shlex.split(asked), capture_output=True, timeout=60).returncode

    with two_proxies() as (one, other):
        assert check(one) == 0
        for target in other.pool.targets:
            other.pool.remove(target, "it was switched off")
        assert check(one) == 0
        assert check(other) != 0
