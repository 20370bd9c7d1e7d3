"""Output of a run in comparable form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advl_pipeline.runs import names

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(folder: Path) -> list[dict[str, float]]:
    """Return all computed values of the log, without times."""
    return [
        {key: value for key, value in record.items() if not key.startswith("seconds")} for record in metrics(folder)
    ]


def tensorboard_of(folder: Path) -> EventAccumulator:
    """Return what TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / names.TENSORBOARD), size_guidance={"scalars": 0})
    events.Reload()
    return events


def load_json(path: Path) -> Any:
    """Return a JSON document written by a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def items_file(run: Path, test_set: str = "test") -> Path:
    """Return the file of item scores that the document of an evaluation names."""
    document = run / "evaluation" / f"{test_set}.json"
    return document.with_name(f"{test_set}.{load_json(document)['items_digest'][:16]}.npz")


def forget_digests(run: Path) -> None:
    """Convert a run to the format of an earlier version, which recorded no file digests."""
    result = load_json(run / "result.json")
    del result["files"]
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
