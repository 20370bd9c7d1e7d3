"""What `advl students` answers: the students there are, one in detail, whether a checkpoint fits one.

What was proven of each family is data (`data/students.toml`, and the files of that name that plug-ins bring). Results
are plain JSON types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advl_pipeline.packages import read_tables
from advl_pipeline.students.registry import door_of, student_names

SIZES = ("tiny", "small", "base", "large", "vcr", "256m", "500m", "2.2b", "2b", "4b", "8b")
"""What may follow a family's name; a name without a size has the size "base" in recipes."""


def families() -> dict[str, dict[str, Any]]:
    """Return what is known of each family: title, visual input, weights, reference, proof, largest, unproven."""
    return read_tables("students.toml")


def list_students() -> list[dict[str, Any]]:
    """Return name and family of every student, plug-ins included, without building any."""
    known = families()
    return [
        {"name": name, "family": family_of(name), **known.get(family_of(name), {"title": "plug-in"})}
        for name in student_names()
    ]


def show_student(name: str, *, tokenizer: str | None = None) -> dict[str, Any]:
    """Return architecture, parameters, and what was proven of one student.

    Args:
        tokenizer: folder or name of another tokenizer than the student's own, where that is not at hand.

    Raises:
        ConfigError: unknown name. WeightsUnavailable: the tokenizer is not at hand, for students whose architecture
            names its padding.
    """
    from advl_pipeline.students.registry import build_student, require_student

    require_student(name)
    student = build_student(name, overrides=_with_tokenizer(tokenizer))
    family = family_of(name)
    return {
        "name": name,
        "family": family,
        **families().get(family, {"title": "plug-in"}),
        "num_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "hidden_size": student.hidden_size,
        "pooled_size": student.pooled_size,
        "config": student.config_dict(),
    }


def check_checkpoint(name: str, checkpoint: Path, *, tokenizer: str | None = None) -> dict[str, Any]:
    """Return what became of every key of a checkpoint; the student is built with random weights first.

    Args:
        checkpoint: file or folder.
        tokenizer: as for `show_student`.

    Raises:
        ConfigError: unknown name, or nothing in the file fits. WeightsUnavailable: the file is not there or damaged.
    """
    from advl_pipeline.students.checkpoints import KeyRules, load_file
    from advl_pipeline.students.registry import build_student, require_student

    require_student(name)
    student = build_student(name, overrides=_with_tokenizer(tokenizer))
    rules: KeyRules = getattr(student, "rules", KeyRules())
    return {"student": name, **load_file(student, checkpoint, rules).to_dict()}


def family_of(name: str) -> str:
    """Return a student's name without its size; one behind a door is of its own family."""
    name = name.removeprefix(door_of(name))
    stem, _, size = name.rpartition("-")
    return stem if stem and size in SIZES else name


def size_of(name: str) -> str:
    """Return the size at the end of a student's name, "base" where it has none."""
    family = family_of(name)
    return name.removeprefix(door_of(name))[len(family) + 1 :] or "base"


def student_table() -> str:
    """Return what is known of the families as a Markdown table, as docs/students.md shows it."""
    names: dict[str, list[str]] = {}
    for name in student_names():
        if size_of(name) != "tiny" and family_of(name) in families():
            names.setdefault(family_of(name), []).append(f"`{name}`")
    rows = ["| student | visual input | weights | tasks | proven against, and how | largest difference |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for family, facts in families().items():
        largest = f"{facts['largest']:.1e}" if "largest" in facts else "-"
        proof = f"{facts['reference']}: {facts['proof']}. Unproven: {facts['unproven']}"
        cells = (", ".join(names[family]), facts["visual"], facts["weights"], facts["tasks"], proof, largest)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _with_tokenizer(tokenizer: str | None) -> dict[str, Any]:
    return {} if tokenizer is None else {"tokenizer": tokenizer}
