"""The house keeps its order: imports go one way and never in a circle, and names in docs and docstrings are there."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from imports import imported

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "advl_pipeline"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    file for folder in ("advl_pipeline", "cli", "data", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

FILE_NAME = re.compile(r"(?<![\w./*<{-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml))\b(?![\w*])")
DOTTED_NAME = re.compile(r"\badvl_(?:pipeline|cli|data)(?:\.\w+)+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"`([a-z_]+)\.([A-Za-z_]+)[`(.\[]")
"""What docstrings refer to as `module.name`."""
OF_USERS = re.compile(r"(?:^|/)(?:FILE|NAME|mine|ATTRIBUTION)\.(?:toml|md)$")
"""Placeholders, and files that commands write elsewhere."""
HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)


def folders_in_order() -> list[str]:
    """Return the folders of the package in the order of the architecture page's table."""
    table = ARCHITECTURE.partition("## Folders")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)/` \|", table, flags=re.MULTILINE)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> list[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    assert not re.search(r"^\s*from \.", path.read_text(encoding="utf-8"), flags=re.MULTILINE), (
        f"{path}: a relative import"
    )
    return [name for name in imported(tree_of(path)) if name.startswith("advl_pipeline.")]


def bound_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names of what a module assigns, takes as arguments and defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def test_names_say_what_they_hold() -> None:
    wrong = {
        file: names for file in SOURCES if (names := {"found", "one", "own", "told"} & {*bound_names(tree_of(file))})
    }
    fields = {PACKAGE / "cache" / "identity.py": {"found"}}  # The column of a table that users read.
    assert wrong == fields


def test_the_architecture_page_names_every_folder() -> None:
    assert sorted(folders_in_order()) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_no_folder_imports_a_later_one() -> None:
    order = folders_in_order()
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "__init__.py":
            # The Python interface opens every folder, and nothing of the package imports it.
            continue
        place = order.index(path.relative_to(PACKAGE).parts[0])
        later = [name for name in imported_modules(path) if order.index(name.split(".")[1]) > place]
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in later]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("folder", "other"),
    [
        ("students", "cache"),
        ("students", "teachers"),
        ("students", "extraction"),
        ("distillation", "extraction"),
        ("training", "extraction"),
        ("evaluation", "extraction"),
        ("cache", "datasets"),
        ("runs", "students"),
    ],
)
def test_a_folder_does_not_know_what_the_page_says(folder: str, other: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (PACKAGE / folder).rglob("*.py")
        for name in imported_modules(path)
        if name.split(".")[1] == other
    ]
    assert not wrong, "\n".join(wrong)


OPTIONS_OF_TRAINING = ("advl_pipeline.training.config.", "advl_pipeline.training.facts.")


@pytest.mark.parametrize("folder", ["evaluation", "reporting", "sharing"])
def test_what_uses_a_finished_student_knows_only_the_options_of_its_training(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (PACKAGE / folder).rglob("*.py")
        for name in imported_modules(path)
        if name.startswith("advl_pipeline.training") and not name.startswith(OPTIONS_OF_TRAINING)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_wheel_holds_every_folder() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    folders |= {
        ".".join(("advl_data", *path.parent.relative_to(ROOT / "data").parts))
        for path in (ROOT / "data").rglob("__init__.py")
    }
    assert folders | {"advl_cli"} == set(listed)


def test_the_product_knows_the_built_in_corpus_through_its_entry_points_alone() -> None:
    files = [path for folder in ("advl_pipeline", "cli") for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts = {path: path.read_text("utf-8") for path in files if path.suffix != ".pyc"}
    assert len(texts) > 200
    naming = [path for path, text in texts.items() if re.search(r"scenes|advl_data\.\w", text, flags=re.IGNORECASE)]
    assert not naming


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_of_a_page_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in FILE_NAME.findall(text) if not OF_USERS.search(name) and not _is_file(name)]
    for target in LINK.findall(text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        aim = (page.parent / file).resolve() if file else page
        if not aim.exists() or (anchor and anchor not in _anchors(aim)):
            missing.append(target)
    missing += [name for name in DOTTED_NAME.findall(text) if not _is_defined(name)]
    assert not missing, missing


def _is_file(name: str) -> bool:
    """Whether a name is that of a file of ours, from the root, from the package, or by its end."""
    if "/" in name:
        return any((base / name).exists() for base in (ROOT, PACKAGE, ROOT / "docs"))
    return any(ROOT.glob(name)) or any(
        any((ROOT / folder).rglob(name)) for folder in ("advl_pipeline", "cli", "data", "docs", "tests", "benchmarks")
    )


def _anchors(page: Path) -> set[str]:
    """Return the anchors that headings of a page get."""
    headings = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _is_defined(name: str) -> bool:
    """Whether a dotted name is a module of ours, or a name in one; nothing is imported."""
    first, *parts = name.split(".")
    place = ROOT / {"advl_cli": "cli", "advl_data": "data"}.get(first, first)
    for part in parts:
        if (place / part).is_dir():
            place /= part
        elif (place / f"{part}.py").is_file():
            place /= f"{part}.py"
        else:
            return part in names_in(tree_of(place if place.suffix else place / "__init__.py"))
    return True


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of the docstrings, those of constants too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def names_in(tree: ast.AST) -> set[str]:
    """Return everything that a module defines, imports or names as an attribute of its classes."""
    defined: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                defined.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.alias(name=name, asname=other):
                defined.add(other or name)
    return defined


def stale(trees: Mapping[Path, ast.Module]) -> list[str]:
    """Return the references in docstrings that lead nowhere."""
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
    wrong = stale({file: tree_of(file) for file in SOURCES})
    assert not wrong, "\n".join(wrong)


def test_a_reference_that_leads_nowhere_is_found() -> None:
    assert _is_defined("advl_pipeline.cache.reader.open_cache")
    assert not _is_defined("advl_pipeline.cache.reader.open_cash")
    texts = {
        Path("/p/folds.py"): "def assign(): ...",
        Path("/p/other.py"): '"""See `folds.assign` and `folds.assign_folds`."""',
    }
    assert stale({file: ast.parse(text) for file, text in texts.items()}) == ["/p/other.py:1: `folds.assign_folds`"]


def test_sources_hold_no_control_characters() -> None:
    for file in SOURCES:
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", file.read_text(encoding="utf-8")), file
