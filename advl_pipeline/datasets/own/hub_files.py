"""Names of hub repositories, and the checks that only files of the repository are read.

Anyone can publish a repository. Its README may name any file of this machine, of another repository or of the network
as data, a row may name any file as its picture, and a link in a copy may point anywhere.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from advl_pipeline.base.errors import ConfigError, DatasetError
from advl_pipeline.base.locations import regular_file
from advl_pipeline.base.repositories import HUB_PREFIX
from advl_pipeline.datasets.roots import SPLIT_STEMS, is_safe_name

_CARDS = ("README.md", ".huggingface.yaml")
"""Files of a repository that declare its data files."""

_KINDS = ("parquet", "arrow", "json", "csv", "text", "imagefolder", "webdataset", "cache")
"""Allowed builders of the library; others follow links inside their files, or run code."""

ARCHIVE = ".zip"
"""Suffix of archives that may hold the pictures of rows beside them."""

_OF_PICTURES = "imagefolder"
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_TABLES: Mapping[str, str] = {**dict.fromkeys(_JSON_SUFFIXES, "json"), ".csv": "csv"}
"""Suffix of a file of rows -> the library's name of its kind; pictures lie inside of Parquet."""


@dataclass(frozen=True)
class HubName:
    """A parsed `hf:` name; `copy` is a local folder with the repository."""

    path: str
    configuration: str = ""
    revision: str = ""
    copy: Path | None = None

    def __str__(self) -> str:
        configuration = f":{self.configuration}" if self.configuration else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB_PREFIX}{self.path}{configuration}{revision}"


def hub_name(text: str, root: Path) -> HubName:
    """Parse a name.

    Args:
        root: datasets folder.

    Raises:
        ConfigError: it names no repository and no folder.
    """
    text = text.removeprefix(HUB_PREFIX)
    if text and Path(text).is_dir():
        return HubName(text, copy=Path(text))
    whole, _, revision = text.partition("@")
    path, _, configuration = whole.partition(":")
    if not path:
        raise ConfigError(
            "The name of a hub dataset is empty.",
            where=f"{HUB_PREFIX}{text}",
            next_command=f"give a repository, such as {HUB_PREFIX}ORG/NAME, or a folder with a copy of one",
        )
    copies = [Path(path), *([root / path] if is_safe_name(path) else [])]
    return HubName(path, configuration, revision, next((folder for folder in copies if folder.is_dir()), None))


def lies_inside(path: Path, folder: Path) -> bool:
    """Return whether a file, after following links, is in a copy of a repository."""
    home = folder.resolve()
    target = path.resolve()
    return target.is_relative_to(home) or (home.parent.name == "snapshots" and _is_blob_of(home, target))


def _is_blob_of(snapshot: Path, target: Path) -> bool:
    """Return whether a file is one of those that a snapshot in the cache of the hub's library is made of links to."""
    from huggingface_hub import constants

    repository = snapshot.parents[1]
    return repository.parent == Path(constants.HF_HUB_CACHE).resolve() and target.parent == repository / "blobs"


def open_file(place: str) -> IO[bytes]:
    """Open a local file, or a file of the hub, of which only the read ranges are downloaded."""
    if Path(place).is_file():
        return Path(place).open("rb")
    from huggingface_hub import HfFileSystem

    # The default reads 5 MB ahead: more than the distance between the texts of two row groups.
    file: IO[bytes] = HfFileSystem().open(place, "rb", cache_type="none")
    return file


def names_at_root(name: HubName) -> list[str]:
    """Return the names of files and folders at the root of a repository; none if the hub does not answer."""
    if name.copy is not None:
        return [entry.name for entry in name.copy.iterdir() if lies_inside(entry, name.copy)]
    from huggingface_hub import HfApi

    try:
        entries = HfApi().list_repo_tree(name.path, repo_type="dataset", revision=name.revision or None)
        return [entry.path for entry in entries]
    except Exception:  # The network fails in many ways.
        return []


class Tables(NamedTuple):
    """Files of rows beside pictures: the library's name of their kind, and split -> files."""

    kind: str
    files: Mapping[str, Sequence[str]]


def tables_beside_pictures(name: HubName, builder: Any) -> Tables | None:
    """Return the files of rows where the library would read the pictures beside them too, or instead.

    It opens archives beside rows as rows, and reads nothing but the pictures if a repository holds more of them.
    """
    files = {split: [*map(str, named)] for split, named in (builder.config.data_files or {}).items()}
    kept = {str(split): [file for file in named if not file.endswith(ARCHIVE)] for split, named in files.items()}
    if builder.info.builder_name != _OF_PICTURES:
        return Tables(builder.info.builder_name, kept) if kept != files and all(kept.values()) else None
    listed = [file for named in files.values() for file in named]
    is_described = any(file.rpartition("/")[2].startswith("metadata.") for file in listed)
    if is_described or not listed or any(_configurations(name)):
        return None
    tables = sorted(file for file in names_at_root(name) if Path(file).suffix in _TABLES)
    kinds, splits = {_TABLES[Path(file).suffix] for file in tables}, {Path(file).stem: file for file in tables}
    are_splits = splits.keys() <= {*SPLIT_STEMS}
    if len(kinds) != 1 or not (len(tables) == 1 or are_splits):
        return None
    repository, _, place = listed[0].partition("@")
    home = name.copy.resolve().as_posix() if name.copy else f"{repository}@{place.partition('/')[0]}"
    by_split = splits if are_splits else {"train": tables[0]}
    return Tables(kinds.pop(), {split: [f"{home}/{file}"] for split, file in by_split.items()})


def unpacking(copy: Path, picture: str) -> tuple[Path, Path] | None:
    """Return the archive of a copy that holds a picture, and the folder to unpack it into; None without one."""
    parts = picture.split("/")
    for archive in sorted(copy.rglob(f"*{ARCHIVE}")):
        if not lies_inside(archive, copy):
            continue
        try:
            with regular_file(archive) as file, zipfile.ZipFile(file) as content:
                names = set(content.namelist())
        except (OSError, zipfile.BadZipFile):
            continue
        for place in range(len(parts)):
            if "/".join(parts[place:]) in names:
                return archive, copy.joinpath(*parts[:place])
    return None


def require_own_names(name: HubName) -> None:
    """Refuse a repository whose card names data elsewhere, before the library opens them.

    Raises:
        DatasetError: the card names a URL, an absolute path or a path that leaves the repository.
    """
    for file, entry in _configurations(name):
        for named in _texts([entry.get("data_files"), entry.get("data_dir")]):
            if "://" in named or "::" in named or named.startswith("/") or ".." in named.split("/"):
                raise _outside(name, named, f"{file} names it as data")


def _configurations(name: HubName) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the configurations that the card of a repository declares, each with the card's file."""
    from huggingface_hub import DatasetCard

    for file in _CARDS:
        text = _card_text(name, file)
        if not text.strip():
            continue
        try:
            content = text if file == _CARDS[0] else f"---\n{text}\n---\n"
            configurations = DatasetCard(content, ignore_metadata_errors=True).data.get("configs")
        except Exception:  # The library reports an invalid card.
            continue
        for entry in configurations if isinstance(configurations, list) else []:
            if isinstance(entry, dict):
                yield file, entry


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
        return ""  # The library tries again and reports the error.


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def require_own_files(name: HubName, builder: Any, files: Iterable[str]) -> None:
    """Refuse files of a dataset that are not in its repository, or that are unsafe for the library.

    Args:
        builder: builder of the library.
        files: files that it is about to read.

    Raises:
        DatasetError: a file must not be read.
    """
    kinds = {cls.__name__.lower() for cls in type(builder).__mro__}
    if not kinds & {*_KINDS}:
        raise DatasetError(
            "The file format of the dataset is not supported.",
            where=str(name),
            why=f"the library opens them as {builder.info.builder_name}; supported are {', '.join(_KINDS[:-1])}",
        )
    for file in files:
        if not (lies_inside(Path(file), name.copy) if name.copy else file.startswith(f"hf://datasets/{name.path}@")):
            raise _outside(name, file, "it would be read as data")
        if "json" in kinds or file.endswith(_JSON_SUFFIXES):
            with open_file(file) as content:
                _require_safe_json(content, f"{name}, {file}")


def _outside(name: HubName, file: str, why: str) -> DatasetError:
    return DatasetError(
        "The repository names a file outside of it.",
        where=f"{name}, {file}",
        why=f"{why}, and nothing but the repository's own files is read",
        next_command="ask its authors; or write the rows into a .jsonl file of your own, and give that by --data",
    )


_PACKED: Mapping[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""First bytes of a packed file -> how to open its content."""

_NOT_UNPACKED = (b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf\x27\x1c", b"Rar!")
"""First bytes of files that the library unpacks and Python does not: zstd, lz4, 7z and rar."""


_DAMAGE = (
    *(ValueError, EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, tarfile.TarError),
)


def _require_safe_json(file: IO[bytes], where: str) -> None:
    """Refuse JSON that would crash the process, packed or not.

    Raises:
        DatasetError: the file is nested too deep, or cannot be unpacked.
    """
    try:
        for inside in _unpacked(file):
            _require_shallow(inside, where)
    except _DAMAGE as error:
        raise DatasetError("A file of the dataset cannot be unpacked.", where=where, why=str(error)) from None


def _unpacked(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield what the library would read of a file: its content, or the files that are packed in it."""
    start = file.read(8)
    file.seek(0)
    if start.startswith(_NOT_UNPACKED):
        raise ValueError("its compression is not read; pack it as .gz, .bz2, .xz or .zip")
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as inside:
                    yield inside
        return
    unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)
    content = file if unpack is None else unpack(file)
    is_tar = tarfile.is_tarfile(content)
    content.seek(0)
    if is_tar:
        with tarfile.open(fileobj=content) as tar:
            yield from filter(None, map(tar.extractfile, tar))
    else:
        yield content


_MOST_DEPTH = 1024
"""Depth limit of orjson; Arrow, the library's JSON parser, crashes the process at some thousands."""

_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def _require_shallow(file: IO[bytes], where: str) -> None:
    """Refuse JSON that is nested so deeply that it would crash the process."""
    is_deep = False
    for line in file:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if is_deep := "ecursion" in str(error):
                break
            file.seek(0)  # A document over several lines, or invalid JSON, which the library reports.
            is_deep = _depth(file.read()) > _MOST_DEPTH
            break
    if is_deep:
        raise DatasetError(
            "A file of the dataset is nested too deep.", where=where, why=f"more than {_MOST_DEPTH} lists are nested"
        )


def _depth(content: bytes) -> int:
    depth = deepest = 0
    for mark in _MARKS.finditer(content):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(mark[0], 0)
        deepest = max(deepest, depth)
    return deepest


def picture_folders(name: HubName, builder: Any) -> Sequence[Path]:
    """Return the folders in which the library may store the pictures of a dataset."""
    if name.copy is not None:
        return (name.copy,)
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    snapshots = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.path, repo_type="dataset")
    # A picture folder may be an archive; the library creates the paths then, not the rows.
    is_of_pictures = builder.info.builder_name == _OF_PICTURES
    return (snapshots, datasets.config.EXTRACTED_DATASETS_PATH) if is_of_pictures else (snapshots,)
