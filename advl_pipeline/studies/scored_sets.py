"""Whether test sets still are what they were when runs of a study were scored on them."""

from __future__ import annotations

import shlex
from pathlib import Path

from advl_pipeline.datasets.roots import set_name
from advl_pipeline.errors import (
    AdvlError,
    ConfigError,
    again,
)
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_config, read_json
from advl_pipeline.studies.plan import Plan


def require_same_test_sets(plan: Plan, data_root: Path | None) -> None:
    """Compare each test set with what the first run that was scored on it saw.

    Runs are compared among themselves where they are gathered. A set that cannot be opened here is not
    looked at: a finished study can be shown anywhere.

    Raises:
        ConfigError: a set has changed, with the scores that are to be removed.
    """
    scored: dict[tuple[str, str], Path] = {}
    for cell in plan.cells:
        for test_set in cell.test_sets:
            path = names.evaluation_file(cell.run, test_set, ".json")
            if path.exists() and names.is_finished(cell.run):
                scored.setdefault((cell.finetune.dataset, test_set), path)
    for (dataset, test_set), path in scored.items():
        then = read_json(path).get("content_digest")
        now = _digest(*set_name(test_set, dataset), data_root, read_config(path.parents[1]).get("text_style"))
        if then is not None and now is not None and then != now:
            old = f"{shlex.quote(str(path.parents[2]))}/*/evaluation/{shlex.quote(path.name)}"
            raise ConfigError(
                f"The test set {test_set} has changed since runs were scored on it.",
                where=str(path),
                why=f"its content was {then[:12]} and is {now[:12]}, so old scores would stand beside new ones",
                next_command=again(f"rm {old}   (the old scores), then give the same command again"),
            )


def _digest(dataset: str, split: str, data_root: Path | None, text_style: str | None) -> str | None:
    """Return the content digest of a set as a run with this text style read it; None where it cannot be opened."""
    from advl_pipeline.datasets.registry import open_dataset

    try:
        opened = open_dataset(dataset, split=split, data_root=data_root, text_style=text_style)  # type: ignore[arg-type]
        return opened.content_digest()
    except AdvlError:
        return None
