"""`--init hf:ORG/MODEL`: published weights of a student, with its tokenizer, from the hub or its local copy."""

from __future__ import annotations

from pathlib import Path

from advl_pipeline.errors import WeightsUnavailable
from advl_pipeline.hub import hub_obstacle
from advl_pipeline.students.weight_files import weight_files

HUB = "hf:"

_DESCRIPTIONS = ["*.json", "*.txt"]
_WEIGHTS = (["*.safetensors"], ["pytorch_model*.bin"])
"""Kinds of weights, the first that a repository has is fetched."""


def is_on_hub(init: Path | None) -> bool:
    """Whether a pretrained student is named by its repository."""
    return init is not None and str(init).startswith(HUB)


def located(init: Path) -> Path:
    """Return where a pretrained student lies: itself, or the folder of a repository's files, fetched where missing.

    Args:
        init: a file or folder, or `hf:ORG/MODEL` or `hf:ORG/MODEL@REVISION`.

    Raises:
        WeightsUnavailable: the repository is neither here nor to be had, or holds no weights.
    """
    if not is_on_hub(init):
        return init
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, wanted = str(init).removeprefix(HUB).partition("@")
    revision = wanted or None
    try:
        here = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if weight_files(here):
            return here
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    obstacle = hub_obstacle()
    try:
        for patterns in () if obstacle else _WEIGHTS:
            here = Path(snapshot_download(repository, revision=revision, allow_patterns=[*_DESCRIPTIONS, *patterns]))
            if weight_files(here):
                return here
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        obstacle = str(error).split("\n", maxsplit=1)[0]
    raise WeightsUnavailable(
        "The pretrained student is not at hand.",
        where=str(init),
        why=obstacle or "the repository holds neither *.safetensors nor pytorch_model.bin",
        next_command="--init FOLDER that holds its weights, downloaded elsewhere",
    )
