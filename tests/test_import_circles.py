"""No module imports, directly or by way of others, a module that imports it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from imports import imported

PACKAGE = Path(__file__).parents[1] / "advl_pipeline"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


@pytest.mark.parametrize(("folder", "lazily"), [("advl_pipeline", False), ("advl_pipeline.cache", True)])
def test_no_circle(folder: str, lazily: bool) -> None:
    modules = {name for name in MODULES if f"{name}.".startswith(f"{folder}.")}
    graph: dict[str, set[str]] = {}
    for name in modules:
        imports = set(imported(ast.parse(MODULES[name].read_text("utf-8")), lazily=lazily, for_types=False))
        graph[name] = modules & (imports | {module.rpartition(".")[0] for module in imports - MODULES.keys()}) - {
            name
        }
    assert sum(map(len, graph.values())) > len(modules)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
