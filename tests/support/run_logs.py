"""What a run wrote, as tests compare it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[dict[str, float]]:
    """Everything that was computed, without the clock."""
    return [
        {key: value for key, value in record.items() if not key.startswith("seconds")} for record in metrics(folder)
    ]


def load_json(path: Path) -> Any:
    """Return a JSON document that a run wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def forget_digests(run: Path) -> None:
    """Make a run one of an earlier version, which recorded no digests of its files."""
    result = load_json(run / "result.json")
    del result["files"]
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
