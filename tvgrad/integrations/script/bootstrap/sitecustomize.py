"""Runs at the start of every Python of a traced command, before the script, and leaves hardly a trace.

It waits for the first import of torch and then has tvgrad install its hooks; a Python that never imports torch never
imports tvgrad. This folder leaves `sys.path`, and another sitecustomize that it hid is run in its place. The folder
stays in PYTHONPATH, so that a launcher's processes are reached too.
"""

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any


class _TorchFinder:
    """Lets the other finders find torch, and installs the hooks when its module has been executed."""

    _asking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        # A script may ask whether there is a torch without importing it: only the execution counts.
        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _install()

        loader.exec_module = exec_module
        return spec


def _install() -> None:
    try:
        from tvgrad.integrations.script.hooks import install
    except ImportError as error:
        sys.stderr.write(
            f"tvgrad: nothing is recorded, because tvgrad cannot be imported by {sys.executable} ({error}): install "
            "it there\n"
        )
        import json

        options = json.loads(os.environ["TVGRAD_TRACE"])
        try:
            with open(os.path.join(options["notes"], "notes"), "a", encoding="utf-8") as notes:
                notes.write(json.dumps({"pid": os.getpid(), "event": "stopped"}) + "\n")
        except OSError:  # who started this is gone
            pass
        if options["strict"]:
            raise SystemExit(2) from None
        return
    install()


def _make_way() -> None:
    """Take this folder out of `sys.path`, and run the sitecustomize that it hid."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if "TVGRAD_TRACE" in os.environ:
    sys.meta_path.insert(0, _TorchFinder())
_make_way()
