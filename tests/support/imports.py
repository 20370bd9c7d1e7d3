"""Imports of a source file, found by its syntax only."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def imported(node: ast.AST, *, lazily: bool = True, for_types: bool = True) -> Iterator[str]:
    """Yield the modules imported below a node, and `module.name` for imported names, without relative imports.

    Args:
        lazily: include imports within functions.
        for_types: include imports for type checking only.
    """
    for child in ast.iter_child_nodes(node):
        if not for_types and isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and not child.level:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        if lazily or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imported(child, lazily=lazily, for_types=for_types)
