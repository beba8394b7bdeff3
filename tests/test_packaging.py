"""What is shipped: a wheel with the package and nothing else, an sdist with all that is in the
repository, and a program that runs from the wheel alone."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pyproxy import __version__
from tests.programs import ROOT, run

NOT_IN_SDIST = (".ci/", ".gitignore")


def tracked() -> list[str]:
    """The files of the repository."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no git repository, or git is missing")
    told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    pytest.importorskip("setuptools")
    out = tmp_path_factory.mktemp("dist")
    script = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"
    for kind in ("sdist", "wheel"):
        subprocess.run(
            [sys.executable, "-c", script.format(kind), out],
            cwd=source,
            check=True,
            capture_output=True,
        )
    return out


def test_the_wheel_has_the_package_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        info = f"pyproxy_lb-{__version__}.dist-info/"
        about = [name for name in names if name.startswith(info)]
        entry_points = file.read(f"{info}entry_points.txt").decode()
    package = [name for name in tracked() if name.startswith("pyproxy/")]
    assert sorted(set(names) - set(about)) == sorted(package)
    assert any(name.endswith("LICENSE") for name in about)
    assert "pyproxy = pyproxy.cli:main" in entry_points


def test_the_sdist_has_all_that_is_in_the_repository(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {one.name.partition("/")[2] for one in file if one.isfile()}
    made = {name for name in names if name.startswith("pyproxy_lb.egg-info/")}
    wanted = {name for name in tracked() if not name.startswith(NOT_IN_SDIST)}
    assert names - made - {"PKG-INFO"} == wanted | {"setup.cfg"}


def test_the_program_runs_from_the_wheel_alone(built: Path, tmp_path: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    told = run("--version", env={"PYTHONPATH": str(tmp_path)})
    assert __version__ in told.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import pyproxy; print(pyproxy.__file__)"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path))


def test_pipx_runs_it_without_an_installation(source: Path, tmp_path: Path) -> None:
    """As the README says."""
    pytest.importorskip("pipx")
    command = "pipx run --spec . pyproxy"
    assert command in (ROOT / "README.md").read_text("utf-8")
    told = subprocess.run(
        [sys.executable, "-m", *command.split(), "--version"],
        cwd=source,
        env={**os.environ, "PIPX_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert __version__ in told.stdout, told.stderr


def test_all_that_the_tests_and_the_fuzzing_need_is_pinned() -> None:
    pins = re.findall(
        r"^([\w.-]+)==[\w.+]+(?:; .+)?$", (ROOT / "requirements-dev.txt").read_text(), re.M
    )
    told = configparser.ConfigParser()
    told.read(ROOT / "setup.cfg", "utf-8")
    extras = told["options.extras_require"]
    wanted = f"{told['options']['install_requires']}\n{extras['test']}\n{extras['fuzz']}"
    names = re.findall(r"^([A-Za-z][\w.-]*)", wanted, re.M)
    assert len(names) > 30
    assert {name.lower().replace("_", "-") for name in names} <= set(pins)
