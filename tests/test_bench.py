"""bench: real loads through Locust, for a few seconds and with few users."""

import json
import math
import os
import queue
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from click import ClickException
from click.testing import CliRunner

from pyproxy import Proxy
from pyproxy.cli import main
from pyproxy.lab.bench import Bench, BenchError, Watch
from pyproxy.lab.bench_results import (
    BASE,
    Plan,
    Run,
    Thresholds,
    quantile,
    shown_time,
    table,
)
from pyproxy.lab.report import page
from pyproxy.lab_commands import _plan, _report, bench
from tests.admin import admin_of
from tests.programs import ROOT, Program, command, program
from tests.support import (
    DEADLINE,
    Message,
    RawTarget,
    answer,
    closed_port,
    eventually,
    letters,
    replying,
)
from tests.test_docs import code_blocks, read

GENTLE = ("--users", "4", "--pause", "50ms")


# For a load, and all the processes that have to start for it.
LONG = 4 * DEADLINE


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """``python -m pyproxy …`` to its end."""
    with program(*words, cwd=cwd, env=env) as running:
        code = running.wait(LONG)
        return Done(code, "\n".join(running.stdout), "\n".join(running.stderr))


class Page(HTMLParser):
    """What there is in a report, and whether it is well-formed where that matters."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())

    def values(self, name: str) -> set[str | None]:
        return {attrs[name] for _, attrs in self.tags if name in attrs}

    def elsewhere(self) -> set[str | None]:
        """What it would have to load."""
        return self.values("src") | self.values("href")


# Targets of our own


def documented(title: str, page: str = "docs/experiments.md") -> list[str]:
    """The words of the command under the heading that begins so."""
    text = re.split(r"^##? ", read(page), flags=re.MULTILINE)
    [part] = [one for one in text if one.startswith(title)]
    block = next(one for one in code_blocks(part) if "pyproxy bench" in one)
    return shlex.split(block.replace("\\\n", " "))[3:]


def test_a_target_is_killed_and_started_again_under_load_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "appsettings.json").write_text("not even JSON")  # neither counts
    done = run(
        *documented("One of five dies"),
        *("--targets", "3", "--duration", "4s", "--at", "1s", "--restore", "2500ms", *GENTLE),
        *("--json", "figures.json"),
        cwd=tmp_path,
        env={"PYPROXY_SLEEPING": "never"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    [one] = told["runs"]
    assert one["failures"] == one["exceptions"] == 0
    assert set(one["targets"]) == {"target 1", "target 2", "target 3"}
    assert sum(one["targets"].values()) == one["requests"] > 0
    assert one["targets"]["target 3"] < one["targets"]["target 1"]
    marks = [(mark["what"], mark["target"]) for mark in one["marks"]]
    assert marks[:2] == [("killed", "target 3"), ("evicted", "target 3")]
    assert ("started again", "target 3") in marks
    assert one["marks"][0]["at"] >= 1
    assert {"machine", "versions", "command", "when", "load"} <= told.keys()
    assert told["command"].startswith("python -m pyproxy bench --targets 5 ")
    assert told["broken"] == []
    # the table
    assert re.search(r"^ +3 targets$", done.stdout, re.MULTILINE)
    assert re.search(rf"^requests +{one['requests']:,}$", done.stdout, re.MULTILINE)
    assert re.search(r"^p99 +[\d.]+ (ms|s|µs)$", done.stdout, re.MULTILINE)
    assert re.search(r"^target 1 .*%$", done.stdout, re.MULTILINE)
    assert re.search(r"^ *\d\.\d\d s  target 3 killed$", done.stdout, re.MULTILINE)
    assert "3 targets: 1 s, 4 users, " in done.stderr, "how it goes"
    # the page
    report = Page((tmp_path / "one-of-five.html").read_text(encoding="utf-8"))
    assert report.values("data-line") == {"answered", "p50", "p90", "p99"}
    assert report.values("data-target") == set(one["targets"])
    assert any(re.fullmatch(r"target 3 killed, \d\.\d s", text) for text in report.text)
    assert [attrs for _, attrs in report.tags if (attrs.get("class") or "").startswith("mark ")]
    assert told["versions"] in report.text
    assert told["machine"] in report.text
    assert told["command"] in report.text
    assert not report.elsewhere()
    assert (tmp_path / "one-of-five.png").read_bytes().startswith(b"\x89PNG")


def children_of(running: Program) -> list[psutil.Process]:
    return psutil.Process(running.process.pid).children(recursive=True)


def test_an_interrupt_ends_all_of_it_and_what_was_measured_is_told() -> None:
    words = (*documented("Targets started for it", "docs/bench.md"), "--duration", "10m", *GENTLE)
    with program(*words) as bench:
        bench.wait_for(r"3 targets: 1 s, ", LONG)
        left = children_of(bench)
        assert len(left) >= 6  # the keeper and what it keeps, Locust
        assert bench.stop(signal.SIGINT) == 130
        bench.wait_for(r"^requests +\d+$")
        assert bench.stderr[-1] == "stopped before its end"
        assert not psutil.wait_procs(left, DEADLINE)[1]


def test_a_killed_bench_leaves_nothing_behind() -> None:
    words = (*documented("In CI", "docs/bench.md"), "--duration", "10m", *GENTLE)
    with program(*words) as bench:
        bench.wait_for(r"3 targets: 1 s, ", LONG)
        left = children_of(bench)
        bench.process.kill()
        bench.process.wait(DEADLINE)
        eventually(lambda: not [one for one in left if one.is_running()])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--command", "false {port}"), "target 1 ended with status 1"),
        (("--command", "no-such-program {port}"), "a target didn't start: can't be started: "),
    ],
)
def test_what_can_not_be_started_is_told_plainly(words: tuple[str, ...], says: str) -> None:
    done = run("bench", "--targets", "1", *words)
    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert "Traceback" not in done.stderr


# What runs elsewhere

LOCUSTFILE = """
from locust import User, constant, task
from locust.contrib.fasthttp import FastHttpUser

class Somebody(FastHttpUser):
    wait_time = constant(0.05)
    @task
    def all_of_it(self):
        self.client.get("/fine")
        self.client.post("/broken")
        raise LookupError("lost")
"""


def moody(request: Message) -> bytes:
    fine = b"/broken" not in request.start
    return answer("x", status="200 OK" if fine else "500 Oops")


@pytest.fixture
def proxied() -> Iterator[tuple[str, str, list[str]]]:
    """The URLs of a proxy, of its admin API and of its targets, which don't say who they are."""
    with RawTarget(replying(moody)) as first, RawTarget(replying(moody)) as second:
        urls = [first.url, second.url]
        with Proxy(targets=urls) as proxy, admin_of(proxy) as admin:
            yield proxy.url, admin.url, urls


def test_an_admin_address_that_is_something_else_is_told() -> None:
    with letters("a") as [other], pytest.raises(BenchError, match="is not pyproxy's admin address"):
        Watch(other.url, None, {})


def test_a_url_is_loaded_as_a_file_says_and_the_admin_api_tells_who_served(
    proxied: tuple[str, str, list[str]], tmp_path: Path
) -> None:
    url, admin, targets = proxied
    url += "/"
    (tmp_path / "mine.py").write_text(LOCUSTFILE)
    done = run(
        *("bench", url, "--users", "2", "--duration", "2s", "--admin", admin),
        *("--locustfile", "mine.py", "--max-failures", "3", "--json", "figures.json"),
        cwd=tmp_path,
    )
    told = json.loads((tmp_path / "figures.json").read_text())
    [one] = told["runs"]
    assert one["names"]["POST /broken"]["failures"] == one["failures"] > 0
    assert one["names"]["GET /fine"]["failures"] == 0
    assert one["errors"]["POST /broken: status 500"] == one["failures"]
    assert one["errors"]["a task raised LookupError('lost')"] == one["exceptions"]
    assert set(one["targets"]) == set(targets)
    assert all(one["targets"].values())
    lost = one["failures"] + one["exceptions"]
    assert done.returncode == 1
    assert done.stderr.endswith(f"threshold broken: {url}: {lost} failures, more than 3")
    assert re.search(r"^GET /fine +\d+ +0 ", done.stdout, re.MULTILINE)


def test_a_url_where_nobody_answers_is_no_success(tmp_path: Path) -> None:
    words = documented("What runs already", "docs/bench.md")
    url = f"http://127.0.0.1:{closed_port()}/"
    words[words.index("http://localhost:8000/")] = url
    done = run(*words, "--duration", "1s", *GENTLE, cwd=tmp_path)
    assert done.returncode == 1
    assert f"threshold broken: {url}: no request succeeded" in done.stderr
    assert "no target told who it was (X-Target), and no --admin was said" in done.stdout
    assert "ConnectionRefusedError" in done.stdout


def test_a_file_that_can_not_be_run_is_told_plainly(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import no_such_module")
    done = run("bench", "8000", "--locustfile", "mine.py", cwd=tmp_path)
    assert done.returncode == 1
    said = "Locust measured nothing: ModuleNotFoundError: No module named 'no_such_module'"
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("missing", "words"), [("locust", ()), ("matplotlib", ("--png", "plots.png"))]
)
def test_what_is_not_installed_is_told_with_the_remedy(
    missing: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules['{missing}'] = None")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run("bench", "8000", *words, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert done.stderr.strip().endswith(': pip install "pyproxy-lb[bench]"')


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "say one of URL, --targets N, --compare N,N"),
        ("8000 --targets 3", "say one of URL"),
        (
            "ftp://localhost/",
            'expected a URL like "http://localhost:8000/", not "ftp://localhost/"',
        ),
        ("8000 --policy random", "--policy only with --targets or --compare"),
        ("8000 --kill 1 --at 1s", "--kill only with --targets or --compare"),
        ("--targets 3 --admin http://localhost:1", "--admin only with URL"),
        ("--targets 3 --kill 4 --at 1s", "--kill 4: there are 3 targets"),
        ("--compare 1,3 --kill 3 --at 1s", "--kill 3: there are 1 targets"),
        ("--targets 3 --kill 3", "--kill: say when, like --at 5s"),
        ("--targets 3 --kill 2,2 --at 1s", "--kill: each target once"),
        ("http://localhost:99999", 'not "http://localhost:99999"'),
        ("'http://local host/'", 'not "http://local host/"'),
        ("8000 --admin localhost:8404", '--admin: expected a URL like "http://127.0.0.1:8404"'),
        ("--targets 3 --path search", '--path: expected one like "/search?q=a", not "search"'),
        ("--targets 3 --path '/a b'", 'not "/a b"'),
        ("8000 --json tests", "tests is a folder"),
        ("--targets 3 --at 1s", "--at, --restore: only with --kill"),
        (
            "--targets 3 --kill 3 --at 9s --duration 9s",
            "--at is after the end: say a longer --duration",
        ),
        ("--targets 3 --kill 3 --at 2s --restore 2s", "--restore must be after --at"),
        ("--compare 1,x", 'expected numbers from 1 on, like "1,3", not "1,x"'),
        ("--targets 3 --duration soon", "expected a duration above 0: seconds, or a text like"),
        ("--targets 3 --at-once 2", "--at-once only with --delay"),
        ("--targets 3 --command 'a {port}' --delay 1", "--delay, --at-once: not with --command"),
        ("--targets 3 --policy any", 'command line: policy: unknown policy "any"'),
        ("--targets 3 --command app", "--command: {port} has to stand where"),
        ("--targets 3 --command 'a {port}", "No closing quotation"),
        ("--targets 3 --locustfile setup.cfg --pause 1s", "--pause: not with --locustfile"),
        ("8000 --html no/such/folder.html", "no/such/folder.html: there is no folder "),
        ("--targets 3 --locustfile none.py", "'none.py' does not exist"),
    ],
)
def test_a_wrong_word_is_refused(words: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    try:
        split = shlex.split(words)
    except ValueError:
        split = ["--targets", "3", "--command", "a {port} '"]
    refused = CliRunner().invoke(main, ["bench", *split])
    assert refused.exit_code == 2
    assert says in " ".join(refused.output.split())


def test_a_run_lasts_until_what_was_restored_could_show() -> None:
    def lasts(words: str) -> float:
        said = bench.make_context("bench", shlex.split(words)).params
        for name in ("json_file", "html", "png", "max_failures", "p50", "p90", "p99", "min_rate"):
            del said[name]
        return _plan(**said).duration

    assert lasts("--targets 5") == 10
    assert lasts("--targets 5 --kill 3 --at 10s") == 20
    assert lasts("--targets 5 --kill 3 --at 10s --restore 20s") == 30
    assert lasts("--targets 5 --kill 3 --at 10s --restore 20s --duration 25s") == 25


# The commands that are documented, for a shorter time


def measure(words: list[str], folder: Path, *more: str) -> list[dict[str, Any]]:
    """Its runs. The picture, which takes its time, is drawn in another test."""
    at = words.index("--png")
    words = [str(folder / one) if one.endswith(".html") else one for one in words[:at]]
    done = run(*words, *more, "--json", str(folder / "figures.json"), cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return [dict(one) for one in told["runs"]]


def test_more_targets_do_not_help_who_waits_for_an_answer_that_takes_a_second(
    tmp_path: Path,
) -> None:
    one, three = measure(documented("One server that takes a second"), tmp_path, "--duration", "4s")
    for found in (one, three):
        assert found["requests"] <= 5 * 4
        assert found["p50"] >= 1000 / BASE
    assert len(three["targets"]) == 3
    assert all(three["targets"].values())
    report = Page((tmp_path / "one-second.html").read_text(encoding="utf-8"))
    assert {"1 target", "3 targets", "last to first"} <= set(report.text)


def test_more_targets_help_where_requests_wait_for_each_other(tmp_path: Path) -> None:
    one, three = measure(documented("The load at which they do"), tmp_path, "--duration", "5s")
    assert one["requests"] <= 5
    assert three["requests"] > one["requests"]


def test_the_example_is_loaded_as_documented(tmp_path: Path) -> None:
    words = documented("The same, with a database")
    words = [word.replace("/tmp/social.db", str(tmp_path / "social.db")) for word in words]
    shorter = ("--duration", "2s", "--users", "4", "--compare", "1,2")
    runs = measure(words, tmp_path, *shorter)
    assert [len(one["targets"]) for one in runs] == [1, 2]
    for found in runs:
        assert found["failures"] == found["exceptions"] == 0
        assert "POST users" in found["names"]
        assert all(found["targets"].values())


def test_the_commands_of_the_example_differ_only_in_what_is_waited_for() -> None:
    quick, slow = map(documented, ("Users, log-in and friends", "The same, with a database"))
    assert [word.removesuffix(" --wait 0.02") for word in slow] == quick
    assert set(documented("Behind the proxy", "examples/social/README.md")) < set(quick)


def test_the_example_keeps_what_is_somebody_elses(tmp_path: Path) -> None:
    app = ROOT / "examples" / "social" / "app.py"
    database = str(tmp_path / "social.db")
    words = (sys.executable, str(app), "--port", "0", "--database", database)
    about = {"name": "Ann", "email": "a@example.com", "bio": "-", "password": "secret"}
    with command(*words) as running, command(*words) as other, requests.Session() as session:

        def ask(method: str, path: str, at: Program = running, **said: Any) -> requests.Response:
            return session.request(method, f"{at.url}/api/v1{path}", timeout=DEADLINE, **said)

        ann, bob = (ask("POST", "/users", params=about).json()["id"] for _ in range(2))
        assert ask("GET", f"/users/{ann}", other).json()["name"] == "Ann", "copies share it"
        wrong = {"id_": ann, "password": "wrong"}
        assert ask("POST", "/login", params=wrong).status_code == 401
        right = {"id_": ann, "password": "secret"}
        token = ask("POST", "/login", params=right).json()["data"]["access_token"]
        bearer = {"Authorization": f"Bearer {token}"}
        pair = {"user_id": ann, "friend_id": bob}
        assert ask("POST", "/friends", params=pair).status_code == 401
        assert ask("POST", "/friends", params=pair, headers=bearer).status_code == 200
        assert [one["id"] for one in ask("GET", f"/friends/{ann}", headers=bearer).json()] == [bob]
        assert ask("GET", f"/friends/{bob}", headers=bearer).status_code == 403
        assert ask("GET", "/users/1000000").status_code == 404
        assert ask("POST", "/users", params={"name": "Ann"}).status_code == 422
        assert ask("GET", "/elsewhere").status_code == 404


# Figures


def second(at: float, times: dict[str, dict[int, int]], **more: Any) -> dict[str, Any]:
    """A line of bench_load.py."""
    line = {"at": 100 + at, "users": 1, "times": times, "failed": {}, "errors": {}, "targets": {}}
    return {**line, "raised": 0, "total": 10.0, "most": 9.0, **more}


def measured(*lines: dict[str, Any], title: str = "1 target") -> Run:
    found = Run(title, "http://localhost", Plan(targets=(1,)))
    for line in ({"began": 100.0}, *lines):
        found.add(json.loads(json.dumps(line)))
    return found


def test_quantiles_are_those_of_the_times_to_one_percent() -> None:
    times = [1.5**at for at in range(20)]
    buckets = Counter(round(math.log(one, BASE)) for one in times)
    for at, time in enumerate(times, 1):
        assert quantile(buckets, at / 20 - 0.001) == pytest.approx(time, rel=0.0101)
    assert math.isnan(quantile({}, 0.5))
    assert quantile(buckets, 1.0, most=10.0) == 10.0


def test_what_is_left_at_the_end_counts_to_the_second_before() -> None:
    found = measured(
        second(1.0, {"GET /": {10: 4}}, targets={"a": 4}),
        second(2.0, {"GET /": {10: 6}}, targets={"a": 6}),
        second(2.25, {"GET /": {200: 1}}, targets={"b": 1}, failed={"GET /": 2}),
    )
    assert [one.at for one in found.seconds] == [1.0, 2.25]
    assert found.seconds[-1].requests == 9
    figures = found.figures()
    assert figures["requests"] == 13
    assert figures["failures"] == 2
    assert figures["per_second"] == pytest.approx(11 / 2.25)
    assert found.shares() == {"a": 10, "b": 1}


def test_thresholds_tell_which_of_them_is_broken() -> None:
    found = measured(second(1.0, {"GET /": {232: 100}}, most=100.0))  # 99 ms
    assert Thresholds(0, p50=0.2, p90=0.2, p99=0.2, min_rate=99).broken(found) == []
    said = Thresholds(0, p99=0.05, min_rate=101).broken(found)
    assert said == [
        "1 target: p99 98.9 ms, above 50.0 ms",
        "1 target: 100.00 requests a second, below 101",
    ]
    failed = measured(second(1.0, {}, failed={"GET /": 5}))
    assert len(Thresholds(p50=10.0).broken(failed)) == 2, "nothing succeeded, so nothing in time"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_figures_are_told_also_where_a_report_can_not_be_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    going = Bench(Plan(targets=(1,)), queue.SimpleQueue())
    going.runs.append(measured(second(1.0, {"GET /": {300: 10}})))
    with pytest.raises(ClickException, match="a report can't be written: No space left"):
        _report(going, Thresholds(), {"command": "bench"}, "/dev/full", None, None)
    assert "requests/s           10.00" in capsys.readouterr().out


def test_the_scale_of_a_plot_says_what_it_is() -> None:
    found = measured(second(1.0, {"GET /": {300: 150}}))
    assert {"0", "37.5", "75", "112.5", "150"} <= {*Page(page([found], {}, [])).text}


def test_what_is_said_beside_a_plot_is_not_cut_off() -> None:
    """Three quarters of 150 or of 250 ms is what takes the most room."""
    for longest in (145.0, 245.0):
        found = measured(second(1.0, {"GET /": {round(math.log(longest, BASE)): 1}}, most=longest))
        report = Page(page([found], {}, []))
        marks = [attrs for _, attrs in report.tags if attrs.get("text-anchor") == "end"]
        room = min(float(attrs["x"] or 0) for attrs in marks if float(attrs["x"] or 0) < 100)
        assert any(re.fullmatch(r"1(12|87).5 ms", text) for text in report.text)
        assert room >= len("112.5 ms") * 6.5  # px, of 11 px letters


def test_a_report_shows_what_others_have_named_as_text() -> None:
    evil = "<script>alert(1)</script>"
    found = measured(
        second(1.0, {evil: {10: 4}, "b": {10: 1}}, errors={evil: 1}, targets={evil: 4}), title=evil
    )
    report = page([found, found], {"command": evil}, [evil])
    assert "<script" not in report
    assert evil in Page(report).text


def test_runs_stand_side_by_side_with_the_last_as_a_multiple_of_the_first() -> None:
    one = measured(second(1.0, {"GET /": {300: 10}}))
    three = measured(second(1.0, {"GET /": {300: 30}}), title="3 targets")
    lines = table([one, three])
    [rate] = [line for line in lines if line.startswith("requests/s")]
    assert rate.split() == ["requests/s", "10.00", "30.00", "x", "3.00"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(math.nan, "-"), (0.25, "250 µs"), (1.0, "1.0 ms"), (999.0, "999.0 ms"), (1014.0, "1.01 s")],
)
def test_times_are_shown_as_people_say_them(ms: float, text: str) -> None:
    assert shown_time(ms) == text
