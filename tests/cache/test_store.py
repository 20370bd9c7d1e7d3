"""A folder and an object store do the same: what all commands of a cache rely on, asked of both."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.base.errors import ConfigError, CorruptCache
from advl_pipeline.base.locations import Url
from advl_pipeline.cache.object_store import ObjectStore
from advl_pipeline.cache.store import MissingFile, Overtaken, Store, entry_of
from advl_pipeline.cache.stores import open_store


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache" if request.param == "folder" else request.getfixturevalue("url"))


def test_files_are_put_read_listed_and_deleted(store: Store) -> None:
    assert store.list() == {}
    assert store.put("text/a", [b"one", memoryview(b"two")]) == entry_of(b"onetwo")
    store.put("text/below/b", [b""])
    store.put("c", [b"c"])
    assert store.get("text/a") == b"onetwo"
    with store.opened("text/a") as descriptor:
        assert os.pread(descriptor, 10, 3) == b"two"
        assert os.read(descriptor, 10) == b"onetwo"
    names = {name for name in store.list() if not name.startswith(".work/")}
    assert names == {"c", "text/a", "text/below/b"}
    assert store.list("text") == {"text/a": 6, "text/below/b": 0}
    store.put("text/a", [b"other"])
    assert store.get("text/a") == b"other"
    store.delete("text/a", "not there", "../c", "/c", "", ".", "a//b")
    assert store.list("text") == {"text/below/b": 0}
    store.delete_under("text")
    assert store.list("text") == {}
    store.delete_under()
    assert store.list() == {}


@pytest.mark.parametrize("name", ["nothing", "text/nothing", "c/below a file"])
def test_a_file_that_is_missing_is_named(store: Store, name: str) -> None:
    store.put("c", [b"c"])
    with pytest.raises(CorruptCache, match=name) as caught:
        store.get(name)
    assert name.startswith("c/") or isinstance(caught.value, MissingFile)
    with pytest.raises(CorruptCache, match=name), store.opened(name):
        pass


def test_what_is_there_is_kept_and_a_record_is_written_where_there_is_none(store: Store, tmp_path: Path) -> None:
    store.put("a", [b"content"])
    before = (tmp_path / "cache/a").stat() if store.folder else None
    assert store.put("a", [b"con", b"tent"]) == store.commit("a", b"content") == entry_of(b"content")
    assert store.put_if_absent("a", [b"other"]) == entry_of(b"content")
    if before is not None:
        assert (tmp_path / "cache/a").stat() == before
    for _ in range(2):
        store.commit("records/b.json", b"first")
    with pytest.raises(Overtaken):
        store.commit("records/b.json", b"second")
    assert store.get("records/b.json") == b"first"
    assert not any(name.startswith(".work/tmp/") for name in store.list())


def test_of_many_who_write_at_once_one_is_first_and_all_are_told_who(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda number: store.put_if_absent("records/a.json", [b"%d" % number]), range(8)))
    assert found == {entry_of(store.get("records/a.json"))}


@pytest.mark.parametrize("moment", ["fsync", "mkdir"])
def test_a_file_is_written_though_another_clears_the_work_folder_away(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its content is there, or when the folder was just found."""
    call, cleared, store = getattr(os, moment), iter([True]), open_store(tmp_path / "cache")
    (tmp_path / "cache/.work/tmp").mkdir(parents=True)

    def clear_once(*arguments: Any) -> None:
        try:
            call(*arguments)
        finally:
            if (tmp_path / "cache/.work").exists() and next(cleared, False):
                shutil.rmtree(tmp_path / "cache/.work")

    monkeypatch.setattr(os, moment, clear_once)
    assert store.put_if_absent("a", [b"x"]) == entry_of(b"x")
    assert next(cleared, None) is None
    assert store.list() == {"a": 1}


def test_a_place_with_other_content_takes_no_cache(store: Store) -> None:
    store.require_place()
    store.put("identity.json", [b'{"schema_version": 1}'])
    store.require_place()
    store.delete("identity.json")
    store.put("mine.txt", [b"x"])
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        store.require_place()


def test_a_bucket_that_does_not_go_by_conditions_takes_no_cache(url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(url)
    store.prepare_writing()
    put = ObjectStore._put
    monkeypatch.setattr(ObjectStore, "_put", lambda self, name, content, mode: put(self, name, content, "overwrite"))
    with pytest.raises(ConfigError, match="had to be new"):
        store.prepare_writing()
    assert store.list() == {}


def test_nothing_outside_is_touched_by_way_of_links_or_names(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"theirs")
    store = open_store(tmp_path / "cache")
    store.put("text/b", [b"b"])
    (tmp_path / "cache/image").symlink_to(outside)
    (tmp_path / "cache/text/a").symlink_to(outside / "a")
    with pytest.raises(CorruptCache, match="link"):
        store.list("image")
    assert store.list()["image"] == store.list()["text/a"] == -1
    for name in ("image/a", "text/a"):
        with pytest.raises(CorruptCache, match="link"):
            store.get(name)
        store.put(name, [b"ours"])
        assert store.get(name) == b"ours"
    (tmp_path / "cache/audio").symlink_to(outside)
    store.delete("audio/a", "../outside", "../outside/a", str(outside / "a"))
    assert (outside / "a").read_bytes() == b"theirs"


def test_a_link_to_a_cache_is_removed_with_what_it_leads_to(tmp_path: Path) -> None:
    open_store(tmp_path / "cache").put("a", [b"a"])
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    open_store(tmp_path / "link").delete_under()
    assert list(tmp_path.iterdir()) == []
