"""Region features are imported and go into a region student, by commands."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import advl, printed
from dataset_mirrors import vcr_record, write_vcr, write_vqa
from region_mirrors import FEATURE_SIZE, features_of, write_butd_tsv, write_npz, write_uniter_layout
from run_logs import items_file

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.runs.evaluations import read_evaluation

SPLITS = {"train": "train2014", "val": "val2014", "test": "test2015"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official data")
    for split in SPLITS:
        write_vqa(folder, split=split, count=18)
    return folder


def pictures(root: Path, split: str) -> list[Path]:
    return sorted((root / "vqa-v2" / SPLITS[split]).glob("*.jpg"))


def finetune(root: Path, run: Path, regions: Path | str) -> list[Any]:
    (root / "answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    return [
        *("finetune", "--dataset", "vqa-v2", "--data-root", root, "--answers", root / "answers.json"),
        *("--student", "uniter-tiny", "--recipe", "none", "--method", "plain", "--num-steps", 2, "--batch-size", 4),
        *("--regions", regions, "--output", run),
    ]


def importing(root: Path, source: Path, output: Path, *more: Any, split: str = "train") -> list[Any]:
    return [
        *("cache", "import", source, "--name", "detector", "--dataset", "vqa-v2", "--data-root", root),
        *("--split", split, "--output", output, *more),
    ]


def test_what_cannot_be_imported_is_named_and_leaves_no_cache(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = pictures(root, "train")
    broken, some = write_npz(tmp_path / "broken", paths, image_w=65), write_npz(tmp_path / "some", paths[:1])
    several = tmp_path / "several" / "coco_train2014"
    for name in ("feat_th0.2_max100_min10", "feat_numbb36"):
        (several / name).mkdir(parents=True)
        (several / name / "data.mdb").touch()
    # Counts beside an LMDB that was not downloaded.
    (empty := tmp_path / "empty").mkdir()
    (empty / "nbb_th0.2_max100_min10.json").write_text("{}")
    for source, why in (
        (broken, "features are for a picture of 65x48, the picture is 64x48"),
        (some, "A picture has no region features"),
        (empty, "no region features in a known format"),
        (several, f"name one of them, such as {several}/feat_numbb36"),
    ):
        code, _, err = advl(capsys, *importing(root, source, tmp_path / "cache"))
        assert (code, why in err, str(source) in err) == (5, True, True), err
        assert "Traceback" not in err
        assert not (tmp_path / "cache").exists()


def test_raw_files_are_refused_with_the_command_that_imports_what_a_run_holds_by_its_content(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    template = "{split}/features.tsv"
    write_butd_tsv(Path("train2014"), pictures(root, "train"))
    _, err = printed(capsys, *finetune(root, tmp_path / "run", template), code=2)
    assert "Regions are read from a cache" in err
    assert not (tmp_path / "run").exists()
    (line,) = (line for line in err.splitlines() if "next:" in line)
    advice, note = line.partition("next:")[2].split("   (then give ")
    printed(capsys, *shlex.split(advice)[1:])
    regions = shlex.split(note.rstrip(")"))[1]
    printed(capsys, *finetune(root, tmp_path / "run", regions))
    # What is no cache of regions at all, and a teacher's features that are regions.
    _, err = printed(capsys, *finetune(root, tmp_path / "other", "nothing/{split}"), code=2)
    assert "there is nothing here" in err
    cache = regions.format(dataset="vqa-v2", split="train")
    words = (*finetune(root, tmp_path / "other", regions), "--cache", cache, "--method", "advl")
    _, err = printed(capsys, *words, code=2)
    assert "no teacher's features" in err
    # A run holds its regions by their content: they may move, and may not change.
    Path("caches").rename("moved")
    printed(capsys, *finetune(root, tmp_path / "run", regions.replace("caches", "moved", 1)))
    shutil.rmtree("train2014")
    write_butd_tsv(Path("train2014"), pictures(root, "train"), features=np.ones((3, FEATURE_SIZE), np.float32))
    printed(capsys, *shlex.split(advice)[1:])
    _, err = printed(capsys, *finetune(root, tmp_path / "run", regions), code=3)
    assert "content_digest" in err


def test_an_import_is_resumed_verified_and_repaired_from_its_files(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regions, cache = write_npz(tmp_path / "regions", pictures(root, "train")), tmp_path / "cache"
    words = importing(root, regions, cache)
    code, out, err = advl(capsys, *words, "--dry-run")
    count = len(pictures(root, "train"))
    assert (code, f"would write {cache}: {count} pictures, {3 * count} rows, " in out) == (0, True), err
    assert not cache.exists()
    assert advl(capsys, *words)[0] == 0
    units, store = (
        open_dataset("vqa-v2", split="train", data_root=root).image_units(),
        open_cache(cache).stores()["image"],
    )
    np.testing.assert_allclose(
        store.token_features([unit.unit_id for unit in units])[0],
        np.concatenate([features_of(unit.path) for unit in units]),
        atol=1e-3,
    )
    content = {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}

    def is_as_it_was() -> bool:
        return content == {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}

    # As a kill leaves it that came after the plan.
    for name in ("records/complete.json", "records/image-tables.json", "records/image-00000.json", "zarr.json"):
        (cache / name).unlink()
    (cache / "image" / "tokens" / "boxes" / "c" / "0" / "0").unlink()
    out, _ = printed(capsys, *words)
    assert is_as_it_was()

    for array in ("values", "boxes", "box_index", "confidence"):
        (file,) = (path for path in (cache / "image" / "tokens" / array / "c").rglob("*") if path.is_file())
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    _, err = printed(capsys, "cache", "verify", cache, code=4)
    assert err.count("its content changed") == 4
    # No path of the record is opened, which may be of anyone.
    _, err = printed(capsys, "cache", "repair", cache, code=2)
    assert f"--source {regions}" in err
    (line,) = (line for line in err.splitlines() if "next:" in line)
    out, _ = printed(capsys, *shlex.split(line.partition("next:")[2])[1:])
    assert "every byte as it was" in out
    assert is_as_it_was()
    arguments = ("--recompute", 3, "--source", regions, "--data-root", root)
    out, _ = printed(capsys, "cache", "verify", cache, *arguments)
    assert "3 units computed again" in out


def some_regions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and boxes in shares."""
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((count, 2, 2), dtype=np.float32), axis=1).reshape(count, 4)
    return random.standard_normal((count, FEATURE_SIZE)).astype(np.float32), corners


def test_uniters_published_layout_serves_vcr_its_shifted_sets_and_coco(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/students.md: shifted sets show val's pictures, test-dev shows test2015's."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        records = [vcr_record(number, split=split) for number in range(4)]
        write_vcr(Path("datasets"), records, split=split)
        stems = {Path(record["img_fn"]).stem for record in records}
        detected = {f"vcr_{split}_{stem}": some_regions(12, seed) for seed, stem in enumerate(sorted(stems))}
        annotated = {f"vcr_gt_{split}_{stem}": some_regions(4, seed) for seed, stem in enumerate(sorted(stems))}
        write_uniter_layout(Path("img_db"), f"vcr_{split}", detected)
        write_uniter_layout(Path("img_db"), f"vcr_gt_{split}", annotated)
        printed(
            *(capsys, "cache", "import", "img_db/vcr_{split}", "--ground-truth-regions", "img_db/vcr_gt_{split}"),
            *("--name", "butd", "--dataset", "vcr", "--split", split),
        )
    shifted = [vcr_record(number, split="val") for number in range(2)]
    write_vcr(Path("datasets"), shifted, file="shortcut/rule_based/val_rule_singular.jsonl")
    common = ("--student", "uniter-tiny", "--recipe", "none", "--method", "plain", "--num-steps", 2)
    printed(
        *(capsys, "finetune", "--dataset", "vcr", *common, "--batch-size", 2, "--output", "run"),
        *("--regions", "caches/import-butd/{dataset}/{split}"),
    )
    _, err = printed(capsys, "evaluate", "run", "--on", "val", "--on", "rule-singular", "--probe", "none")
    assert err.count("regions: of 2 pictures, from caches/import-butd/vcr/val") == 2

    for split, filed_under in SPLITS.items():
        write_vqa(Path("datasets"), split=split, count=12)
        names = [f"coco_{path.stem[5:]}" for path in pictures(Path("datasets"), split)]
        write_uniter_layout(Path("img_db"), f"coco_{filed_under}", {name: some_regions(12, 0) for name in names})
        words = ("--name", "butd", "--dataset", "vqa-v2", "--split", split)
        printed(capsys, "cache", "import", "img_db/coco_{split}", *words)
    # From now on nothing but the caches is read.
    shutil.rmtree("img_db")
    official = Path("datasets/vqa-v2")
    (official / "minival.json").write_text(json.dumps([{"question_id": 2000000}, {"question_id": 2001001}]))
    test = official / "v2_OpenEnded_mscoco_test2015_questions.json"
    test.with_name("v2_OpenEnded_mscoco_test-dev2015_questions.json").write_bytes(test.read_bytes())
    Path("answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    printed(
        *(capsys, "finetune", "--dataset", "vqa-v2", *common, "--batch-size", 2, "--answers", "answers.json"),
        *("--regions", "caches/import-butd/{dataset}/{split}", "--output", "vqa"),
    )
    usual = "caches/import-butd/vqa-v2"
    _, err = printed(capsys, "evaluate", "vqa", "--on", "minival", "--probe", "none", code=2)
    assert "advl cache import FILE --name regions --dataset vqa-v2 --split minival" in err
    printed(capsys, "evaluate", "vqa", "--on", "minival", "--probe", "none", "--regions", f"{usual}/val")
    before = read_evaluation(Path("vqa"), "minival")
    items_file(Path("vqa"), "minival").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read") as refused:
        read_evaluation(Path("vqa"), "minival")
    printed(capsys, *shlex.split(refused.value.next_command)[1:])
    after = read_evaluation(Path("vqa"), "minival")
    assert after is not None
    assert before is not None
    assert after.document.metrics == before.document.metrics
    out, _ = printed(capsys, "predict", "vqa", "--on", "test-dev", "--regions", f"{usual}/test", "--json")
    assert len(json.loads(Path(json.loads(out)["path"]).read_text())) == 12
