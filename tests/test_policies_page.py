"""docs/policies.md: its examples run, and what it says of the policies is so."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from pyproxy import Proxy
from pyproxy.balancing.policies import POLICIES
from pyproxy.settings import parse
from tests.programs import ROOT, program, run
from tests.support import RawTarget, get, letters

PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def example(function: str) -> str:
    [found] = [text for text in EXAMPLES if f"def {function}(" in text]
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From which a module may be imported, in this test only."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


def proxy_with(folder: Path, function: str, targets: list[RawTarget], text: str = "") -> Proxy:
    (folder / "mypolicies.py").write_text(text or example(function))
    return Proxy(targets=[one.url for one in targets], policy=f"mypolicies:{function}")


def bodies(proxy: Proxy, count: int, *lines: str, method: str = "GET") -> str:
    return "".join(get(proxy.url, "/", *lines, method=method).body.decode() for _ in range(count))


def test_a_tenant_has_a_target(folder: Path) -> None:
    with letters("abc") as targets, proxy_with(folder, "tenant", targets) as proxy:
        assert bodies(proxy, 4, "X-Tenant: acme") == "aaaa"
        assert Counter(bodies(proxy, 6)) == {"a": 2, "b": 2, "c": 2}
        targets[0].stop()
        assert bodies(proxy, 3, "X-Tenant: acme") == "bbb", "the next one, when that is away"


def test_writes_go_to_the_first_target_and_reads_to_the_others(folder: Path) -> None:
    with letters("abc") as targets, proxy_with(folder, "primary", targets) as proxy:
        assert bodies(proxy, 3, method="DELETE") == "aaa"
        assert Counter(bodies(proxy, 6)) == {"b": 3, "c": 3}


def test_some_of_the_clients_try_the_new_version_and_stay_there(folder: Path) -> None:
    with letters("abn") as targets:
        text = example("canary")
        assert "NEW = 9000\n" in text
        text = text.replace("NEW = 9000", f"NEW = {targets[2].port}")
        with proxy_with(folder, "canary", targets, text) as proxy:
            first = [bodies(proxy, 1, f"Cookie: user=u{user}") for user in range(100)]
            again = [bodies(proxy, 1, f"Cookie: user=u{user}") for user in range(100)]
    assert 3 <= first.count("n") <= 20
    assert [one == "n" for one in first] == [one == "n" for one in again]


def test_a_failing_function_loses_no_request(folder: Path) -> None:
    text = "def broken(request, targets):\n    return targets[99]\n"
    with letters("ab") as targets, proxy_with(folder, "broken", targets, text) as proxy:
        assert Counter(bodies(proxy, 10)) == {"a": 5, "b": 5}


def test_functions_are_found_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mypolicies.py").write_text(example("tenant"))
    with letters("ab") as targets:
        urls = ",".join(one.url for one in targets)
        arguments = ("--listen", "0", "--targets", urls, "--policy", "mypolicies:tenant")
        with program(*arguments, cwd=tmp_path) as proxy:
            assert get(proxy.url, "/", "X-Tenant: acme").body == b"a"
            assert get(proxy.url, "/", "X-Tenant: acme").body == b"a"


def test_a_module_that_is_not_there_is_told_as_the_page_shows(tmp_path: Path) -> None:
    shown = re.search(r"```\n\$ python -m pyproxy (.*)\n(.*)\n```", PAGE)
    assert shown
    done = run(*shown[1].split(), cwd=tmp_path)
    assert done.stderr.strip() == shown[2]
    assert done.returncode != 0


def test_the_page_tells_of_every_policy_and_its_settings_are_valid() -> None:
    for name in POLICIES:
        assert f"`{name}`" in PAGE
    for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL):
        parse(json.loads(block))
    for policy in re.findall(r"`(\{\"name\".*?\})`", PAGE):
        parse({"targets": [8001], "policy": json.loads(policy)})
    for policy in re.findall(r"`\"bounded_load\": [\d.]+`", PAGE):
        said = json.loads("{" + policy.strip("`") + "}")
        parse({"targets": [8001], "policy": {"name": "consistent_hash", **said}})
