"""Reader of a cache: look-up by unit id, memory-mapped features, and all cheap checks when the cache is opened.

Shapes: N units, Q requested ids, M token rows, D feature width.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from advl_pipeline.base.errors import AdvlError, ConfigError, CorruptCache, again
from advl_pipeline.base.locations import Location, parse_location
from advl_pipeline.cache import layout
from advl_pipeline.cache.arrays import MappedArray, Positions, UnitIds, are_spans, ids_to_bytes, look_up
from advl_pipeline.cache.commit_records import (
    COMPLETE_RECORD,
    PLAN_RECORD,
    CompleteRecord,
    PlanRecord,
    load_complete,
    load_plan,
)
from advl_pipeline.cache.identity import PROVENANCE_FILE, digest, recorded_command, require_identity
from advl_pipeline.cache.layout import DTYPES, ArraySpec
from advl_pipeline.cache.quantise import from_int8
from advl_pipeline.cache.store import IDENTITY_FILE, MissingFile, Readable, get_recorded, read_metadata, require_cache
from advl_pipeline.cache.stores import open_store

_HASHED_AT_OPENING = 1 << 20
"""Tables up to this size, in bytes, are hashed when a cache is opened. This takes a millisecond."""

_SAMPLED_UNITS = 32

Features = npt.NDArray[Any]


class UnknownUnit(AdvlError):
    """An id that is not in the cache, or whose unit could not be read when the cache was made."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """One teacher over one dataset split. `image` and `text` are None where that tower did not run."""

    path: Location
    identity: dict[str, Any]
    provenance: dict[str, Any]
    image: FeatureStore | None
    text: FeatureStore | None

    @property
    def teacher_name(self) -> str:
        """The name under which the teacher was opened."""
        return str(self.identity["teacher"]["name"])

    @property
    def lacks_common_words(self) -> bool:
        """Whether version 0.2 stored only the tokens of each text's rarest words (`--select-tokens`)."""
        return "kept_tokens" in (self.identity["teacher"].get("text") or {})

    @property
    def keeps_some_texts(self) -> bool:
        """Whether tokens are stored for only some of the texts."""
        return "kept_texts" in (self.identity["teacher"].get("text") or {})

    @property
    def identity_digest(self) -> str:
        """Hexadecimal SHA-256 of the identity."""
        return digest(self.identity)

    def stores(self) -> dict[str, FeatureStore]:
        """Return the stores of the cache by modality."""
        return {name: store for name, store in (("image", self.image), ("text", self.text)) if store is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        # Memory maps cannot be pickled, so a spawned worker opens the cache itself.
        return open_cache, (self.path,)


MOST_OPEN_FILES = 1 << 16


def open_cache(
    path: str | os.PathLike[str],
    expect: Mapping[str, Any] | None = None,
) -> TeacherCache:
    """Open a complete cache. Shards are mapped when first read.

    Args:
        path: the cache's folder, or its URL (s3://, gs://, file://).
        expect: settings that the cache's identity must have; others may have any value.

    Raises:
        ConfigError: there is no cache.
        IdentityMismatch: the cache was made under other settings.
        CorruptCache: the extraction was not finished, or a file is missing, cut short or inconsistent.
        StorageError: the object store refuses access or cannot be reached.
    """
    # Raise the limit of open files as far as the system allows: each mapped shard counts as one.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    store = open_store(parse_location(path))
    try:
        record = store.get(COMPLETE_RECORD)
    except MissingFile:
        sizes = require_cache(store)
        raise CorruptCache(
            "The extraction of this cache was not finished.",
            where=str(store.location),
            next_command=recorded_command(store) if PROVENANCE_FILE in sizes else store.repair_command,
        ) from None
    complete = load_complete(store)
    files = store.reading(record, complete.files)
    for name in (PLAN_RECORD, IDENTITY_FILE, PROVENANCE_FILE):
        get_recorded(files, name, complete.files)
    identity = read_metadata(files, IDENTITY_FILE)
    plan = load_plan(files)
    if digest(identity) != plan.identity_sha256:
        raise CorruptCache("The identity of the cache does not match its plan.", where=str(files.location))
    if expect is not None:
        require_identity(
            expect,
            identity,
            where=str(files.location),
            next_command=recorded_command(files, renew=True),
            partial=True,
        )
    stores = {name: FeatureStore(files, name, plan, complete) for name in plan.modalities}
    return TeacherCache(
        path=files.location,
        identity=identity,
        provenance=read_metadata(files, PROVENANCE_FILE),
        image=stores.get("image"),
        text=stores.get("text"),
    )


@dataclass(frozen=True, kw_only=True)
class PaddedFeatures:
    """The features of Q units, zero-padded to the longest: of the unit, of its tokens, and the tokens' characters.

    `length_Q` (int32) counts the token rows of each unit.
    """

    global_QD: Features
    length_Q: npt.NDArray[np.int32]
    tokens_QMD: Features | None = None
    spans_QM2: npt.NDArray[np.int32] | None = None


class FeatureStore:
    """The features of one modality. All look-ups are by unit id; a missing id raises `UnknownUnit`.

    `global_mean`, `global_variance`, `token_mean` and `token_variance` are the moments of the stored features per
    dimension, (D,) float32. Without token features the token moments are empty and `token_dim` is 0. `clipped` counts
    the values beyond the range of the stored dtype. `quarantined` maps the ids of units that could not be read when
    the cache was made to the reasons.
    """

    def __init__(self, files: Readable, modality: str, plan: PlanRecord, complete: CompleteRecord) -> None:
        shape = plan.modalities[modality]
        self.modality = modality
        self.global_dim = shape.global_dim
        self.token_dim = shape.token_dim or 0
        self.source = f"{plan.identity_sha256}/{modality}"
        self.clipped = complete.clipped.get(modality, 0)
        self._files = files
        self._entries = complete.files
        self._num_units = shape.num_units
        self.quarantined: Mapping[str, str] = complete.quarantined.get(modality, {})
        planned = layout.plan_specs(modality, shape.num_units)
        moments = layout.moment_specs(modality, plan)
        self._require_small_tables([*moments.values(), planned["starts"], planned["lengths"]])
        self._unit_ids_N16 = self._table(planned["unit_id"]).whole()
        starts_N, lengths_N = self._table(planned["starts"]).whole(), self._table(planned["lengths"]).whole()
        index = layout.index_specs(modality, shape.num_units - len(self.quarantined))
        self._prefix_U = self._table(index["prefix"]).whole() if index else np.zeros(0, np.uint64)
        self._unit_U = self._table(index["unit"]).whole() if index else np.zeros(0, np.int64)
        self._global = self._table(layout.global_spec(modality, plan))
        num_rows = int(starts_N[-1]) + max(1, int(lengths_N[-1]))
        self._starts_N, self._lengths_N = starts_N, lengths_N
        self._tokens = {
            name: self._table(spec) for name, spec in layout.token_specs(modality, plan, num_rows).items()
        }
        self.has_tokens = bool(self._tokens)
        self.has_regions = "boxes" in self._tokens
        self._memory: Literal["holds", "fits", "exceeds"] | None = None
        self._order_U = np.sort(self._unit_U) if self.quarantined else None
        vectors = {name: np.array(self._table(spec).whole()) for name, spec in moments.items()}
        none = np.zeros(0, np.float32)
        self.global_mean: npt.NDArray[np.float32] = vectors["global_mean"]
        self.global_variance: npt.NDArray[np.float32] = vectors["global_variance"]
        self.token_mean: npt.NDArray[np.float32] = vectors.get("token_mean", none)
        self.token_variance: npt.NDArray[np.float32] = vectors.get("token_variance", none)

    def _require_small_tables(self, specs: Sequence[ArraySpec]) -> None:
        """Check the hashes of small tables: a wrong bit would scale a target or return another unit's rows."""
        for name in (name for spec in specs for name in spec.shard_paths()):
            if not self._files.is_disk_cache and self._entries[name].num_bytes <= _HASHED_AT_OPENING:
                get_recorded(self._files, name, self._entries)

    def __len__(self) -> int:
        return len(self._unit_U)

    @property
    def ids(self) -> UnitIds:
        """The ids of all readable units, in storage order."""
        return UnitIds(self._unit_ids_N16, self._order_U)

    def contains(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return, for each id, whether its features can be looked up."""
        if len(ids) == 0 or len(self._unit_U) == 0:
            return np.zeros(len(ids), np.bool_)
        return self._look_up(ids) >= 0

    def global_features(self, ids: Sequence[str]) -> Features:
        """Return a copy of the global features, (Q, D) in the stored dtype."""
        return self._global.gather(self._positions(ids))

    def token_features(self, ids: Sequence[str]) -> tuple[Features, npt.NDArray[np.int32]]:
        """Return the concatenated token rows of the units, (M, D), and the number of rows per unit, (Q,) int32.

        For one unit the rows are a view into the cache, for several a copy. int8 features are returned as float16.
        """
        values_MD, scale_M, length_Q = self.stored_tokens(ids)
        return values_MD if scale_M is None else from_int8(values_MD, scale_M), length_Q

    def stored_tokens(
        self, ids: Sequence[str]
    ) -> tuple[Features, npt.NDArray[np.float32] | None, npt.NDArray[np.int32]]:
        """Return (rows, scales, lengths): as `token_features`, but int8 features as codes with their scales (M,)."""
        positions_Q = self._positions(ids)
        scale_M = self._joined("scales", positions_Q) if "scales" in self._tokens else None
        return self._joined("values", positions_Q), scale_M, self._lengths_N[positions_Q]

    def padded_features(self, ids: Sequence[str], *, tokens: bool = True) -> PaddedFeatures:
        """Return a copy of the units' features with one look-up; with `tokens`, also their token rows if stored."""
        positions_Q = self._positions(ids)
        global_QD = self._global.gather(positions_Q)
        length_Q = self._lengths_N[positions_Q]
        if not tokens or not self.has_tokens:
            return PaddedFeatures(global_QD=global_QD, length_Q=length_Q)
        bounds = self._bounds(positions_Q)
        values_QMD = self._tokens["values"].padded(*bounds)
        if "scales" in self._tokens:
            scale_QM = self._tokens["scales"].padded(*bounds)
            codes_XD = values_QMD.reshape(-1, values_QMD.shape[2])
            values_QMD = from_int8(codes_XD, scale_QM.reshape(-1)).reshape(values_QMD.shape)
        spans_QM2 = None
        if "char_spans" in self._tokens:
            spans_QM2 = self._tokens["char_spans"].padded(*bounds)
            self._require_spans(spans_QM2.reshape(-1, 2))
        return PaddedFeatures(global_QD=global_QD, length_Q=length_Q, tokens_QMD=values_QMD, spans_QM2=spans_QM2)

    def char_spans(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return, for the rows of `token_features(ids)`, the characters [start, end) of the unit's text, (M, 2)."""
        rows_M2 = self._joined("char_spans", self._positions(ids))
        self._require_spans(rows_M2)
        return rows_M2

    def token_columns(self, ids: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Return the columns stored with the rows of `token_features(ids)`, by name; for one unit they are views.

        Texts have "char_spans" (M, 2) int32. If only some tokens were stored, "kept" (M,) int32 is the position of
        each row among all of the teacher's tokens, from 0. Regions have the arrays of `layout.REGION_COLUMNS`.
        """
        positions_Q = self._positions(ids)
        return {name: self._joined(name, positions_Q) for name in self._tokens if name not in ("values", "scales")}

    def token_lengths(self, ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the number of token rows per unit, (Q,), without reading the features."""
        return self._lengths_N[self._positions(ids)]

    def begin_epoch(self) -> None:
        """Check again whether the store is in memory or would fit, and forget earlier announcements."""
        sample_Q = np.linspace(0, self._num_units - 1, _SAMPLED_UNITS).astype(np.int64)
        if self.has_tokens:
            values = self._tokens["values"]
            is_held = all(map(values.is_resident, np.minimum(self._bounds(sample_Q)[0], len(values) - 1).tolist()))
        else:
            is_held = all(map(self._global.is_resident, sample_Q.tolist()))
        sizes = (item.num_bytes for name, item in self._entries.items() if name.startswith(f"{self.modality}/"))
        self._memory = "holds" if is_held else "fits" if 2 * sum(sizes) < available_memory() else "exceeds"
        for item in (self._global, *self._tokens.values()):
            item.announced.clear()

    def announce(self, ids: Sequence[str]) -> None:
        """Announce the next units to the kernel, which reads them ahead while the caller continues.

        If the store fits into free memory, entire blocks around the units are announced: they are large enough to
        read at the disk's full speed, and the epoch needs all of them. Otherwise only the units are announced.
        Nothing is announced if a sample of the store was in memory when the epoch began. For a remote store, the
        files of the units are fetched in the order of need, array by array, for arrays that were read before.
        """
        positions_Q = self._positions(ids)
        start_Q, length_Q = self._bounds(positions_Q)
        if self._files.is_disk_cache:
            for array, row_Q in [(self._global, positions_Q), *((item, start_Q) for item in self._tokens.values())]:
                if array.was_read:  # The others may never be needed.
                    shards = dict.fromkeys((row_Q // array.spec.shard_rows).tolist())
                    self._files.fetch_ahead(map(array.spec.shard_path, shards))
            return
        if self._memory is None:
            self.begin_epoch()
        if self._memory == "holds" or not len(positions_Q):
            return
        is_used, in_blocks = length_Q > 0, self._memory == "fits"
        self._global.announce(positions_Q, np.ones_like(positions_Q), in_blocks=in_blocks)
        for name in self._tokens.keys() & {"values", "scales"}:
            self._tokens[name].announce(start_Q[is_used], length_Q[is_used], in_blocks=in_blocks)

    def _positions(self, ids: Sequence[str]) -> Positions:
        """Return the positions of units, (Q,); raises `UnknownUnit` for a missing id."""
        if len(ids) == 0:
            return np.zeros(0, np.int64)
        found_Q = self._look_up(ids) if len(self._unit_U) else np.full(len(ids), -1, np.int64)
        if found_Q.min() < 0:
            self._raise_unknown(ids[int(found_Q.argmin())])
        return found_Q

    def _look_up(self, ids: Sequence[str]) -> Positions:
        try:
            wanted_Q16 = ids_to_bytes(ids)
        except ValueError as error:
            raise UnknownUnit("That is not a unit id.", why=str(error)) from None
        return look_up(wanted_Q16, self._unit_ids_N16, self._prefix_U, self._unit_U)

    def _raise_unknown(self, unit_id: str) -> None:
        why, advice = "the cache is of another dataset, split or wording", recorded_command(self._files)
        if unit_id in self.quarantined:
            why = f"it could not be read: {self.quarantined[unit_id]}"
            advice = again("repair the picture and extract again, or leave its examples out")
        raise UnknownUnit(
            f"The {self.modality} features of a unit are not in the cache.",
            where=f"unit {unit_id} in {self._files.location}",
            why=why,
            next_command=advice,
        )

    def _bounds(self, positions_Q: Positions) -> tuple[Positions, Positions]:
        """Return the first token row and the row count of each unit; raises `CorruptCache` for rows out of bounds."""
        start_Q, length_Q = self._starts_N[positions_Q], self._lengths_N[positions_Q].astype(np.int64)
        if len(start_Q) and self._tokens:
            spec = self._tokens["values"].spec
            shard_end_Q = (start_Q // spec.shard_rows + 1) * spec.shard_rows
            outside = start_Q.min() < 0 or length_Q.min() < 0
            if outside or ((start_Q + length_Q) > np.minimum(shard_end_Q, spec.shape[0])).any():
                raise CorruptCache(
                    "A unit's rows are outside its shard.", where=self._files.where(f"{self.modality}/tokens")
                )
        return start_Q, length_Q

    def _require_spans(self, rows_M2: Features) -> None:
        if not are_spans(rows_M2):
            raise self._files.damaged(
                "The character spans of the cache are invalid.", f"{self.modality}/tokens/char_spans"
            )

    def _joined(self, name: str, positions_Q: Positions) -> Features:
        """Return the concatenated rows of units; a view for one unit."""
        if name not in self._tokens:
            raise ConfigError(
                f"The {self.modality} tokens of this cache have no {name}.",
                where=self._files.where(f"{self.modality}/tokens"),
            )
        array = self._tokens[name]
        parts = array.stretches(*self._bounds(positions_Q))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *array.spec.shape[1:]), DTYPES[array.spec.dtype])

    def _table(self, spec: ArraySpec) -> MappedArray:
        # Open the array only if its metadata is byte for byte what the plan implies.
        raw = get_recorded(self._files, spec.metadata_path, self._entries)
        if raw != spec.metadata():
            raise self._files.damaged("An array does not match the plan of the cache.", spec.metadata_path)
        return MappedArray(self._files, spec)


def available_memory() -> int:
    """Return the bytes of memory available without swapping; 0 if the kernel does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
