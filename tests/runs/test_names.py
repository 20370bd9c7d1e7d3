"""Names in a run folder stand in one place, and in the page about folders."""

from __future__ import annotations

import ast
from pathlib import Path

from advl_pipeline.runs import names

ROOT = Path(__file__).parents[2]
FILES = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
OF_OTHERS = {"model.safetensors", "tokenizer.json", "config.json", "tensorboard", "wandb", "mlflow"}
"""Names that published models and Python packages have too."""


def test_no_other_module_spells_the_name_of_a_run_file() -> None:
    spelt = []
    for path in [*(ROOT / "advl_pipeline").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        if path.name in ("names.py", "folders.py"):
            continue
        spelt += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in FILES - OF_OTHERS
        ]
    assert not spelt, "\n".join(spelt)


def test_the_page_about_folders_lists_every_name() -> None:
    page = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8").partition("## The run folder")[2]
    table = page.partition("\n\n`run.json` decides")[0]
    assert {name for name in FILES if f"`{name}" not in table} == set()
