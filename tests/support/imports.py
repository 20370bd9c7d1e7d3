"""What a source file imports, by its syntax alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def imported(node: ast.AST, *, lazily: bool = True, for_types: bool = True) -> Iterator[str]:
    """Yield the modules that are imported below a node, and `module.name` of names; no relative ones.

    Args:
        lazily: within functions, too.
        for_types: for types alone, too.
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
