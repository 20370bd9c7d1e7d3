"""The commands on caches do what they say, in text and in JSON, with the documented exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import advl
from objects import flipped
from safetensors.numpy import load_file
from tiny_extraction import TinyDataset, tiny_config, tiny_teacher, tree_bytes

from advl_pipeline.base.configuration import build_config, config_to_dict, declared
from advl_pipeline.base.errors import DatasetError
from advl_pipeline.cache import identity
from advl_pipeline.cache.confidence import read_confidence, write_confidence
from advl_pipeline.cache.reader import FeatureStore, open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.extraction import run
from advl_pipeline.extraction.config import ExtractConfig, ImportConfig
from advl_pipeline.extraction.recompute import recompute
from advl_pipeline.extraction.run import import_features


@pytest.fixture
def cache(cache_path: Path) -> Path:
    return cache_path


def test_info(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = advl(capsys, "cache", "info", cache)
    assert code == 0
    assert "complete" in out
    assert "40 units" in out
    code, out, _ = advl(capsys, "cache", "info", cache, "--json")
    found = json.loads(out)
    assert found["modalities"]["image"]["committed_shards"] == found["modalities"]["image"]["num_shards"]
    (cache / "records/complete.json").unlink()
    (cache / "records/text-00002.json").unlink()
    assert "not finished" in advl(capsys, "cache", "info", cache)[1]
    code, out, err = advl(capsys, "cache", "info", cache.parent / "none")
    assert (code, out, "no cache here" in err) == (2, "", True)


def test_verify(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert advl(capsys, "cache", "verify", cache)[0] == 0
    damaged = cache / "image/global/c/0/0"
    damaged.write_bytes(flipped(damaged.read_bytes()))
    code, _, err = advl(capsys, "cache", "verify", cache)
    assert code == 4
    assert "image/global/c/0/0: its content changed" in err
    assert "advl cache repair" in err
    code, out, _ = advl(capsys, "cache", "verify", cache, "--json")
    assert code == 4
    assert json.loads(out)["findings"] == [{"path": "image/global/c/0/0", "problem": "its content changed"}]


def test_verify_with_the_teacher(
    pristine: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = [(tiny_teacher(), TinyDataset(pristine / "data"))]
    monkeypatch.setattr(run, "open_teacher_and_data", lambda config: opened[0])
    code, out, _ = advl(capsys, "cache", "verify", cache, "--recompute", 5, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["recomputed"] == 10
    assert 0 <= found["worst_cosine_error"] < 1e-3
    report = verify_cache(cache)
    other = recompute(report, tiny_config(cache), tiny_teacher(seed=9), TinyDataset(pristine / "data"), count=3)
    assert not other.is_sound


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
    pristine: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[ExtractConfig] = []

    def open_inputs(config: ExtractConfig) -> tuple[Any, Any]:
        opened.append(config)
        return tiny_teacher(), TinyDataset(pristine / "data")

    monkeypatch.setattr(run, "open_teacher_and_data", open_inputs)
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
        assert "only paths that you give are opened" in said
        assert f"advl cache repair {cache} --" in said.partition("next:")[2]
    assert tree_bytes(tmp_path / "mine") | {"run.json": (tmp_path / "run.json").read_bytes()} == before
    assert not (tmp_path / "kept").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_prune(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [{"seed": seed} for seed in range(3)]
    for made in sets:
        write_confidence(cache, made, ["a"], np.array([0.5], np.float32), np.array([1], np.float32))
    assert "would remove" in advl(capsys, "cache", "prune", cache, "--all-confidences", "--dry-run")[1]
    assert all(read_confidence(cache, made) is not None for made in sets)
    (cache / ".work/tmp").mkdir(parents=True)
    (cache / ".work/tmp/left-over").write_bytes(b"x")
    (cache / "confidence/0000000000000000").mkdir()
    (cache / "confidence/0000000000000000/zarr.json").write_bytes(b"{}")
    assert not verify_cache(cache).is_sound
    advl(capsys, "cache", "prune", cache, "--all-confidences")
    assert verify_cache(cache).is_sound
    assert not any(read_confidence(cache, made) for made in sets)
    assert not (cache / ".work").exists()
    journal = cache.with_name(f"{cache.name}.extraction.jsonl")
    journal.write_text('{"seconds": 1.0, "num_units": 8, "device": "cpu"}\n')
    advl(capsys, "cache", "prune", cache, "--all")
    assert not cache.exists()
    assert not journal.exists()


def test_prune_removes_no_folder_that_is_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "work/records").mkdir(parents=True)
    (tmp_path / "work/records/a.csv").write_text("1")
    (tmp_path / "work/thesis.tex").write_text("years")
    code, _, err = advl(capsys, "cache", "prune", tmp_path / "work", "--all")
    assert code == 2
    assert "a teacher cache" in err
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
    assert advl(capsys, "cache", "export", cache, "--to", form, "--output", output)[0] == 0
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
    code, _, err = advl(capsys, "cache", "export", cache, "--to", form, "--output", output)
    assert code == 2
    assert "exists already" in err


def imported(source: Path, dataset: TinyDataset, output: Path) -> FeatureStore:
    """Import features into a cache, and return what it holds of pictures."""
    settings = {"source": source, "name": "mine", "dataset": "tiny", "output": output}
    import_features(build_config(ImportConfig, settings), dataset)
    return open_cache(output).image


def write_arrays(source: Path, arrays: Mapping[str, Any]) -> None:
    """File arrays under names."""
    for name, rows in arrays.items():
        path = source / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows)


def test_import(tmp_path: Path) -> None:
    dataset = TinyDataset(tmp_path / "data", num_images=6)
    generator = np.random.default_rng(0)
    # Pictures without boxes have no rows to take a mean of.
    features = {
        unit.path.stem: generator.standard_normal((max(1, len(unit.boxes_R4)), 5)).astype(np.float32) + 1
        for unit in dataset.image_units()
    }
    write_arrays(tmp_path / "features", features)
    store = imported(tmp_path / "features", dataset, tmp_path / "cache")
    for unit in dataset.image_units():
        rows = features[unit.path.stem]
        np.testing.assert_array_equal(store.token_features([unit.unit_id])[0], rows.astype(np.float16))
        np.testing.assert_allclose(store.global_features([unit.unit_id])[0], rows.mean(axis=0), atol=2e-3)


def test_import_takes_each_pictures_own_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one name in several folders do not share what is filed under it."""
    dataset = TinyDataset(tmp_path / "data", num_images=2)
    units = [
        dataclasses.replace(unit, path=tmp_path / "data" / folder / "0.png")
        for unit, folder in zip(dataset.image_units(), ("cats", "dogs"), strict=True)
    ]
    monkeypatch.setattr(dataset, "image_units", lambda: units)

    def found(*names: str) -> list[float]:
        source = tmp_path / "-".join(names).replace("/", "_")
        write_arrays(source, {name: np.full(3, value, np.float32) for value, name in enumerate(names)})
        store = imported(source, dataset, source.with_suffix(".cache"))
        return [float(store.global_features([unit.unit_id])[0, 0]) for unit in units]

    assert found("dogs/0", "cats/0") == [1.0, 0.0]
    assert found("dogs/0", "data/cats/0.png") == [1.0, 0.0]
    for names, said in {
        ("0",): "Two pictures go by one name",
        ("a/0", "b/0"): "Several features",
        ("dogs/0", "dogs/1"): "Two pictures go by one name",
    }.items():
        with pytest.raises(DatasetError, match=said):
            found(*names)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


def filed(save: Callable[[Any], object], *, number: int = 2) -> Callable[[Path, list[str]], None]:
    def write(source: Path, names: list[str]) -> None:
        source.mkdir()
        for name in names[:number]:
            with (source / f"{name}.npy").open("wb") as file:
                save(file)

    return write


BAD_SOURCES: dict[str, tuple[Callable[[Path, list[str]], None], str]] = {
    "objects": (filed(lambda file: np.save(file, np.array([Evil()]))), "cannot be read"),
    "an archive": (filed(lambda file: np.savez(file, features=np.ones((2, 3), np.float32))), "cannot be read"),
    "a torn header": (filed(lambda file: file.write(b"\x93NUMPY\x01\x00\x06\x00{'a':(\n")), "cannot be read"),
    "numbers that are none": (filed(lambda file: np.save(file, np.full(3, np.nan, np.float32))), "must be finite"),
    # It is told before any array is read, and so before the one that cannot be used.
    "the second picture lacks its own": (
        filed(lambda file: np.save(file, np.full(3, np.nan, np.float32)), number=1),
        "no features for a picture(?s:.*)0-1.png",
    ),
}


@pytest.mark.parametrize("what", BAD_SOURCES)
def test_arrays_that_cannot_be_taken_are_refused_and_never_unpickled(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = TinyDataset(tmp_path / "data", num_images=2)
    write, says = BAD_SOURCES[what]
    write(Path("features"), [unit.path.stem for unit in dataset.image_units()])
    with pytest.raises(DatasetError, match=says):
        imported(Path("features"), dataset, tmp_path / "cache")
    assert not Path("was-run").exists()


def test_a_command_that_makes_a_cache_again_says_all_that_decides_it() -> None:
    """`cache/` may not import the configuration whose options it writes down."""
    options = declared(ExtractConfig)
    deciding = {name for name, item in options.items() if item.option.identity in ("value", "content")}
    assert set(identity._EXTRACT_OPTIONS) == deciding | {"weights", "data_root"}
    plain = config_to_dict(ExtractConfig(teacher="any", dataset="any"))
    assert {name: plain[name] for name in identity._UNSAID} == identity._UNSAID
