"""Repositories of the hub by name, and what is in one: nothing else is read, whatever its card, rows or links name.

Anyone can publish a repository. Its README may name any file of this machine, of another repository or of the network
as its data, a row any file as its picture, and a link in a copy may lead anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.roots import HUB_PREFIX, is_safe_name

_CARDS = ("README.md", ".huggingface.yaml")
"""Files that name the data of a repository."""

_KINDS = ("parquet", "arrow", "json", "csv", "text", "imagefolder", "webdataset", "cache")
"""Builders of the library that are used; others follow links inside their files, or run code for them."""

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class HubName:
    """What `hf:` names; `copy` is a folder that holds the repository here."""

    path: str
    configuration: str = ""
    revision: str = ""
    copy: Path | None = None

    def __str__(self) -> str:
        configuration = f":{self.configuration}" if self.configuration else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.path}{configuration}{revision}"


def hub_name(text: str, root: Path) -> HubName:
    """Take a name apart.

    Args:
        root: folder of the datasets.
    """
    text = text.removeprefix(HUB_PREFIX)
    if Path(text).is_dir():
        return HubName(text, copy=Path(text))
    whole, _, revision = text.partition("@")
    path, _, configuration = whole.partition(":")
    copies = [Path(path), *([root / path] if is_safe_name(path) else [])]
    return HubName(path, configuration, revision, next((folder for folder in copies if folder.is_dir()), None))


def lies_inside(path: Path, folder: Path) -> bool:
    """Say whether a file, its links followed, is in a copy of a repository."""
    home = folder.resolve()
    # The cache of the hub's library holds a snapshot as links to files next to it.
    home = home.parents[1] if home.parent.name == "snapshots" else home
    return path.resolve().is_relative_to(home)


def open_file(place: str) -> IO[bytes]:
    """Open a file of this machine or of the hub, of which the ranges are fetched that are read."""
    if Path(place).is_file():
        return Path(place).open("rb")
    from huggingface_hub import HfFileSystem

    # By default, 5 MB are read ahead: more than the texts of a row group are away from those of the next.
    file: IO[bytes] = HfFileSystem().open(place, "rb", cache_type="none")
    return file


def require_own_names(name: HubName) -> None:
    """Refuse a repository whose card names data elsewhere, before the library looks for them.

    Raises:
        DatasetError: the card names a URL, an absolute path or one that leaves the repository.
    """
    from huggingface_hub import DatasetCard

    for file in _CARDS:
        text = _card_text(name, file)
        if not text.strip():
            continue
        try:
            content = text if file == _CARDS[0] else f"---\n{text}\n---\n"
            configurations = DatasetCard(content, ignore_metadata_errors=True).data.get("configs")
        except Exception:  # What is no card is left to the library, which says so.
            continue
        for entry in configurations if isinstance(configurations, list) else []:
            if isinstance(entry, dict):
                for named in _texts([entry.get("data_files"), entry.get("data_dir")]):
                    if "://" in named or "::" in named or named.startswith("/") or ".." in named.split("/"):
                        raise _outside(name, named, f"{file} names it as data")


def _card_text(name: HubName, file: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        if name.copy is not None:
            path = name.copy / file
            return path.read_text("utf-8") if path.is_file() and lies_inside(path, name.copy) else ""
        revision = name.revision or None
        return Path(hf_hub_download(name.path, file, repo_type="dataset", revision=revision)).read_text("utf-8")
    except (HfHubHTTPError, OSError, ValueError):
        return ""  # The library asks once more, and says what is wrong.


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def require_own_files(name: HubName, builder: Any, files: Iterable[str]) -> None:
    """Refuse files of a dataset that are not in its repository, or that the library cannot be given.

    Args:
        builder: of the library.
        files: that it is about to read.

    Raises:
        DatasetError: there is such a file.
    """
    kinds = {cls.__name__.lower() for cls in type(builder).__mro__}
    if not kinds & {*_KINDS}:
        why = f"the library opens them as {builder.info.builder_name}; read are {', '.join(_KINDS[:-1])}"
        raise DatasetError("The files of the dataset are of a kind that is not read.", where=str(name), why=why)
    for file in files:
        if not (lies_inside(Path(file), name.copy) if name.copy else file.startswith(f"hf://datasets/{name.path}@")):
            raise _outside(name, file, "it would be read as data")
        if file.endswith(_JSON_SUFFIXES):
            with open_file(file) as content:
                _require_shallow(content, f"{name}, {file}")


def _outside(name: HubName, file: str, why: str) -> DatasetError:
    return DatasetError(
        "The repository names a file outside of it.",
        where=f"{name}, {file}",
        why=f"{why}, and nothing but the repository's own files is read",
        next_command="ask its authors; or write the rows into a .jsonl file of your own, and give that by --data",
    )


_MOST_DEPTH = 1024
"""As deep as orjson goes; Arrow, which reads JSON for the library, ends the process at some thousands."""

_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def _require_shallow(file: IO[bytes], where: str) -> None:
    """Refuse JSON that is nested so deep that it would end the process."""
    is_deep = False
    for line in file:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if is_deep := "ecursion" in str(error):
                break
            file.seek(0)  # It is one document over many lines, or broken, which the library says.
            is_deep = _depth(file.read()) > _MOST_DEPTH
            break
    if is_deep:
        why = f"more than {_MOST_DEPTH} lists are nested"
        raise DatasetError("A file of the dataset is nested too deep.", where=where, why=why)


def _depth(content: bytes) -> int:
    depth = deepest = 0
    for mark in _MARKS.finditer(content):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(mark[0], 0)
        deepest = max(deepest, depth)
    return deepest


def picture_folders(name: HubName, builder: Any) -> Sequence[Path]:
    """Return the folders in which the library may have left the pictures of a dataset."""
    if name.copy is not None:
        return (name.copy,)
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.path, repo_type="dataset")
    # A folder of pictures may come in an archive, whose names the library makes, not the rows.
    is_of_pictures = builder.info.builder_name == "imagefolder"
    return (snapshots, datasets.config.EXTRACTED_DATASETS_PATH) if is_of_pictures else (snapshots,)
