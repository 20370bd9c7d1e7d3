"""No module imports, directly or by way of others, a module that imports it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "advl_pipeline"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(node: ast.AST, *, lazily: bool) -> Iterator[str]:
    """Yield what is imported below a node; within functions only if `lazily`, for types alone never."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module is not None:
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield whole if whole in MODULES else child.module
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        if lazily or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imported(child, lazily=lazily)


@pytest.mark.parametrize(("folder", "lazily"), [("advl_pipeline", False), ("advl_pipeline.cache", True)])
def test_no_circle(folder: str, lazily: bool) -> None:
    modules = {name for name in MODULES if f"{name}.".startswith(f"{folder}.")}
    graph = {
        name: modules.intersection(imported(ast.parse(MODULES[name].read_text("utf-8")), lazily=lazily)) - {name}
        for name in modules
    }
    assert sum(map(len, graph.values())) > len(modules)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
