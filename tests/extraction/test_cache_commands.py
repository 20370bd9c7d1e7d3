"""The commands on caches do what they say, in text and in JSON, with the documented exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import advl, complaint, printed
from objects import flipped, reseal
from safetensors.numpy import load_file
from tiny_extraction import TinyDataset, tiny_config, tiny_teacher, tree_bytes

from advl_pipeline.base.configuration import config_to_dict, declared
from advl_pipeline.base.errors import IdentityMismatch
from advl_pipeline.cache import identity
from advl_pipeline.cache.commit_records import PLAN_RECORD
from advl_pipeline.cache.confidence import ConfidenceSet, read_confidence, write_confidence
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.store import render_json
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.extraction.config import ExtractConfig, RepairConfig
from advl_pipeline.extraction.recompute import recompute
from advl_pipeline.extraction.repair import run_repair


@pytest.fixture
def cache(cache_path: Path) -> Path:
    return cache_path


def test_info(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "cache", "info", cache)
    assert "complete" in out
    assert "18 units" in out
    found = json.loads(printed(capsys, "cache", "info", cache, "--json")[0])
    assert found["modalities"]["text"]["committed_shards"] == found["modalities"]["text"]["num_shards"] > 2
    (cache / "records/complete.json").unlink()
    (cache / "records/text-00002.json").unlink()
    assert "not finished" in printed(capsys, "cache", "info", cache)[0]
    assert "no cache here" in printed(capsys, "cache", "info", cache.parent / "none", code=2)[1]


def test_verify(cache: Path, opened: list[ExtractConfig], capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "cache", "verify", cache, "--recompute", 5, "--json")[0])
    assert found["recomputed"] == 10
    assert 0 <= found["worst_cosine_error"] < 1e-3
    dataset = TinyDataset(cache.parent / "data")
    assert not recompute(verify_cache(cache), tiny_config(cache), tiny_teacher(seed=9), dataset, count=3).is_sound
    name = "image/global/c/0/0"
    (cache / name).write_bytes(flipped((cache / name).read_bytes()))
    _, err = printed(capsys, "cache", "verify", cache, code=4)
    assert f"{name}: its content changed" in err
    assert "advl cache repair" in err
    out, _ = printed(capsys, "cache", "verify", cache, "--json", code=4)
    assert json.loads(out)["findings"] == [{"path": name, "problem": "its content changed"}]


@pytest.mark.parametrize(
    "named",
    [
        {"progress_file": "run.json", "disk_cache": "kept", "output": "elsewhere"},
        {"dataset": "hf:mine"},
        {"data_root": "mine", "weights": "mine/weights", "ids": ["mine/list.json"]},
        {"teacher": "random:hf:mine"},
    ],
    ids=str,
)
def test_no_path_of_a_record_is_opened_or_written_to(
    named: dict[str, Any],
    cache: Path,
    opened: list[ExtractConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    before = tree_bytes(tmp_path / "mine") | {"run.json": b"{}"}
    # Whoever makes a cache makes all of its records; the one that is left is taken for it.
    record = json.loads((cache / "records/provenance.json").read_bytes())
    record["config"] |= named
    (cache / "records/provenance.json").write_text(json.dumps(record), encoding="utf-8")
    for name in ("records/complete.json", "records/plan.json", "zarr.json"):
        (cache / name).unlink()
    code, _, said = advl(capsys, "cache", "repair", cache)
    if "progress_file" in named:
        assert code == 0, said
        assert opened[0].output == cache
    else:
        assert (code, opened) == (2, [])
        assert "opened only if you give them" in said
        assert f"advl cache repair {cache} --" in said.partition("next:")[2]
    assert tree_bytes(tmp_path / "mine") | {"run.json": (tmp_path / "run.json").read_bytes()} == before
    assert not (tmp_path / "kept").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_prune(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [{"seed": seed} for seed in range(2)]
    for made in sets:
        write_confidence(cache, made, ConfidenceSet(["a"], np.array([0.5], np.float32), np.array([1], np.float32)))
    assert "would remove" in printed(capsys, "cache", "prune", cache, "--all-confidences", "--dry-run")[0]
    assert all(read_confidence(cache, made) is not None for made in sets)
    (cache / ".work/tmp").mkdir(parents=True)
    (cache / ".work/tmp/left-over").write_bytes(b"x")
    (cache / "confidence/0000000000000000").mkdir()
    (cache / "confidence/0000000000000000/zarr.json").write_bytes(b"{}")
    assert not verify_cache(cache).is_sound
    printed(capsys, "cache", "prune", cache, "--all-confidences")
    assert verify_cache(cache).is_sound
    assert not any(read_confidence(cache, made) for made in sets)
    assert not (cache / ".work").exists()
    journal = cache.with_name(f"{cache.name}.extraction.jsonl")
    journal.write_text('{"seconds": 1.0, "num_units": 8, "device": "cpu"}\n')
    printed(capsys, "cache", "prune", cache, "--all")
    assert not cache.exists()
    assert not journal.exists()


def test_prune_removes_no_folder_that_is_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work/records").mkdir(parents=True)
    (tmp_path / "work/records/a.csv").write_text("1")
    (tmp_path / "work/thesis.tex").write_text("years")
    assert "a teacher cache" in printed(capsys, "cache", "prune", tmp_path / "work", "--all", code=2)[1]
    assert (tmp_path / "work/thesis.tex").read_text() == "years"


def test_a_cache_of_more_shards_than_the_usual_limit_of_open_files_is_read(pristine: Path) -> None:
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 4096))\n"
        "from advl_pipeline.cache.reader import open_cache\n"
        "cache = open_cache(sys.argv[1])\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (4096, 4096)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 4096))\n"
        "try:\n"
        "    cache.text.token_features(list(cache.text.ids))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, pristine / "cache"], capture_output=True, text=True, check=True
    )
    assert "StorageError" in done.stdout
    assert "ulimit -n" in done.stdout


@pytest.mark.parametrize("form", ["hdf5", "safetensors"])
def test_export(form: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "features"
    (tmp_path / "features.partial").write_text("somebody's")
    printed(capsys, "cache", "export", cache, "--to", form, "--output", output)
    assert (tmp_path / "features.partial").read_text() == "somebody's"
    (tmp_path / "usual").touch()
    written = output if form == "hdf5" else output / "image-00000.safetensors"
    assert written.stat().st_mode == (tmp_path / "usual").stat().st_mode
    for modality, store in open_cache(cache).stores().items():
        ids = list(store.ids)
        if form == "hdf5":
            with h5py.File(output) as file:
                content = {name: rows[:] for name, rows in file[modality].items()}
            assert [name.decode() for name in content["unit_id"]] == ids
        else:
            content = load_file(output / f"{modality}-00000.safetensors")
            assert [row.tobytes().hex() for row in content["unit_id"]] == ids
        values, lengths = store.token_features(ids)
        np.testing.assert_array_equal(content["global"], store.global_features(ids))
        np.testing.assert_array_equal(content["token_values"], values)
        np.testing.assert_array_equal(content["token_lengths"], lengths)
    np.testing.assert_array_equal(content["char_spans"], store.char_spans(ids))
    words = ("cache", "export", cache, "--to", form, "--output", output)
    assert "exists already" in printed(capsys, *words, code=2)[1]


def test_compressed_caches_of_version_0_2_are_refused_with_the_way_out(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of such a cache the plan and its provenance name the compression."""
    reseal(cache, PLAN_RECORD, lambda plan: plan.update(compression="zstd"))
    reseal(cache, PLAN_RECORD, lambda plan: plan["provenance"]["config"].update(compression="zstd"))
    before = tree_bytes(cache)
    for words in (
        ["verify", cache],
        ["info", cache],
        ["repair", cache],
        ["export", cache, "--output", tmp_path / "o"],
    ):
        code, told = complaint(capsys, "cache", *words)
        assert code == IdentityMismatch.exit_code, words
        assert "Compressed caches are not read any more" in told
        assert f"advl cache prune {cache} --all && advl extract --teacher tiny" in told
        assert "--compression" not in told
    with pytest.raises(IdentityMismatch):
        open_cache(cache)
    assert tree_bytes(cache) == before
    assert complaint(capsys, "cache", "prune", cache, "--all")[0] == 0


def test_what_earlier_versions_noted_of_a_cache_is_no_option_any_more(
    pristine: Path, cache: Path, opened: list[ExtractConfig]
) -> None:
    for name in ("records/plan.json", "zarr.json"):
        (cache / name).unlink()
    made = open_cache(pristine / "cache").provenance
    old = {**made, "config": {**made["config"], "compression": "none", "text_units": "question"}}
    (cache / "records/provenance.json").write_bytes(render_json(old))
    assert not run_repair(RepairConfig(cache=cache)).is_identical
    assert opened
    assert verify_cache(cache).is_sound
    assert open_cache(cache).provenance == old


def test_a_command_that_makes_a_cache_again_says_all_that_decides_it() -> None:
    """`cache/` may not import the configuration whose options it writes down."""
    options = declared(ExtractConfig)
    deciding = {name for name, item in options.items() if item.option.identity in ("value", "content")}
    assert set(identity._EXTRACT_OPTIONS) == deciding | {"weights", "data_root"}
    plain = config_to_dict(ExtractConfig(teacher="any", dataset="any"))
    assert {name: plain[name] for name in identity._UNSAID} == identity._UNSAID
