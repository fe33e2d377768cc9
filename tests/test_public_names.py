"""The public names, how lazily they load, and which modules may import which."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import tvgrad

ROOT = Path(__file__).parents[1]

FLOORS = (
    "errors fields system wording",
    "numerics files vectors results cost",
    "problem update_rules checkpoints sketching",
    "store bounds",
    "record recipes streaming",
    "theory merging integrations installation",
    "report",
    "cli analyses __main__",
)
"""From the ground up: a room imports from itself and from the floors below."""

FLOORS_OF_BOUNDS = (
    "activations losses",
    "network",
    "rounding",
    "reading",
    "derivatives",
    "certificates",
    "feedforward program",
)


OF_EXTRAS = {"tvgrad.integrations.lightning", "tvgrad.integrations.transformers"}
"""They load a library of Trainers, which takes ten seconds; the tests of integrations import them."""


@functools.cache
def modules() -> dict[str, Path]:
    """Module -> its file, `tvgrad.cli` being the folder `cli`; files outside packages are data."""
    found = {}
    for top, name in (("tvgrad", "tvgrad"), ("cli", "tvgrad.cli"), ("analyses", "tvgrad.analyses")):
        for path in sorted((ROOT / top).rglob("*.py")):
            if not (path.parent / "__init__.py").exists():
                continue
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Modules of tvgrad that a file imports; without `everywhere`, those that load together with it."""
    tree = parsed(path)
    for node in ast.walk(tree) if everywhere else _at_import(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "tvgrad")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tvgrad":
            assert node.level == 0
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                yield child if child in modules() else str(node.module)


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


def place(module: str) -> tuple[tuple[int, str], ...]:
    """Floor and room, and inside bounds those there too; empty for the package itself."""
    found, floors = [], FLOORS
    for room in module.split(".")[1:3]:
        found.append((next(number for number, names in enumerate(floors) if room in names.split()), room))
        if room != "bounds":
            break
        floors = FLOORS_OF_BOUNDS
    return tuple(found)


def test_every_module_has_a_floor() -> None:
    rooms = {module.split(".")[1] for module in modules() if "." in module}
    assert rooms == set(" ".join(FLOORS).split())
    inside = {module.split(".")[2] for module in modules() if module.startswith("tvgrad.bounds.")}
    assert inside == set(" ".join(FLOORS_OF_BOUNDS).split())


@pytest.mark.parametrize("module", [name for name in modules() if "." in name])
def test_modules_import_downwards(module: str) -> None:
    for other in imports(modules()[module], everywhere=True):
        for (floor, room), (below, another) in zip(place(module), place(other), strict=False):
            assert room == another or below < floor, f"{module} imports {other}, which does not lie below it"
            if room != another:
                break


def test_one_module_above_is_loaded_by_its_name() -> None:
    """Results lie below figures: `Plotted.plot` names the module that draws, and loads it when a figure is asked for.

    No other name of a module in a text leads upwards.
    """
    upwards = {
        (module, str(node.value))
        for module, path in modules().items()
        if place(module)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant) and node.value in modules() and place(str(node.value))[:1] > place(module)[:1]
    }
    higher = {(module, name) for module, name in upwards if place(name)[0][0] > place(module)[0][0]}
    assert higher == {("tvgrad.results", "tvgrad.report.plots")}


def test_nothing_imports_in_circles() -> None:
    graph = {module: set(imports(path, everywhere=False)) - {module} for module, path in modules().items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_import_inside_a_function_hides_a_circle() -> None:
    # the package itself is left out: its lazy names reach everywhere, and everybody may read its version
    files = {module: path for module, path in modules().items() if module != "tvgrad"}
    graph = {module: set(imports(path, everywhere=True)) - {module, "tvgrad"} for module, path in files.items()}
    list(TopologicalSorter(graph).static_order())


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """`tvgrad.gram` is a function however many modules have been imported, and in whichever order."""
    packages = (tvgrad, tvgrad.bounds, tvgrad.merging, tvgrad.update_rules)
    before = {(package, name): getattr(package, name) for package in packages for name in package.__all__}
    for name in modules().keys() - OF_EXTRAS:
        importlib.import_module(name)
    assert "tvgrad.store.run" in sys.modules
    for (package, name), value in before.items():
        assert getattr(package, name) is value, f"{package.__name__}.{name}"
    for function in (tvgrad.gram, tvgrad.check_one_epoch, tvgrad.merging.ties):
        assert callable(function)


def test_public_names() -> None:
    assert set(tvgrad.__all__) <= set(dir(tvgrad))
    for name in ("Recipe", "Objective", "Recorder", "Run", "gram", "check_one_epoch", "bounds", "TvgradError"):
        assert name in tvgrad.__all__
    with pytest.raises(AttributeError, match="module 'tvgrad' has no attribute 'nothing'"):
        tvgrad.nothing  # noqa: B018


def test_modules_list_names_that_they_have() -> None:
    for name in modules().keys() - OF_EXTRAS:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{name}.{public}"


def loaded_by(code: str) -> set[str]:
    report = f"{code}\nimport sys; print(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "numpy", "pandas", "scipy", "sklearn", "seaborn", "matplotlib", "click", "rich", "safetensors"}


def test_importing_tvgrad_loads_nothing_heavy() -> None:
    assert not loaded_by("import tvgrad") & HEAVY
    assert not loaded_by("import tvgrad; tvgrad.TvgradError; dir(tvgrad)") & HEAVY


def test_the_command_lines_help_loads_click_alone() -> None:
    code = "from tvgrad.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded_by(code) & HEAVY == {"click"}


def test_tables_need_no_pictures() -> None:
    assert not loaded_by("import tvgrad.report.tables, tvgrad.report.documents") & {"seaborn", "matplotlib", "click"}


def test_files_and_functions_are_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    long = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    }
    assert {name: length for name, length in long.items() if length > 80} == {}


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    del places["RecorderCallback"]  # one for each library of Trainers, imported from the module that names it
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_facts_of_floating_point_formats_are_in_one_file() -> None:
    """No `2**-53`, and no `1 + 1e-9` for the rounding of a sum, outside `tvgrad.numerics.floats`."""
    texts = ("2**-53", "2.0**-53", "1 + 1e-9", "1.0 + 1e-9")
    literals = {ast.unparse(ast.parse(text, mode="eval").body) for text in texts}
    found = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        if name != "tvgrad.numerics.floats"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.BinOp) and ast.unparse(node) in literals
    ]
    assert found == []
