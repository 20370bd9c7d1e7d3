"""What the code imports is what the project declares, and nothing that it declares goes unused."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

from imports import imported
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {"advl_pipeline", "advl_cli", "advl_data", "benchmarks"}
FILES_ALONE = {"demo", "dev", "site", "teachers"}
"""Extras of packages that are read as files, measured against, or run as tools."""

LOADED_BY_OTHERS = {"msgpack-numpy", "protobuf", "sentencepiece", "tiktoken", "torchvision", "fonttools"}
LOADED_BY_OTHERS |= {"tensorboard", "wandb"}
"""Packages that a library of ours imports when it meets a file of their kind."""

FOR_USERS = {"zarr"}
"""What users open a cache with who do not use our reader."""


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@functools.cache
def used() -> set[str]:
    """Return the distributions of what the code imports."""
    imports: set[str] = set()
    for path in (path for folder in ("advl_pipeline", "cli", "data") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports.update(imported(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                imports.update(str(name.value) for name in node.args if isinstance(name, ast.Constant))
    modules = {name.partition(".")[0] for name in imports} - set(sys.stdlib_module_names) - OWN - {""}
    known = importlib.metadata.packages_distributions()
    return {name.lower().replace("_", "-") for module in modules for name in known.get(module, [module])}


def test_every_import_is_declared() -> None:
    declared = {name_of(item) for item in PROJECT["dependencies"]}
    declared |= {name_of(item) for items in PROJECT["optional-dependencies"].values() for item in items}
    assert used() - declared == set()


def test_every_declared_package_is_imported() -> None:
    known = used() | LOADED_BY_OTHERS | FOR_USERS
    assert {name_of(item) for item in PROJECT["dependencies"]} - known == set()
    for extra, items in PROJECT["optional-dependencies"].items():
        if extra not in FILES_ALONE:
            assert {name_of(item) for item in items} - known == set(), extra


def test_the_core_is_light_and_nothing_is_out_of_reach() -> None:
    """`make install` installs what the project always had, and the bare package none of the large ones."""
    core = {name_of(item) for item in PROJECT["dependencies"]}
    assert core.isdisjoint({"torch", "transformers", "timm", "scipy", "zarr", "h5py"})
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = re.search(r"^EXTRAS := ([\w,]+)$", makefile, re.MULTILINE)
    assert extras
    installed = core.union(
        *({name_of(item) for item in PROJECT["optional-dependencies"][e]} for e in extras[1].split(","))
    )
    assert {"torch", "transformers", "timm", "h5py", "zarr", "numpy", "click", "tqdm", "pytest"} <= installed


def test_make_install_takes_locked_versions() -> None:
    """Every requirement of `make install` has a version in constraints.txt that it allows, of no certain build."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    locked = dict(line.split("==") for line in lines)
    assert not [line for line in lines if "+" in line or " @ " in line]
    versions = {name.lower().replace("_", "-"): version for name, version in locked.items()}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = re.search(r"^EXTRAS := ([\w,]+)$", makefile, re.MULTILINE)
    assert extras
    assert "--constraint constraints.txt --editable '.[$(EXTRAS)]'" in makefile
    named = [PROJECT["optional-dependencies"][extra] for extra in extras[1].split(",")]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *chain.from_iterable(named)]):
        name = requirement.name.lower().replace("_", "-")
        if name != PROJECT["name"]:
            assert name in versions, f"{requirement} has no version: make lock"
            assert requirement.specifier.contains(versions[name]), requirement
