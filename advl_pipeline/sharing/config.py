"""Options of `advl export`, `advl cache push` and `advl cache pull`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advl_pipeline.base.configuration import Configuration, Output, option


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRunConfig(Configuration):
    """Run, format and destination of `advl export`."""

    run: Path = option(help="Folder of a finished run.")
    to: Literal["transformers", "safetensors"] | None = option(
        None,
        help="transformers: a folder for its from_pretrained. safetensors: a folder that this package loads, for any "
        "student [default: transformers if it has a class for the student, else safetensors].",
    )
    output: Path = option(help="Folder to write; must not exist.", such_as="shared/mine", output=Output(makes="new"))
    push_to_hub: str | None = option(
        None, help="Also upload it to this repository of the hub; replaces an earlier push.", metavar="ORG/NAME"
    )
    private: bool = option(False, help="Create the repository as private if it does not exist.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PushConfig(Configuration):
    """Cache and destination of `advl cache push`."""

    cache: Path = option(help="Folder of the cache.")
    repository: str = option(help="Dataset repository of the hub, ORG/NAME; replaces an earlier push.")
    private: bool = option(False, help="Create the repository as private if it does not exist.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PullConfig(Configuration):
    """Repository and destination of `advl cache pull`."""

    repository: str = option(help="Dataset repository of the hub, ORG/NAME.")
    output: Path = option(
        help="Folder of the cache; must not exist. The same command resumes an interrupted download.",
        such_as="caches/pulled",
        output=Output(makes="new"),
    )
    revision: str | None = option(None, help="Commit, branch or tag [default: main].")
