"""The run folder: everything that a finetuning run leaves behind, and what lets it resume.

config.json · environment.json · settings.json (what it trains with, and where each number came from) · caches.json ·
metrics.jsonl · tensorboard/ (where asked for) · checkpoint.safetensors (while it runs) · model.safetensors and
student.json · selected_words.json and word_selection.json (of methods that select words) · result.json (last) ·
evaluation/ (written by `advl evaluate`).
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from advl_pipeline.atomic import make_folder, write_text, writing
from advl_pipeline.errors import IdentityMismatch
from advl_pipeline.training.run_identity import run_identity
from advl_pipeline.training.tensorboard import TENSORBOARD_FOLDER, TensorBoardLog

LIBRARIES = ("advl-pipeline", "torch", "transformers", "timm", "zarr", "numpy", "accelerate", "safetensors")


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self.result = path / "result.json"
        self.tensorboard: TensorBoardLog | None = None

    def open(
        self, config: Mapping[str, Any], *, resume: bool, cache_identities: Callable[[], list[dict[str, Any]]]
    ) -> None:
        """Create the folder, or check that an existing one belongs to the same configuration.

        Args:
            config: of the run that is asked for.
            resume: whether a run that lies there is to go on.
            cache_identities: gives the identities of the caches that are asked for. It is called when their paths are
                not those of the run: caches may move.

        Raises:
            IdentityMismatch: another run lies there.
        """
        make_folder(self.path)
        if self.config.exists() and resume:
            found = run_identity(json.loads(self.config.read_text(encoding="utf-8")))
            asked = run_identity(config)
            differing = sorted(
                key for key in {*found, *asked} if found.get(key, "(absent)") != asked.get(key, "(absent)")
            )
            if "cache" in differing and self._caches() == cache_identities():
                differing.remove("cache")
            if differing:
                raise self._other_run({key: (_shown(found, key), _shown(asked, key)) for key in differing})
        elif not resume:
            for path in (self.checkpoint, self.result, self.metrics):
                path.unlink(missing_ok=True)
        self.write_json("config.json", config)
        self.write_json("environment.json", describe_environment())

    def keep_caches(self, caches: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Write caches.json: path and identity of each cache that the run reads."""
        self.write_json("caches.json", [{"path": path, "identity": identity} for path, identity in caches])

    def _caches(self) -> list[dict[str, Any]] | None:
        path = self.path / "caches.json"
        if not path.exists():
            return None
        return [cache["identity"] for cache in json.loads(path.read_text(encoding="utf-8"))]

    def keep_settings(self, settings: Mapping[str, Any]) -> None:
        """Write settings.json: what the run trains with, and where each number came from.

        Raises:
            IdentityMismatch: a checkpoint lies here that was trained with other numbers, as after a recipe's file was
                edited.
        """
        path = self.path / "settings.json"
        if self.checkpoint.exists() and path.exists():
            found = _numbers(json.loads(path.read_text(encoding="utf-8")))
            asked = _numbers(json.loads(json.dumps(settings)))
            differing = sorted(key for key in {*found, *asked} if found.get(key) != asked.get(key))
            if differing:
                raise self._other_run({key: (_shown(found, key), _shown(asked, key)) for key in differing})
        self.write_json("settings.json", settings)

    def _other_run(self, differing: Mapping[str, tuple[str, str]]) -> IdentityMismatch:
        return IdentityMismatch(
            "The run folder holds a run with other settings.",
            where=str(self.path),
            why="; ".join(f"{key}: here {here}, asked for {asked}" for key, (here, asked) in differing.items()),
            next_command="choose another --output, or pass --no-resume to start over in this one",
        )

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON document atomically."""
        write_text(self.path / name, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None."""
        if not self.result.exists():
            return None
        result: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        return result

    def keep_metrics_before(self, step: int) -> None:
        """Drop logged steps from `step` on, and a torn last line: they are about to be written again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] < step:
                kept.append(line + "\n")
        write_text(self.metrics, "".join(kept))

    def open_tensorboard(self, *, first_step: int) -> None:
        """Log for TensorBoard as well, from a step on."""
        self.tensorboard = TensorBoardLog(self.path / TENSORBOARD_FOLDER, first_step=first_step)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records to the metrics."""
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        if self.tensorboard is not None:
            self.tensorboard.log(records)

    def close(self) -> None:
        """Finish the log for TensorBoard, where there is one."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def _numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    # How a step is split over processes may change when a run resumes.
    return {key: entry["value"] for key, entry in settings.get("settings", {}).items() if key != "accumulate"}


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "(absent)"


def describe_environment() -> dict[str, Any]:
    """Return versions and platform: provenance, not identity."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "libraries": libraries,
        "command": sys.argv,
    }
