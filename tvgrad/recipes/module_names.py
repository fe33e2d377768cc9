"""Which names a Python file gives itself, told from its syntax tree, without running it."""

from __future__ import annotations

import ast
import symtable

TRAINING = frozenset({"backward", "step", "fit", "train"})
"""Methods that a training script calls: of a loss, an optimizer, a Trainer, a model."""


def defines_name(source: str, name: str) -> bool:
    """Tell whether a file may have a name at its top level when it has run.

    Args:
        source: the file's text.
        name: the name.

    Returns:
        True where the file defines or imports the name, or might do so: by `import *`, by `__getattr__`, in a function
        that declares it global, or where it writes the name as a string (for `globals()`, say). Else False.

    Raises:
        SyntaxError: it is no Python.
        ValueError: it holds null bytes.
    """  # noqa: DOC502 - raised by ast and symtable
    top = symtable.symtable(source, "file", "exec")
    if name in top.get_identifiers():
        symbol = top.lookup(name)
        if symbol.is_assigned() or symbol.is_imported():
            return True
    return any(_might_define(node, name) for node in ast.walk(ast.parse(source)))


def _might_define(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Global):
        return name in node.names
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    if isinstance(node, ast.FunctionDef):
        return node.name == "__getattr__"
    return isinstance(node, ast.Constant) and node.value == name


def looks_like_training(source: str) -> bool:
    """Tell whether a file calls what training scripts call.

    Args:
        source: the file's text.

    Returns:
        Whether it calls a method of one of the names in `TRAINING`.

    Raises:
        SyntaxError: it is no Python.
        ValueError: it holds null bytes.
    """  # noqa: DOC502 - raised by ast
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Attribute) and called.attr in TRAINING for called in calls)
