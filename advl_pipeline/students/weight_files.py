"""The files of a pretrained student, whoever wrote it: found, fetched from the hub, digested. Nothing is loaded."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from advl_pipeline.errors import WeightsUnavailable
from advl_pipeline.hub import hub_obstacle
from advl_pipeline.runs import names

_TOKENIZERS = ((names.TOKENIZER,), ("vocab.txt",), ("vocab.json", "merges.txt"))


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold a pretrained student; none where it does not exist."""
    if path.is_file():
        return [path]
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))


def tokenizer_folder(path: Path) -> Path | None:
    """Return the folder of a pretrained student, or of its checkpoint file, if a tokenizer lies there too."""
    folder = path if path.is_dir() else path.parent
    found = any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)
    return folder if found else None


def weights_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 over the files of a pretrained student, a folder or a checkpoint file.

    Raises:
        WeightsUnavailable: there is none.
    """
    files = weight_files(path)
    if not files:
        raise WeightsUnavailable(
            "The pretrained student does not exist.",
            where=str(path),
            why="neither a checkpoint file nor a folder with *.safetensors or pytorch_model.bin",
            # A published student is not to be made from drawings.
            next_command=pretrain_command(path)
            if path.name.startswith("scenes-")
            else "put the student's weights there, or give --init the place where they lie",
        )
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            state.update(hashlib.file_digest(handle, "sha256").digest())
    return state.hexdigest()


def pretrain_command(folder: Path) -> str:
    """Return the command that makes a pretrained student; its folder goes by the student's name."""
    student = ["--student", folder.name] if folder.name.startswith("scenes-") else []
    return shlex.join(["advl", "pretrain", *student, "--output", str(folder)])


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
