"""run.ps1: for real where PowerShell 7 is, else what can be seen without it."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "run.ps1"
PWSH = shutil.which("pwsh")
needs_pwsh = pytest.mark.skipif(not PWSH, reason="PowerShell 7 (pwsh) is not on PATH")


@pytest.fixture
def text() -> str:
    return SCRIPT.read_bytes().decode("ascii")


def without_strings_and_comments(text: str) -> str:
    """Expressions $(...) within strings are left out too: the script nests no quotes in them."""
    return re.sub(r"""<#.*?#>|'[^'\n]*'|"(?:[^"`\n]|`.)*"|\#[^\n]*""", "", text, flags=re.DOTALL)


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PWSH), "-NoProfile", "-NonInteractive", *arguments],
        cwd=ROOT.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_brackets_and_quotes_are_closed(text: str) -> None:
    opened = []
    for character in without_strings_and_comments(text):
        if character in "([{":
            opened.append(")]}"["([{".index(character)])
        elif character in ")]}":
            assert opened
            assert opened.pop() == character
        assert character not in "'\""
    assert not opened


def test_the_grammar_accepts_it(text: str) -> None:
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_powershell")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    assert not parser.parse(text.encode()).root_node.has_error


def test_it_starts_by_itself_on_linux_and_macos(text: str) -> None:
    assert text.startswith("#!/usr/bin/env pwsh\n")
    assert "\r" not in text


def test_every_parameter_is_explained(text: str) -> None:
    block = re.search(r"^param\((.*?)^\)", text, re.DOTALL | re.MULTILINE)
    assert block
    declared = re.findall(r"\] \$(\w+)", block[1])
    times = ["StopAfter", "StartAfter", "EndAfter", "Interval"]
    assert declared == [*times, "Target", "Local", "KeepRunning"]
    assert re.findall(r"^\.PARAMETER (\w+)$", text, re.MULTILINE) == declared
    # a help block that touches another comment is not seen as help
    assert "\n\n<#\n.SYNOPSIS" in text


def test_every_function_called_is_defined(text: str) -> None:
    code = without_strings_and_comments(text)
    defined = set(re.findall(r"^function ([\w-]+)", code, re.MULTILINE))
    own = {
        "ConvertFrom-Json",
        "Get-Command",
        "Start-Sleep",
        "Write-Host",
        "Push-Location",
        "Pop-Location",
    }
    called = set(re.findall(r"(?<![-\w.])[A-Z][a-z]+-[A-Z]\w+", code))
    assert called - own == defined


@pytest.mark.parametrize("command", ["spam", "target"])
def test_the_options_that_it_gives_exist(text: str, command: str) -> None:
    line = next(line for line in text.splitlines() if f"'{command}', " in line)
    options = re.findall(r"'(--[a-z-]+)'", line)
    usage = subprocess.run(
        [sys.executable, "-m", "pyproxy", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert usage.returncode == 0, usage.stderr
    assert options
    assert not [option for option in options if not re.search(rf"{option}\b", usage.stdout)]


@needs_pwsh
def test_powershell_parses_it() -> None:
    done = run(
        "-Command",
        "$errors = $null; [void][System.Management.Automation.Language.Parser]::ParseFile("
        f"'{SCRIPT}', [ref]$null, [ref]$errors); $errors | Out-String; exit $errors.Count",
    )
    assert done.returncode == 0, done.stdout


@needs_pwsh
def test_powershell_shows_its_help() -> None:
    done = run("-Command", f"Get-Help '{SCRIPT}' -Parameter StopAfter | Out-String")
    assert "before the target is stopped" in done.stdout


@needs_pwsh
def test_a_target_is_stopped_and_started_and_no_request_fails() -> None:
    ports = [8000, 8001, 8002, 8003, 8004, 8005]
    if busy := [port for port in ports if taken(port)]:
        pytest.skip(f"ports that run.ps1 -Local needs are taken: {busy}")
    times = "-StopAfter 2 -StartAfter 3 -EndAfter 14 -Interval 0.05"
    done = run("-File", str(SCRIPT), "-Local", "-Target", "2", *times.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no request failed" in done.stdout

    def answers(lines: str) -> int:
        return len(re.findall(r" 200 .* target2$", lines, re.MULTILINE))

    before, stopped, rest = done.stdout.partition("Stopping target2")
    away, started, after = rest.partition("Starting target2")
    assert stopped
    assert started
    assert answers(before) > 1
    assert answers(away) <= 1  # one may have been under way
    assert answers(after) > 1
    assert not [port for port in ports if taken(port)]


@needs_pwsh
def test_a_taken_port_is_named_and_nothing_is_left() -> None:
    if busy := [port for port in range(8000, 8006) if taken(port)]:
        pytest.skip(f"ports that run.ps1 -Local needs are taken: {busy}")
    with socket.create_server(("127.0.0.1", 8002)):
        done = run("-File", str(SCRIPT), "-Local")
    assert done.returncode == 1
    assert "run.ps1: port 8002 is taken by another program" in done.stderr
    assert not taken(8001)
