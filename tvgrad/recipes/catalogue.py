"""The built-in recipes and the loading of any TARGET: a built-in name, file.py[:function] or package.module:function.

Code is run only when its TARGET was given by the user; a name that a run directory carries is looked up among the
built-in recipes and nowhere else.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import sys
import sysconfig
import traceback
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tvgrad.errors import TvgradError
from tvgrad.files.regular import real_path
from tvgrad.problem.recipe import Recipe, check_recipes
from tvgrad.recipes.module_names import defines_name, looks_like_training
from tvgrad.wording import loading_error, near


@dataclass(frozen=True)
class BuiltIn:
    """A recipe that comes with tvgrad.

    Attributes:
        target: module and function that make it.
        tasks: names of its tasks.
        data: where the data comes from.
        model: what is tuned.
        size: trainable parameters and training samples a task, in words.
    """

    target: str
    tasks: tuple[str, ...]
    data: str
    model: str
    size: str


def _built_in() -> dict[str, BuiltIn]:
    entries = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return {name: BuiltIn(**entry | {"tasks": tuple(entry["tasks"])}) for name, entry in entries.items()}


BUILT_IN = _built_in()
AS_IT_STANDS = "a training script is recorded as it stands by `tvgrad trace --out DIR -- python {}`"


def load_recipes(target: str, tasks: Collection[str] = ()) -> list[Recipe]:
    """Make the recipes that a TARGET names.

    Args:
        target: a built-in name, `file.py`, `file.py:function` or `package.module:function`; the function is `recipe`
            where none is named.
        tasks: keep only tasks of these names; empty keeps all.

    Returns:
        The recipes, in the target's order.

    Raises:
        TvgradError: the target cannot be found or run, or does not return recipes.
    """
    if target in BUILT_IN:
        recipes = check_recipes(_function(BUILT_IN[target].target)(), target)
    else:
        with _importing_from(target):
            recipes = check_recipes(_call(_function(target), target), target)
    unknown = [task for task in tasks if task not in {recipe.name for recipe in recipes}]
    if unknown:
        known = [recipe.name for recipe in recipes]
        told = f"choose from {', '.join(known)}{near(unknown[0], known)}"
        raise TvgradError(f"{target} has no task called {unknown[0]!r}: {told}")
    return [recipe for recipe in recipes if not tasks or recipe.name in tasks]


@contextmanager
def _importing_from(target: str) -> Generator[None]:
    """Let a target import its neighbours, as a script could, at the top of its file and inside its function."""
    place = target.rpartition(":")[0] if ":" in target else target
    folder = str(real_path(Path(place)).parent) if place.endswith(".py") else ""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the target's own code may have changed the path
            sys.path.remove(folder)


def _function(target: str) -> Callable[[], Any]:
    place, _, name = target.rpartition(":") if ":" in target else (target, "", "recipe")
    if place.endswith(".py"):
        _refuse_script(Path(place), name)
        module = _file_module(Path(place))
    elif ":" in target:
        module = _named_module(place)
    else:
        near = difflib.get_close_matches(target, BUILT_IN, 1)
        meant = f"did you mean {near[0]!r}? Or " if near else ""
        raise TvgradError(
            f"unknown recipe {target!r}: {meant}choose from {', '.join(BUILT_IN)}, or give file.py or "
            "package.module:function"
        )
    function = getattr(module, name, None)
    if not callable(function):
        script = f"; {AS_IT_STANDS.format(place)}" if place.endswith(".py") else ""
        raise TvgradError(f"{place} has no function called {name!r}: define one that returns a tvgrad.Recipe{script}")
    result: Callable[[], Any] = function
    return result


def _refuse_script(path: Path, name: str) -> None:
    """Refuse a training script without the function before its code runs: it would train and leave no record."""
    try:
        source = path.read_text(encoding="utf-8")
        script = looks_like_training(source) and not defines_name(source, name)
    except (OSError, SyntaxError, ValueError):
        return  # said where the file is run
    if script:
        raise TvgradError(
            f"{path} has no function called {name!r}: define one that returns a tvgrad.Recipe; "
            f"{AS_IT_STANDS.format(path)}"
        )


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise TvgradError(f"{path} does not exist: give the path of a Python file with a recipe function")
    spec = importlib.util.spec_from_file_location(f"tvgrad_target_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TvgradError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Pickling of the file's classes, and dataclasses in it, look the module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise TvgradError(f"{path} cannot be run: {_where(error)}") from error
    return module


def _named_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise TvgradError(f"module {name!r} cannot be imported: {_where(error)}") from error


def _call(function: Callable[[], Any], target: str) -> Any:
    try:
        return function()
    except TvgradError:
        raise
    except (Exception, SystemExit) as error:
        raise TvgradError(f"{target} failed: {_where(error)}") from error


def _where(error: BaseException) -> str:
    """The error and the line of the user's code that raised it, in half a sentence."""
    if isinstance(error, SyntaxError):
        return f"syntax error in line {error.lineno}: {error.msg}"
    words = loading_error(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SystemExit):
        return f"it exits ({words or 0}) where it should return{place}"
    return f"{type(error).__name__}: {words}{place}"


def _is_library(filename: str) -> bool:
    """Whether code is an installed package's, Python's own or tvgrad's (wherever that lies), and not the user's."""
    roots = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")} | {str(Path(__file__).parents[1])}
    installed = {"site-packages", "dist-packages"} & set(Path(filename).parts)  # of any environment on the path
    return filename.startswith("<") or bool(installed) or any(filename.startswith(root) for root in roots)
