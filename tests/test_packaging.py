"""The wheel that users install: what it holds, and that its command runs with nothing of the repository in reach."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def listed() -> dict[str, Path]:
    """Package -> its folder, as setup.cfg says."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    moved = dict(line.split("=") for line in config["options"]["package_dir"].split("\n") if line)
    folders = {name.strip(): folder.strip() for name, folder in moved.items()}
    found = {}
    for name in config["options"]["packages"].split():
        parent = next(
            one for one in sorted(folders, key=len, reverse=True) if name == one or name.startswith(one + ".")
        )
        found[name] = ROOT / folders[parent] / Path(*name[len(parent) :].strip(".").split("."))
    return found


def data_files() -> set[Path]:
    """Files that are installed without being part of a package."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {
        path
        for package, patterns in config["options.package_data"].items()
        for pattern in patterns.split()
        for path in listed()[package].glob(pattern)
    }


def test_every_folder_with_modules_is_listed() -> None:
    folders = {
        path.parent
        for top in ("tvgrad", "cli", "analyses")
        for path in (ROOT / top).rglob("*.py")
        if "__pycache__" not in path.parts and path not in data_files()
    }
    assert {folder.relative_to(ROOT) for folder in folders} == {
        folder.relative_to(ROOT) for folder in listed().values()
    }


def test_every_listed_package_says_what_it_is() -> None:
    for name, folder in listed().items():
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that nothing is left in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for top in {folder.relative_to(ROOT).parts[0] for folder in listed().values()}:
        shutil.copytree(ROOT / top, source / top, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    made = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_every_module_under_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {"tvgrad"}
    assert "tvgrad/py.typed" in names
    expected = {
        "/".join([*package.split("."), path.name])
        for package, folder in listed().items()
        for path in folder.glob("*.py")
    }
    for path in data_files():
        package = max((name for name, folder in listed().items() if folder in path.parents), key=len)
        expected.add("/".join([*package.split("."), *path.relative_to(listed()[package]).parts]))
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "tvgrad/report/templates/page.html.j2" in names


def test_the_installed_command_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--quiet"]
    subprocess.run([*install, "--disable-pip-version-check", "--target", site, wheel], check=True)
    assert not (site / "cli").exists()
    assert not (site / "analyses").exists()
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = run(sys.executable, "-c", "import tvgrad.cli.main; print(tvgrad.cli.main.__file__)")
    assert Path(place.strip()).is_relative_to(site)
    assert "Usage: tvgrad" in run(site / "bin" / "tvgrad", "--help")
    code = "import sys; from tvgrad.cli.main import main; main(sys.argv[1:])"
    for words in (["--help"], ["verify", "--help"], ["report", "--help"], ["demo", "--help"], ["--version"]):
        assert "tvgrad" in run(sys.executable, "-c", code, *words)
