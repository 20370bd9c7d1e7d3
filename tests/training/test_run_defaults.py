"""The defaults that the identities of runs and cells leave out are those that go with the schema's number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advl_pipeline.configuration import build_config, config_to_dict, fallbacks
from advl_pipeline.training import resolved
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import SCHEMA, run_identity

STORED = Path(__file__).parents[1] / "assets" / "run_defaults.json"


def defaults() -> dict[str, Any]:
    """Return the schema's number and everything that stands for options that are not given."""
    options = config_to_dict(FinetuneConfig(dataset="", output=Path()))
    del options["student"]  # It stands in every identity.
    return {
        "schema": SCHEMA,
        "options": options,
        "without a recipe": fallbacks(FinetuneConfig),
        "by method": resolved._DEFAULTS,
    }


def test_another_default_takes_another_schema() -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert defaults() == stored, (
        "a default is another: raise SCHEMA of training/resolved.py, and write the file anew by "
        f"python {Path(__file__).relative_to(Path.cwd())}; a new option is written into it without raising"
    )


def test_what_is_left_at_its_default_is_not_in_the_identity() -> None:
    config = build_config(
        FinetuneConfig, {"dataset": "d", "output": "o", "student": "vilt", "seed": 0, "num_steps": 5}
    )
    assert run_identity(config_to_dict(config)) == {"dataset": "d", "num_steps": 5, "student": "vilt"}


if __name__ == "__main__":
    STORED.write_text(json.dumps(defaults(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
