"""`corpus.json`: the settings and the digest of a built corpus, by which the next call knows that it is done.

`ATTRIBUTION.md` beside it says who made what the corpus consists of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from advl_data.scenes.generator.config import ScenesConfig
from advl_data.scenes.generator.vocabulary import Vocabulary
from advl_pipeline.errors import (
    DatasetError,
    again,
)
from advl_pipeline.folders import MARKERS

RECORD_FILE: Final = MARKERS["corpus"].file
CORPUS_VERSION: Final = 6
"""Raised whenever the same settings would give other bytes than before."""

_NOT_CONTENT: Final = ("data_root", "workers", "replace")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusRecord:
    """What a corpus was built from and what it holds.

    `digest` is the SHA-256 over names and digests of all files but this record. `counts` maps "<format>/<split>"
    to pictures and items.
    """

    settings: Mapping[str, Any]
    digest: str
    counts: Mapping[str, Mapping[str, int]]
    made_with: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps({"corpus": "scenes", **asdict(self)}, indent=1) + "\n"


def content_settings(config: ScenesConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the settings that determine the content of a corpus: descriptions, ours too, by what they say."""
    fields = {name: value for name, value in vars(config).items() if name not in _NOT_CONTENT}
    said = [
        (kind.code, [(one.aspect, one.text) for one in (*kind.descriptions, *kind.held_out)])
        for kind in vocabulary.kinds
    ]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return {"version": CORPUS_VERSION, **fields, "descriptions": digest}


def read_record(folder: Path) -> CorpusRecord | None:
    """Read the record of a corpus folder; None when there is no finished corpus.

    Raises:
        DatasetError: the record cannot be read.
    """
    path = folder / RECORD_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return CorpusRecord(**{field.name: document[field.name] for field in fields(CorpusRecord)})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            "The record of the built-in corpus is damaged.",
            where=str(path),
            why=str(error),
            next_command=again("run the same command again with --replace", "--replace"),
        ) from None


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the sorted relative names and the digests of all files of a folder but the record."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file() and path != folder / RECORD_FILE:
            state.update(path.relative_to(folder).as_posix().encode() + b"\0")
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()
