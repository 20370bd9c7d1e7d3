"""Transfer of folders to and from the hub (`$HF_ENDPOINT`, else huggingface.co); a folder is one commit, or none.

Interrupted uploads and downloads resume without repeating completed transfers.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo
from huggingface_hub.errors import HFValidationError
from tqdm import tqdm

from advl_pipeline.base.atomic import remove_left, writing
from advl_pipeline.base.errors import AdvlError, ConfigError, CorruptCache, StorageError, advise, again
from advl_pipeline.base.folders import LOCK
from advl_pipeline.base.locations import hub_obstacle
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.base.repositories import refusal
from advl_pipeline.cache.commit_records import (
    COMPLETE_RECORD,
    PLAN_RECORD,
    ROOT_METADATA,
    load_complete,
    load_plan,
    render_record,
)
from advl_pipeline.cache.identity import PROVENANCE_FILE
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import IDENTITY_FILE, Readable, entry_of, read_metadata, render_json
from advl_pipeline.cache.stores import open_store
from advl_pipeline.cache.verify import VerifyReport, describe_findings, verify_cache
from advl_pipeline.datasets.roots import name_in_records, without_folders
from advl_pipeline.sharing.config import PullConfig, PushConfig
from advl_pipeline.sharing.hub_facts import IDS_FILE, TAG, cache_metadata, licence_of

CARD_FILE = "README.md"
OF_THE_HUB = (CARD_FILE, ".gitattributes", IDS_FILE)
"""Files of a repository that do not belong to a cache."""

_DOWNLOAD = "advl-download"
"""Subfolder for a download until it is complete and verified."""


def open_repository(name: str, *, kind: str, private: bool) -> ModelInfo | DatasetInfo:
    """Return the hub's information about a repository; create it if it does not exist.

    Args:
        name: ORG/NAME.
        kind: "model" or "dataset".
        private: whether a new repository is private.

    Raises:
        ConfigError: the name is invalid, or the repository contains files that no push put there.
        StorageError: the hub cannot be reached or refuses.
    """
    api = _api(name)
    with _hub_errors(name):
        # None uses the default visibility of the owner.
        api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        info: ModelInfo | DatasetInfo = api.repo_info(name, repo_type=kind)
    files = _files_of(info)
    if files - {*OF_THE_HUB} and TAG not in (info.tags or ()):
        raise ConfigError(
            "The repository holds other files, which a push would remove.",
            where=name,
            why=f"it has {len(files)} files, and no card with the tag {TAG!r}",
            next_command="give the name of another repository; it is made where it does not exist",
        )
    return info


def _files_of(info: ModelInfo | DatasetInfo) -> set[str]:
    return {item.rfilename for item in info.siblings or ()}


def upload(
    name: str,
    info: ModelInfo | DatasetInfo,
    folder: Path,
    *,
    message: str,
    content: Mapping[str, bytes] | None = None,
) -> str:
    """Upload a folder to a repository in one commit, replacing an earlier push. Return the commit's URL.

    Args:
        info: output of `open_repository` for the repository.
        content: content of files that are missing in the folder, or that replaces theirs.

    Raises:
        StorageError: the hub cannot be reached or refuses, or somebody else changed the repository meanwhile;
            the repository is then unchanged by this call.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    uploaded: dict[str, str | bytes] = {place: str(path) for place, path in files.items()}
    uploaded.update(content or {})
    operations: list[Any] = [CommitOperationAdd(place, data) for place, data in uploaded.items()]
    gone = _files_of(info) - {*files, *OF_THE_HUB}
    operations += [CommitOperationDelete(place) for place in sorted(gone)]
    with _hub_errors(name):
        done = _api(name).create_commit(
            name,
            operations,
            commit_message=message,
            repo_type="dataset" if isinstance(info, DatasetInfo) else "model",
            parent_commit=info.sha,
        )
    return str(done.commit_url)


def run_push(config: PushConfig) -> str:
    """Verify every byte of a cache, then upload it. Return the commit's URL.

    Raises:
        ConfigError: the cache does not exist. CorruptCache: it is damaged. StorageError: the hub refuses.
    """
    report = verify_cache(config.cache)
    if not report.is_sound:
        raise describe_findings(report)
    store = open_store(config.cache)
    identity = read_metadata(store, IDENTITY_FILE)
    called = name_in_records(identity, read_metadata(store, PROVENANCE_FILE))
    if without_folders(identity) != identity:
        tqdm.write("the cache is identified by a path of this machine, which is uploaded", file=sys.stderr)
    teacher, dataset = identity["teacher"]["name"], identity["dataset"]
    name = str(called).partition("@")[0]
    licence, _ = licence_of(name)
    card = (
        f"---\n{cache_metadata(name)}\n---\n\n# Features of {teacher} over {called}/{dataset['split']}\n\n"
        f"A teacher cache of ADVL: a plain Zarr v3 hierarchy, {report.num_bytes / 1e6:.1f} MB. `identity.json` says\n"
        f"what the numbers are of, `{IDS_FILE}` which units it has.\n\n"
        f"Licence of the data: {licence or 'not stated'}\n\n"
        f"    advl cache pull {config.repository} --output FOLDER\n"
    )
    info = open_repository(config.repository, kind="dataset", private=config.private)
    extra = {CARD_FILE: card.encode(), IDS_FILE: unit_ids_parquet(config.cache)}
    content = {**extra, **_records_without_folders(store)}
    return upload(config.repository, info, config.cache, message=f"Cache of {teacher}", content=content)


def _records_without_folders(store: Readable) -> dict[str, bytes]:
    """Return the files of a sound cache that contain paths of this machine, with paths reduced to their last part."""
    provenance = without_folders(read_metadata(store, PROVENANCE_FILE))
    root = read_metadata(store, ROOT_METADATA)
    root["attributes"]["advl"]["provenance"] = provenance
    content = {PROVENANCE_FILE: render_json(provenance), ROOT_METADATA: render_json(root)}
    plan, complete = load_plan(store), load_complete(store)
    files = {**plan.files, PROVENANCE_FILE: entry_of(content[PROVENANCE_FILE])}
    # Plans of older caches do not repeat the provenance.
    repeated = None if plan.provenance is None else provenance
    content[PLAN_RECORD] = render_record(replace(plan, provenance=repeated, files=files))
    entries = {name: entry_of(raw) for name, raw in content.items()}
    return {**content, COMPLETE_RECORD: render_record(replace(complete, files={**complete.files, **entries}))}


def unit_ids_parquet(cache: Path) -> bytes:
    """Return a Parquet file of the units with features in a cache, in storage order."""
    rows = [
        {"modality": modality, "unit_id": unit_id}
        for modality, features in open_cache(cache).stores().items()
        for unit_id in features.ids
    ]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def run_pull(config: PullConfig) -> VerifyReport:
    """Download a cache, verify every byte, and only then create the output. Return the verification report.

    Raises:
        ConfigError: the output exists, or the repository contains no cache. CorruptCache: the uploaded cache is
            damaged. InUse: another process downloads into the same folder. StorageError: the hub cannot be reached or
            refuses, or the disk failed; the same command resumes.
    """
    output = config.output
    require_outputs(config)
    api = _api(config.repository)
    with _hub_errors(config.repository + (f"@{config.revision}" if config.revision else "")):
        info = api.repo_info(config.repository, repo_type="dataset", revision=config.revision)
    files = _files_of(info) - {*OF_THE_HUB}
    if COMPLETE_RECORD not in files or IDENTITY_FILE not in files:
        raise ConfigError(
            "The repository holds no finished cache.",
            where=config.repository,
            why=f"it has no {COMPLETE_RECORD}",
            next_command=advise(["advl", "cache", "push", "--help"], note="this puts a cache there"),
        )
    for name in sorted(files):
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or parts[0] == ".cache":
            raise ConfigError(
                "The repository names a file outside its own folder.", where=f"{config.repository}: {name!r}"
            )
    kept = output.with_name(f"{output.name}.partial")
    # The user may have a cache of this name; a download is recognised by its subfolder.
    partial = kept / _DOWNLOAD
    lock = kept / LOCK
    is_ours = kept.is_dir() and all(path in (partial, lock) and not path.is_symlink() for path in kept.iterdir())
    if os.path.lexists(kept) and (kept.is_symlink() or not is_ours):
        raise ConfigError(
            "The folder for the download holds something else.",
            where=str(kept),
            next_command="move it away, or give another --output",
        )
    try:
        with process_lock(lock, "this cache"):
            require_outputs(config)  # Another process may have finished it.
            return _download(config, api, partial, revision=info.sha, files=files)
    finally:
        # What was downloaded stays, for the same command to go on with.
        with suppress(OSError):
            kept.rmdir()


def _download(config: PullConfig, api: Any, partial: Path, *, revision: str, files: set[str]) -> VerifyReport:
    """Download a commit into a folder, verify it, and rename it into the output's place."""
    with writing(config.output):
        partial.mkdir(parents=True, exist_ok=True)
    with _hub_errors(config.repository):
        # Pinned to a commit, so that a resumed download never mixes two states of the repository.
        api.snapshot_download(
            config.repository,
            repo_type="dataset",
            revision=revision,
            local_dir=partial,
            ignore_patterns=list(OF_THE_HUB),
        )
    # Remove everything that is not part of the cache: the hub's metadata, and files of another commit.
    with writing(partial):
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        for path in partial.rglob("*"):
            if path.is_file() and path.relative_to(partial).as_posix() not in files:
                path.unlink()
    report = verify_cache(partial)
    if not report.is_sound:
        finding = describe_findings(report)
        remove_left(partial)
        raise CorruptCache(
            "The cache on the hub is not sound.",
            where=f"{config.repository} at {revision}",
            why=f"{finding.what} {finding.why}",
            next_command="ask for another upload of it, or make the cache here",
        )
    with writing(config.output):
        partial.replace(config.output)
    return report


def _api(name: str) -> Any:
    if obstacle := hub_obstacle():
        raise _refused(name, obstacle, again("fix the network, then run the same command again"))
    if name.count("/") != 1:
        raise ConfigError("A repository of the hub is named ORG/NAME.", where=name)
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="advl-pipeline")


def _refused(name: str, why: str, next_command: str) -> StorageError:
    return StorageError(
        "The hub refused the request or could not be reached.", where=name, why=why, next_command=next_command
    )


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Convert errors of the hub or its library into ADVL's errors about a repository, or repository@REVISION."""
    try:
        yield
    except AdvlError:
        raise
    except Exception as error:  # The library passes on any error of its dependencies.
        why, following = refusal(error, name)
        if isinstance(error, HFValidationError):
            raise ConfigError(
                "The name of the repository is not valid.", where=name, why=why, next_command=following
            ) from None
        raise _refused(name, why, following) from None
