"""Any damage is named by verification, never read silently, and repaired to the very same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import chaos
import numpy as np
import pytest
from commands import printed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objects import flipped, forge
from tiny_extraction import TinyDataset, stop_before_the_tables, tiny_config, tiny_extract, tiny_teacher, tree_bytes

from advl_pipeline.base.errors import CorruptCache, IdentityMismatch
from advl_pipeline.cache.commit_records import COMPLETE_RECORD, PLAN_RECORD, load_plan, load_shard
from advl_pipeline.cache.confidence import (
    ConfidenceSet,
    confidence_key,
    list_confidence,
    read_confidence,
    write_confidence,
)
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.stores import FolderStore
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.cache.writer import load_staged, staged_path
from advl_pipeline.extraction import repair as repair_module
from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import RepairConfig
from advl_pipeline.extraction.repair import RepairResult, repair, run_repair
from advl_pipeline.extraction.run import extract

SHARES = np.array([1.0, np.nan], np.float32)
DAMAGES = chaos.DAMAGES[:5]


@pytest.fixture
def cache(estimated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(estimated / "cache", tmp_path / "cache"))


def mend(estimated: Path, cache: Path) -> RepairResult:
    return repair(tiny_config(cache, confidence="probe"), tiny_teacher(), TinyDataset(estimated / "data"))


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes()))


def num_texts(cache: Path, shard: int) -> int:
    return load_shard(FolderStore(cache), "text", shard).num_units


READ_AT_OPENING = re.compile(
    r"(image|text)/(tokens/(starts|lengths|values)|unit_id|global|index/unit|(global|token)_(mean|variance))/zarr.json"
    r"|(image|text)/(tokens/(starts|lengths)|(global|token)_(mean|variance))/c/0"
    r"|identity.json|records/(complete|plan|provenance).json"
)


@pytest.mark.parametrize("damages", [DAMAGES[:1], DAMAGES[1:]], ids=["flips", "others"])
def test_every_file_is_vouched_for_and_opening_misses_none(estimated: Path, cache: Path, damages: list[str]) -> None:
    for number, (name, content) in enumerate(tree_bytes(estimated / "cache").items()):
        damage = damages[number % len(damages)]
        chaos.spoil(cache / name, damage, original=estimated / "cache" / name, place=0.5 if damage == "flip" else 1.0)
        assert name in verify_cache(cache).findings, name
        # Sets of confidences are checked when they are read, and changes of shards before a training.
        if (damage != "flip" or READ_AT_OPENING.fullmatch(name)) and "confidence" not in name:
            with pytest.raises(CorruptCache) as caught:
                open_cache(cache)
            assert damage == "flip" or name in caught.value.where or name == COMPLETE_RECORD, name
        if (cache / name).is_dir():
            (cache / name).rmdir()
        (cache / name).unlink(missing_ok=True)
        (cache / name).write_bytes(content)
    assert verify_cache(cache).is_sound
    assert open_cache(cache).text is not None


@pytest.mark.parametrize("options", [{}, chaos.CACHES["text, int8, selected"]], ids=["plain", "int8"])
def test_the_repair_command_restores_the_bytes_and_touches_nothing_else(
    estimated: Path, tmp_path: Path, options: dict[str, Any], opened: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file of every kind. The text tower scales its features, so norms do not follow from what is stored."""
    whole = estimated / "cache"
    if options:
        whole = tmp_path / "whole"
        tiny_extract(estimated / "data", whole, **options)
    expected, cache = tree_bytes(whole), Path(shutil.copytree(whole, tmp_path / "cache"))
    kinds = {chaos.component(name): name for name in expected if not options or name.startswith("text/")}
    assert {"text/stats/norm/c/0", "text/tokens/scales/c/0" if options else "records/complete.json"} <= kinds.keys()
    names = sorted(kinds.values())
    assert "nothing to repair" in printed(capsys, "cache", "repair", cache)[0]
    # What says how a cache was made exists twice; both may not be damaged at once.
    alone = [name for name in names if name.startswith("records/") or "/" not in name]
    others = [name for name in names if name not in alone]
    for number, group in enumerate([*([name] for name in alone), *(others[place::4] for place in range(4))]):
        before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
        for place, name in enumerate(group):
            chaos.spoil(cache / name, DAMAGES[(number + place) % len(DAMAGES)], original=whole / name)
        found = json.loads(printed(capsys, "cache", "repair", cache, "--json")[0])
        assert found["is_identical"], group
        assert set(group) <= {path for path, _ in found["findings"]}, group
        assert chaos.differing(expected, cache) == [], group
        touched = {str(path.relative_to(cache)) for path, time in before.items() if path.stat().st_mtime_ns != time}
        # The records of a shard that is encoded again, and the one that completes the cache, are written anew. A set
        # of confidences is estimated anew as a whole.
        sets = tuple(f"confidence/{key}/" for key in re.findall("[0-9a-f]{16}", " ".join(group)))
        assert {item for item in touched if not item.startswith(("records/", *sets))} <= set(group), group


def flip_each(*names: str) -> Callable[[Path], None]:
    return lambda cache: [flip(cache / name) for name in names]


def swap_shards(array: str) -> Callable[[Path], None]:
    one, two = (f"text/tokens/{array}/c/{shard}/0" for shard in (1, 2))

    def swap(cache: Path) -> None:
        (cache / one).rename(cache / "aside")
        (cache / two).rename(cache / one)
        (cache / "aside").rename(cache / two)

    return swap


def put_a_folder_for_the_last_record(cache: Path) -> None:
    (cache / COMPLETE_RECORD).unlink()
    (cache / COMPLETE_RECORD / "inside").mkdir(parents=True)
    # A second damage makes the repair take the record away before it writes.
    flip(cache / "text/index/unit/c/0")


def leave_a_file(cache: Path) -> None:
    (cache / "text/tokens/values/c/99").mkdir()
    (cache / "text/tokens/values/c/99/0").write_bytes(b"left over")


PROVENANCE = ("records/provenance.json", "records/plan.json", "zarr.json")
SWAPPED = [f"text/tokens/values/c/{shard}/0" for shard in (1, 2)]
WOUNDS: dict[str, tuple[Callable[[Path], None], set[str], tuple[int, ...]]] = {
    **{
        f"copies of the provenance but {spared}": (flip_each(*lost), set(lost), ())
        for spared, lost in ((spared, [name for name in PROVENANCE if name != spared]) for spared in PROVENANCE)
    },
    "shards of values swapped": (swap_shards("values"), set(SWAPPED), (1, 2)),
    "shards of spans swapped": (
        swap_shards("char_spans"),
        {name.replace("values", "char_spans") for name in SWAPPED},
        (1, 2),
    ),
    "a folder for the last record": (put_a_folder_for_the_last_record, {COMPLETE_RECORD, "text/index/unit/c/0"}, ()),
    "a file of nobody's": (leave_a_file, {"text/tokens/values/c/99/0"}, ()),
}
"""What is done to a cache, the files that are named for it, and the shards of texts that are encoded again."""


@pytest.mark.parametrize("wound", WOUNDS)
def test_a_wound_is_named_and_what_it_hit_alone_is_encoded_again(estimated: Path, cache: Path, wound: str) -> None:
    hurt, named, shards = WOUNDS[wound]
    hurt(cache)
    result = mend(estimated, cache)
    assert {path for path, _ in result.findings} == named
    assert result.is_identical
    encoded = sum(num_texts(estimated / "cache", shard) for shard in shards)
    total = sum(shape.num_units for shape in load_plan(FolderStore(cache)).modalities.values())
    assert (result.encoded_units, result.trusted_units) == (encoded, total - encoded)
    assert tree_bytes(cache) == tree_bytes(estimated / "cache")


def test_tampered_values_with_digests_of_their_own_are_encoded_again(estimated: Path, cache: Path) -> None:
    name = "text/tokens/values/c/0/0"
    content = bytearray((cache / name).read_bytes())
    content[1:32:2] = bytes(byte ^ 0x80 for byte in content[1:32:2])  # The first row, negated.
    forge(cache, {name: bytes(content)})
    assert any("it is not the mean" in why for why in verify_cache(cache).findings.values())
    result = mend(estimated, cache)
    assert {path.split("/")[0] for path, _ in result.findings} == {"text"}
    assert result.encoded_units == load_plan(FolderStore(cache)).modalities["text"].num_units
    assert tree_bytes(cache) == tree_bytes(estimated / "cache")


def test_a_set_of_confidences_stays_as_it_was_first_written(cache: Path) -> None:
    identity, before = {"estimator": "mine"}, set(cache.rglob("*"))
    first, other = (
        ConfidenceSet(["a", "b"], np.array(values, np.float32), SHARES) for values in ([0.25, 0.5], [0.25, 0.75])
    )
    for found in (first, other):
        write_confidence(cache, identity, found)
        stored = read_confidence(cache, identity)
        np.testing.assert_array_equal(stored.probability_N, first.probability_N)
        np.testing.assert_array_equal(stored.outranked_N, SHARES)
    assert verify_cache(cache).is_sound
    added = {path.relative_to(cache).parts[0] for path in {*cache.rglob("*")} - before}
    assert added == {"confidence", "records"}
    (cache / f"confidence/{confidence_key(identity)}/probability/c/0").write_bytes(b"damaged")
    write_confidence(cache, identity, other)
    np.testing.assert_array_equal(read_confidence(cache, identity).probability_N, other.probability_N)


def test_another_record_in_the_place_of_one_of_confidences_is_found_and_repaired(
    estimated: Path, cache: Path
) -> None:
    record = min((cache / "records").glob("confidence-*.json"))
    others = [path.read_bytes() for path in sorted((cache / "records").glob("*.json")) if path != record]
    for content in others:
        record.write_bytes(content)
        assert f"records/{record.name}" in verify_cache(cache).findings
        with pytest.raises(CorruptCache):
            list_confidence(cache)
    assert mend(estimated, cache).is_identical
    assert tree_bytes(cache) == tree_bytes(estimated / "cache")


def test_shard_cut_short_after_opening_is_an_error(cache: Path) -> None:
    store = open_cache(cache).text
    ids = list(store.ids)
    os.truncate(cache / "text/tokens/values/c/0/0", 64)
    with pytest.raises(CorruptCache, match="wrong length"):
        store.token_features(ids)


def test_repair_refuses_another_teacher_and_the_records_of_another_cache(
    estimated: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(cache / "text/tokens/values/c/0/0")
    with pytest.raises(IdentityMismatch):
        repair(tiny_config(cache, confidence="probe"), tiny_teacher(seed=5), TinyDataset(estimated / "data"))
    other = TinyDataset(tmp_path / "data", seed=7)
    extract(tiny_config(tmp_path / "other"), tiny_teacher(), other)
    shutil.rmtree(cache / "records")
    shutil.copytree(tmp_path / "other/records", cache / "records")
    shutil.copy(estimated / "cache/records/provenance.json", cache / "records")
    found = tree_bytes(cache)
    monkeypatch.setattr(run, "open_teacher_and_data", lambda config: (tiny_teacher(), other))
    with pytest.raises(IdentityMismatch, match=r"belong to another cache(?s:.)*advl cache prune") as caught:
        run_repair(RepairConfig(cache=cache))
    assert caught.value.exit_code == 3
    assert tree_bytes(cache) == found


@pytest.fixture(scope="module")
def stopped(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose shards are all committed, and nothing is in the tables yet."""
    cache = tmp_path_factory.mktemp("stopped") / "cache"
    stop_before_the_tables(pristine / "data", cache)
    return cache


STAGED = staged_path("text", 2)


@pytest.mark.parametrize(
    ("damage", "place"),
    [("flip", 0.0), ("flip", 0.5), ("truncate", 0.0), ("truncate", 0.5), *((damage, 0.5) for damage in DAMAGES[2:])],
)
def test_damaged_work_in_progress_never_gets_into_a_table(
    pristine: Path, stopped: Path, tmp_path: Path, damage: str, place: float
) -> None:
    cache = Path(shutil.copytree(stopped, tmp_path / "cache"))
    assert load_staged(FolderStore(cache), "text", 2).keys() == {
        *("global", "global_sums", "token_sums", "stat-norm", "stat-entropy")
    }
    chaos.spoil(cache / STAGED, damage, original=stopped / STAGED, place=place)
    with pytest.raises(CorruptCache, match="advl cache repair"):
        tiny_extract(pristine / "data", cache)
    result = repair(tiny_config(cache), tiny_teacher(), TinyDataset(pristine / "data"))
    assert result.encoded_units == num_texts(cache, 2)
    assert tree_bytes(cache) == tree_bytes(pristine / "cache")


def test_folder_that_is_a_link_is_refused(estimated: Path, cache: Path, tmp_path: Path) -> None:
    (cache / "text/tokens").rename(tmp_path / "elsewhere")
    (cache / "text/tokens").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptCache, match="link"):
        open_cache(cache)
    elsewhere = tree_bytes(tmp_path / "elsewhere")
    assert mend(estimated, cache).is_identical
    assert tree_bytes(tmp_path / "elsewhere") == elsewhere
    assert not (cache / "text/tokens").is_symlink()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(estimated: Path, tmp_path: Path, data: st.DataObject) -> None:
    cache = tmp_path / "cache"
    if not cache.exists():
        shutil.copytree(estimated / "cache", cache)
    name = data.draw(st.sampled_from(sorted(tree_bytes(estimated / "cache"))))
    content = (cache / name).read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    (cache / name).write_bytes(damaged)
    assert name in verify_cache(cache).findings
    (cache / name).write_bytes(content)


def test_a_repair_needs_no_room_for_what_is_there(
    estimated: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = cache / "text/tokens/starts/zarr.json"
    starts.write_bytes(starts.read_bytes()[:-3])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    assert mend(estimated, cache).is_identical
    assert tree_bytes(cache) == tree_bytes(estimated / "cache")


def test_what_a_stopped_repair_left_is_taken_over_by_no_other_teacher(
    pristine: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shards are there and its plan is not: another teacher of equal shape would vouch for them."""
    cache, dataset = Path(shutil.copytree(stopped, tmp_path / "cache")), TinyDataset(pristine / "data")
    flip(cache / "text/unit_id/c/0/0")
    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "make_plan", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair(tiny_config(cache), tiny_teacher(), dataset)
    assert not (cache / PLAN_RECORD).exists()
    with pytest.raises(IdentityMismatch):
        extract(tiny_config(cache), tiny_teacher(seed=7), dataset)
    extract(tiny_config(cache), tiny_teacher(), dataset)
    assert tree_bytes(cache) == tree_bytes(pristine / "cache")
