"""The walk-through in the documentation works as it stands, as a plug-in, and keeps the contract's first rules."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from made_examples import picture, question

from advl_pipeline.students import registry
from advl_pipeline.students.saved import save_student

GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-student.md"


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the guide's example as a module with entry points."""
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "late_fusion_example.py"
    path.write_text(code.group(1), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("late_fusion_example", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "late_fusion_example", module)
    spec.loader.exec_module(module)
    points = [
        EntryPoint(name=name, value="late_fusion_example:build", group="advl.students")
        for name in ("late-fusion", "late-fusion-tiny")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "advl.students" else [])


@pytest.mark.usefixtures("plugged_in")
def test_the_guides_student_is_found_encodes_and_saves(tmp_path: Path) -> None:
    assert "late-fusion-tiny" in registry.student_names()
    student = registry.build_student("late-fusion-tiny").eval()
    shown = picture(tmp_path / "p.png", 40, 30, boxes=[[1, 2, 20, 22]])
    batch = student.collate([question(shown, "Why is it red?", "vcr-q2a", ["Rust.", "No idea."])])
    with torch.no_grad():
        output = student.encode(batch)
        hidden = student.encode(batch, mask_visual=True)
    assert output.pooled_NP.shape == (2, student.pooled_size)
    assert (hidden.pooled_NP - output.pooled_NP).abs().max() > 1e-4
    assert student.build_head("vcr-q2a", 1)(output.pooled_NP).shape == (2, 1)
    save_student(tmp_path / "saved", student, origin={})
    again = registry.build_student("late-fusion-tiny", weights=tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again.encode(batch).pooled_NP, output.pooled_NP)
