"""``python -m pyproxy simulate``, as who types it sees it; and docs/choosing-a-policy.md."""

import json
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from pyproxy.access_format import Entry, compiled
from pyproxy.balancing.policies import POLICIES
from tests.programs import ROOT, run

PAGE = (ROOT / "docs" / "choosing-a-policy.md").read_text(encoding="utf-8")
MAKER = runpy.run_path(str(ROOT / "docs" / "make_choosing.py"))
POLICY = ("--policy", "hash_ring")
FEW = ("--requests", "200")


def said(*words: str) -> str:
    """What a ``simulate`` that goes well prints; without a process of its own, which takes longer
    than the simulation."""
    return str(MAKER["run"](["simulate", *words]))


def test_policies_stand_side_by_side() -> None:
    done = run("simulate", *FEW, "--down", "2@1s-2s")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == said(*FEW, "--down", "2@1s-2s")
    story, empty, head, *rows = done.stdout.splitlines()
    assert story == "5 targets, exponential:0.1, 200 requests, 35 a second (load 0.70)"
    assert empty == ""
    assert head.split()[:4] == ["policy", "p50", "p99", "p99.9"]
    assert [row.split()[0] for row in rows] == [
        name for name in POLICIES if name not in ("round_robin", "first")
    ]
    assert len({len(row) for row in rows}) == 1


def test_json_has_every_figure() -> None:
    words = ("--down", "2@1s-3s", "--json", "--policy", "first,random", "--max-connections", "3")
    found = json.loads(said(*FEW, *words, "--sleeping", "500ms"))
    assert [one["policy"] for one in found["policies"]] == ["first", "random"]
    for one in found["policies"]:
        assert one["requests"] == one["answered"] == sum(one["served"]) == 200
        assert 0 < one["p50"] < one["p99"] <= one["p99.9"]
        assert one["evictions"] == one["restored"] == 1
        assert one["peak"] <= 3


def test_the_seed_decides() -> None:
    words = (*FEW, "--policy", "random,power_of_two_choices", "--proxies", "3", "--share", "1s")
    assert said(*words) == said(*words)
    assert said(*words) != said(*words, "--seed", "1")


def test_a_log_of_this_proxy_is_replayed(tmp_path: Path) -> None:
    for name in ("combined", "json"):
        line = compiled(name)
        path = tmp_path / f"{name}.log"
        text = [
            line.line(
                line.time(1_700_000_000 + at // 10),
                Entry(f"10.0.0.{at % 7}", b"GET /a HTTP/1.1", 200, 5, target="x", seconds=0.05),
            )
            for at in range(100)
        ]
        path.write_text("".join(text))
        found = json.loads(said("--log", str(path), *POLICY, "--json"))
        assert found["scenario"].startswith(f"5 targets, times as logged, 100 requests of {name}")
        [result] = found["policies"]
        assert result["answered"] == 100
        assert [result["p50"], result["p99"]] == pytest.approx([0.05, 0.05])
        assert 9 < result["seconds"] < 10.5
        again = said("--log", str(path), *POLICY, "--faster", "2", "--service", "constant:20ms")
        assert "constant:0.02, 100 requests" in again


def test_a_function_of_ones_own_is_tried(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def last(request, targets):\n    return targets[-1]\n")
    done = run(
        *("simulate", *FEW, "--json", "--load", "0.1", "--policy", "mine:last"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["policies"][0]["served"] == [0, 0, 0, 0, 200]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--service", "normal:1s"], '--service: "normal:1s": expected constant:TIME'),
        (["--service", "pareto:1s:1"], '--service: "pareto:1s:1": expected a number above 1'),
        (["--service", "uniform:2s:1s"], "the first of the two is to be the smaller"),
        (["--service", "constant:soon"], "expected a duration above 0"),
        (["--policy", "lest_connections"], 'did you mean "least_connections"'),
        (
            ["--policy", '{"name": "random", "sead": 1}'],
            '.sead: unknown setting (did you mean "seed"',
        ),
        (["--policy", "{name: random}"], "this is no JSON object: Expecting property name"),
        ([*FEW, "--warm-up", "1h"], "--warm-up: longer than it lasts"),
        (["--faster", "2"], "--faster: only with --log"),
        (["--in-step"], "--in-step, --share: only with --proxies above 1"),
        (["--share", "1s"], "--in-step, --share: only with --proxies above 1"),
        (["--policy", 'random,{"name": "first"}'], "an object needs a --policy of its own"),
        (["--speed", "6:2"], '--speed: "6:2": expected targets from 1 to 5, as there are'),
        (["--speed", "1:0"], "expected a number above 0"),
        (["--weight", "1:x"], "expected a whole number from 1 to 256"),
        (["--down", "third@1s"], "expected the number of a target, like 3, or 2-4"),
        (["--down", "3@5s-2s"], "it ends before it begins"),
        (["--down", "3"], "expected a duration"),
        (["--slow", "3@1s-2s"], "expected a number above 0"),
        (["--remove", "0@1s"], "expected targets from 1 to 5"),
        (["--load", "1", "--rate", "1"], "--load, --rate: say one of them"),
        (["--load", "nan"], "--load: expected a number"),
        (["--log", "nowhere.log"], "--log: nowhere.log: no such file or directory"),
        (["--log", "nowhere.log", "--rate", "3"], "it says who comes when"),
        (["--sleeping", "never"], '--sleeping: "never": expected a duration'),
        (["--targets", "0"], "0 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_with_a_remedy(words: list[str], told: str) -> None:
    with pytest.raises(click.ClickException) as refused:
        said(*words)
    assert refused.value.exit_code == 2
    assert told in refused.value.format_message()


def test_bad_words_end_the_program_with_2() -> None:
    done = run("simulate", "--slow", "3:x@1s")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == '--slow: "3:x@1s": expected a number above 0\n'


# Plots


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        said(*FEW, "--policy", "hash_ring,random", "--plot", str(tmp_path / f"a.{suffix}"))
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    text = "".join(root.itertext())
    assert "hash_ring" in text
    assert "share that took longer" in text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path) -> None:
    # As if it weren't there.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    path = f"{tmp_path}:{ROOT}"
    done = run("simulate", *FEW, "--plot", "a.svg", cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert done.stderr == "--plot needs the package matplotlib: pip install 'pyproxy-lb[plots]'\n"
    done = run("simulate", *FEW, *POLICY, cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode == 0, "nothing else needs it"


@pytest.mark.parametrize("name", ["a.gif", "nowhere/a.png"])
def test_a_plot_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(click.ClickException, match=re.escape(f"--plot: {path}: ")):
        said("--requests", "100000000", "--plot", str(path))


# The page


def test_the_page_is_current() -> None:
    """The commands that take long only run, with fewer requests and targets."""

    def ran(words: list[str]) -> str:
        if "--plot" in words:
            at = words.index("--plot")
            assert (ROOT / words[at + 1]).is_file()
            words = words[:at] + words[at + 2 :]
        return str(MAKER["run"](words))

    assert MAKER["current"](PAGE, ran, MAKER["LONG"] - 1) == PAGE, "run: docs/make_choosing.py"
    long = [words for words, _ in MAKER["shown"](PAGE) if MAKER["requests"](words) >= MAKER["LONG"]]
    assert len(long) >= 2
    for words in long:
        small = [
            {"--requests": "2000", "--targets": "10"}.get(before, word)
            for before, word in zip(["", *words], words, strict=False)
        ]
        assert "2,000 requests" in ran(small)


def test_every_command_on_the_page_shows_its_result() -> None:
    assert PAGE.count("python -m pyproxy simulate -") == len(list(MAKER["shown"](PAGE)))
    for _, result in MAKER["shown"](PAGE):
        assert "policy" in result
    for plot in re.findall(r"!\[.*?\]\((.*?)\)", PAGE):
        assert f"--plot docs/{plot}" in PAGE


def test_the_examples_of_the_help_run() -> None:
    told = said("--help")
    examples = [line.split()[2:] for line in told.splitlines() if "  pyproxy simulate -" in line]
    assert len(examples) == 4
    for words in examples:
        if "--log" not in words:
            small = words[: words.index("--requests")] if "--requests" in words else words
            assert "policy" in said(*small, *FEW)
