"""The documents say what the program does."""

import json
import re
import runpy
from pathlib import Path

import pytest

from pyproxy import __version__, settings

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)


def test_every_setting_is_documented_as_it_is() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
    page = read("docs/configuration.md")
    assert maker["current"](page) == page, "run: python docs/make_configuration.py"
    for path, option, _ in settings.options():
        assert f"| `{path}` | {option.unit} |" in page


def test_the_layout_has_each_module_once() -> None:
    listed, folder = [], ""
    for line in code_blocks(read("docs/architecture.md"))[0].splitlines()[1:]:
        if not line.startswith("   "):
            folder = found[1] if (found := re.match(r"  (\w+/)", line)) else ""
            line = line.removeprefix(f"  {folder}")
        listed += [folder + name for name in re.findall(r"\w+\.(?:py|html)\b|\b[a-z]+/", line)]
    package = ROOT / "pyproxy"
    there = [path.name for path in package.glob("*.py")]
    for path in package.glob("*/*"):
        name = path.relative_to(package).as_posix()
        if (path / "__init__.py").exists():
            there.append(f"{name}/")
        elif path.suffix in (".py", ".html") and path.stem != "__init__":
            there.append(name)
    assert sorted(listed) == sorted(there)


def test_both_readmes_show_the_same_commands_and_pages() -> None:
    english, russian = read("README.md"), read("README.ru.md")
    assert code_blocks(english) == code_blocks(russian)
    assert re.findall(r"\]\((docs/.*?)\)", english) == re.findall(r"\]\((docs/.*?)\)", russian)


def test_the_readme_starts_with_the_two_commands() -> None:
    demo, test = code_blocks(read("README.md"))[:2]
    assert demo.rstrip().endswith("python -m pyproxy demo")
    assert test.rstrip().endswith("python -m pytest -q")


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize(
    "page",
    [
        str(one.relative_to(ROOT))
        for pattern in ("README*.md", "docs/*.md", "examples/*/README.md")
        for one in sorted(ROOT.glob(pattern))
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", read(page)):
        assert ((ROOT / page).parent / link).exists(), link
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#]*\.md|)#([^)]+)\)", read(page)):
        there = (ROOT / page).parent / link if link else ROOT / page
        assert anchor in anchors(there.read_text(encoding="utf-8")), f"{link}#{anchor}"


@pytest.mark.parametrize("page", ["docs/threat-model.md", "docs/sources.md", "docs/evidence.md"])
def test_the_tests_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"\btest_\w+\.py\b", read(page)))
    assert named
    assert not {name for name in named if not (ROOT / "tests" / name).exists()}


def test_the_settings_in_the_readme_are_valid() -> None:
    shown = [block for block in code_blocks(read("README.md")) if block.startswith("{")]
    assert len([settings.parse(json.loads(block)) for block in shown]) == 1


def test_the_changelog_knows_this_version() -> None:
    assert f"## {__version__}\n" in read("CHANGELOG.md")
