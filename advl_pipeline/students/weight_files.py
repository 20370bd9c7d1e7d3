"""Find, download and hash the files of a pretrained student, without loading them."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from advl_pipeline.base.errors import Advice, IdentityMismatch, WeightsUnavailable, advise
from advl_pipeline.base.locations import not_allowed
from advl_pipeline.base.repositories import HUB_PREFIX, fetch, pinned, require_downloaded
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_result, say_on_trust
from advl_pipeline.students.known_words import KNOWN_WORDS_FILE
from advl_pipeline.students.presets import family_facts
from advl_pipeline.students.registry import require_supported

MODEL_CONFIG = "config.json"
"""Architecture of published weights, in the format of transformers."""

_TOKENIZERS = ((names.TOKENIZER,), ("vocab.txt",), ("vocab.json", "merges.txt"))
_TOKENIZER_FILES = (
    *(name for several in _TOKENIZERS for name in several),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "*.model", "chat_template.*"),
    *("processor_config.json", "preprocessor_config.json"),
)
"""Files of a tokenizer or a processor."""

_OF_OUR_FOLDERS = (names.STUDENT, names.HEADS, names.ADAPTER, KNOWN_WORDS_FILE)
_OF_RUNS = (
    *(*_OF_OUR_FOLDERS, *_TOKENIZER_FILES, f"{names.PROCESSOR}/**/*"),
    *(names.HEADS_WEIGHTS, names.CONFIG, names.IDENTITY),
)
_OF_PUBLISHED_FOLDERS = (MODEL_CONFIG, "*.index.json")


def weight_files(path: Path) -> list[Path]:
    """Return the weight files of a pretrained student; empty if it does not exist."""
    if path.is_file():
        return [path]
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))


def tokenizer_folder(path: Path) -> Path | None:
    """Return the folder of a pretrained student, or of its checkpoint file, if it contains a tokenizer."""
    folder = path if path.is_dir() else path.parent
    has_tokenizer = any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS)
    return folder if has_tokenizer else None


def weights_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the weights of a pretrained student, a folder or a checkpoint file.

    Raises:
        WeightsUnavailable: the weights are missing.
    """
    state = hashlib.sha256()
    for file in required_weights(path):
        state.update(_hash(file))
    return state.hexdigest()


def student_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of all files of a pretrained student, by name and content.

    These are its weights, description, heads, known words, tokenizer and processor, if present.

    Raises:
        WeightsUnavailable: the weights are missing.
    """
    weights = required_weights(path)
    folder = path if path.is_dir() else path.parent
    described = _OF_OUR_FOLDERS if (folder / names.STUDENT).is_file() else _OF_PUBLISHED_FOLDERS
    return _digest(folder, (*_TOKENIZER_FILES, *described, f"{names.PROCESSOR}/**/*"), *weights)


def tokenizer_digest(name: str) -> str:
    """Return the hexadecimal SHA-256 of a tokenizer's folder, or the name of a tokenizer that is not a folder.

    Args:
        name: a value of `--tokenizer`.
    """
    folder = Path(name)
    return _digest(folder, (*_TOKENIZER_FILES, MODEL_CONFIG)) if folder.is_dir() else name


def file_digest(path: str) -> str | None:
    """Return the hexadecimal SHA-256 of a file; None if it does not exist."""
    return _hash(Path(path)).hex() if Path(path).is_file() else None


def required_weights(path: Path) -> list[Path]:
    """Return the weight files of a pretrained student.

    Raises:
        WeightsUnavailable: the student does not exist.
        NotAllowed: this user may not look into its folder.
    """
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise not_allowed(path, os.R_OK | os.X_OK)
    files = weight_files(path)
    if not files:
        raise WeightsUnavailable(
            "The pretrained student does not exist.",
            where=str(path),
            why="neither a checkpoint file nor a folder with *.safetensors or pytorch_model.bin",
            next_command=making_command(path.name, path) or "pass the place of the student's weights to --init",
        )
    return files


def run_files(run: Path) -> dict[str, str]:
    """Return the hexadecimal SHA-256 of each file that determines a run's answers, by its name in the run.

    The digest of the student's weights is in student.json.
    """
    return {name: content.hex() for name, content in _contents(run, _OF_RUNS).items()}


def require_run_files(folder: Path, *only: str) -> None:
    """Refuse a finished run whose files changed; warn if an earlier version recorded no digests.

    Args:
        only: names of the files to compare; all of them if empty.

    Raises:
        IdentityMismatch: a file is missing, added or changed. ConfigError: result.json is damaged.
    """
    if not names.is_finished(folder):
        return
    recorded = read_result(folder).files
    if recorded is None:
        say_on_trust("runs of an earlier version have no digests of their files")
        return
    present = {name: content.hex() for name, content in _contents(folder, only or _OF_RUNS).items()}
    compared = only or recorded.keys() | present
    if changed := sorted(name for name in compared if recorded.get(name) != present.get(name)):
        raise IdentityMismatch(
            "Files of the run have changed since it was finished.",
            where=str(folder / changed[0]),
            why=f"{names.RESULT} records other content of {', '.join(changed)}",
            next_command="copy the run again from where it was made, or train it again",
        )


def _digest(folder: Path, patterns: Iterable[str], *files: Path) -> str:
    state = hashlib.sha256()
    for name, content in _contents(folder, patterns, *files).items():
        state.update(f"{name}\0".encode() + content)
    return state.hexdigest()


def _contents(folder: Path, patterns: Iterable[str], *files: Path) -> dict[str, bytes]:
    paths = {*files, *(file for pattern in patterns for file in folder.glob(pattern))}
    contents = {file.relative_to(folder).as_posix(): _hash(file) for file in paths if file.is_file()}
    return dict(sorted(contents.items()))


def _hash(file: Path) -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def making_command(student: str, folder: Path) -> Advice | None:
    """Return the command that pretrains a student into a folder, from its plug-in; None without one."""
    command: str = family_facts(student).get("made_by", "")
    words = shlex.split(command.format(student=student, folder=shlex.quote(str(folder))))
    return advise(words) if words else None


def is_on_hub(init: Path | None) -> bool:
    """Return whether a pretrained student is a repository of the hub."""
    return init is not None and str(init).startswith(HUB_PREFIX)


def located(init: Path, *, student: str = "") -> Path:
    """Return the path of a pretrained student, after downloading the missing files of a repository.

    Args:
        init: a file or folder, or `hf:ORG/MODEL` or `hf:ORG/MODEL@REVISION`.
        student: name of the student that will read them; an unsupported repository is refused before its weights are
            downloaded.

    Raises:
        WeightsUnavailable: the repository is not on this machine and cannot be downloaded, or contains no weights; or
            Git LFS left pointers in place of files.
        ConfigError: the student cannot be built of the repository.
    """
    what = "weights of the pretrained student"
    if not is_on_hub(init):
        if init.exists():
            require_downloaded(init, what=what)
        return init
    name = str(init).removeprefix(HUB_PREFIX)
    folder = fetch(name, what=what, option="--init", weights=())
    require_supported(student, folder)
    return fetch(pinned(name, folder), what=what, option="--init")


def pinned_init(init: Path, student: str) -> Path:
    """Return a pretrained student's repository with its current commit, or its path unchanged.

    Args:
        student: as for `located`.

    Raises:
        WeightsUnavailable, ConfigError: as for `located`.
    """
    if not is_on_hub(init):
        return init
    return Path(HUB_PREFIX + pinned(str(init).removeprefix(HUB_PREFIX), located(init, student=student)))
