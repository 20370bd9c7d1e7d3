"""The files of a pretrained student, whoever wrote it, and their digest. Nothing is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from advl_pipeline.errors import WeightsUnavailable
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
            # What we pretrain goes by its student's name; a published student is not to be made from drawings.
            next_command=f"advl pretrain --output {path}"
            if path.name.startswith("scenes-")
            else "put the student's weights there, or give --init the place where they lie",
        )
    state = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            state.update(hashlib.file_digest(handle, "sha256").digest())
    return state.hexdigest()
