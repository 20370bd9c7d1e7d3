"""What docstrings refer to as `module.name` is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file for folder in ("advl_pipeline", "cli", "data", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
REFERENCE = re.compile(r"`([a-z_]+)\.([A-Za-z_]+)[`(.\[]")


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings, those of constants too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def names_in(tree: ast.AST) -> set[str]:
    """Return everything that a module defines, imports or names as an attribute of its classes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name)
    return found


def stale(texts: dict[Path, str]) -> list[str]:
    """Return the references in docstrings that lead nowhere.

    Args:
        texts: source by file.
    """
    trees = {file: ast.parse(text) for file, text in texts.items()}
    modules: dict[str, set[str]] = {}
    for file, tree in trees.items():
        stem = file.parent.name if file.stem == "__init__" else file.stem
        modules.setdefault(stem, set()).update(names_in(tree))
    folders = {parent.name for file in trees for parent in file.parents}
    # `student.json` is a file, and `config.init` a field of what is called so.
    values = {
        name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.arg) for name in [node.arg]
    }
    wrong = []
    for file, tree in trees.items():
        for line, text in docstrings(tree):
            for module, name in REFERENCE.findall(text):
                if module in values or module not in modules or name in ("py", "json", "toml"):
                    continue
                if name not in modules[module] and name not in modules and name not in folders:
                    wrong.append(f"{file}:{line}: `{module}.{name}`")
    return wrong


def test_docstrings_refer_to_what_is_there() -> None:
    wrong = stale({file: file.read_text(encoding="utf-8") for file in SOURCES})
    assert not wrong, "\n".join(wrong)


def test_a_reference_that_leads_nowhere_is_found() -> None:
    texts = {
        Path("/p/folds.py"): "def assign(): ...",
        Path("/p/other.py"): '"""See `folds.assign` and `folds.assign_folds`."""',
    }
    assert stale(texts) == ["/p/other.py:1: `folds.assign_folds`"]


def test_sources_hold_no_control_characters() -> None:
    for file in SOURCES:
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", file.read_text(encoding="utf-8")), file
