"""Region features of every format go through the command line into a region student, and give the same scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import advl
from dataset_mirrors import vcr_record, write_vcr, write_vqa
from region_mirrors import FEATURE_SIZE, WRITERS, features_of, write_npz, write_uniter_layout

SPLITS = {"train": "train2014", "val": "val2014", "test": "test2015"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official data")
    for split in SPLITS:
        write_vqa(folder, split=split, count=18)
    return folder


def pictures(root: Path, split: str) -> list[Path]:
    return sorted((root / "vqa-v2" / SPLITS[split]).glob("*.jpg"))


def finetune(root: Path, run: Path, regions: Path, naming: str) -> list[Any]:
    return [
        *("finetune", "--dataset", "vqa-v2", "--data-root", root, "--answers", root / "answers.json"),
        *("--student", "uniter-tiny", "--recipe", "none", "--method", "plain", "--num-steps", 2, "--batch-size", 4),
        *("--regions", regions, "--region-naming", naming, "--output", run),
    ]


def scores_with(
    capsys: pytest.CaptureFixture[str], root: Path, folder: Path, name: str
) -> tuple[np.ndarray, Mapping[int, str]]:
    write, naming = WRITERS[name]
    paths = {split: write(folder / filed_under, pictures(root, split)) for split, filed_under in SPLITS.items()}
    regions = Path(str(paths["train"]).replace(f"{folder}/train2014", f"{folder}/{{split}}"))
    run = folder / "run"
    code, _, err = advl(capsys, *finetune(root, run, regions, naming))
    assert code == 0, err
    assert not Path("datasets").exists()
    assert not (folder / "{split}").exists()
    code, _, err = advl(capsys, "evaluate", run, "--on", "val", "--data-root", root, "--probe", "none")
    assert code == 0, err
    code, out, err = advl(capsys, "predict", run, "--on", "test", "--data-root", root, "--json")
    assert code == 0, err
    answers = {item["question_id"]: item["answer"] for item in json.loads(Path(json.loads(out)["path"]).read_text())}
    with np.load(run / "evaluation" / "val.npz") as arrays:
        return arrays["scores/vqa"], answers


@pytest.mark.slow
def test_every_format_gives_the_same_scores(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (root / "answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    expected, answers = scores_with(capsys, root, tmp_path / "npz", "npz")
    assert expected.shape == (18, 4)
    assert len(answers) == 18
    for name in WRITERS.keys() - {"npz"}:
        scores, also = scores_with(capsys, root, tmp_path / name, name)
        np.testing.assert_allclose(scores, expected, atol=1e-4, err_msg=name)
        assert also.keys() == answers.keys()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"features": np.full((3, FEATURE_SIZE), np.nan, np.float32)}, "features hold a value that is not finite"),
        ({"image_w": np.array(65)}, "features are for a picture of 65x48, the picture is 64x48"),
        ({"boxes": np.array([[0, 0, 999, 9]] * 3, np.float32)}, "box 0 lies outside the picture of 64x48"),
    ],
)
def test_broken_features_are_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Mapping[str, np.ndarray], why: str
) -> None:
    (root / "answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    regions = write_npz(tmp_path / "regions", pictures(root, "train"))
    for picture in pictures(root, "train"):
        file = regions / f"{picture.stem}.npz"
        with np.load(file) as arrays:
            kept = dict(arrays)
        np.savez(file, allow_pickle=False, **(kept | dict(spoil)))
    code, _, err = advl(capsys, *finetune(root, tmp_path / "run", regions, "stem"))
    assert code == 5
    assert str(regions) in err
    assert why in err
    assert "Traceback" not in err


@pytest.mark.parametrize("missing", [True, False])
def test_a_picture_without_features_and_another_width_are_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: bool
) -> None:
    (root / "answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    found = pictures(root, "train")
    regions = write_npz(tmp_path / "regions", found[:1] if missing else found)
    if not missing:
        for picture in found:
            wide = np.concatenate([features_of(picture)] * 2, axis=1)
            np.savez(regions / f"{picture.stem}.npz", features=wide, boxes=np.array([[0, 0, 9, 9]] * 3, np.float32))
    code, _, err = advl(capsys, *finetune(root, tmp_path / "run", regions, "stem"))
    assert code == (5 if missing else 2)
    assert ("A picture has no region features" if missing else "another width than the student expects") in err


def some_regions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and boxes in shares."""
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((count, 2, 2), dtype=np.float32), axis=1).reshape(count, 4)
    return random.standard_normal((count, FEATURE_SIZE)).astype(np.float32), corners


def test_uniters_published_layout_serves_vcr_its_shifted_sets_and_coco(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of docs/students.md: shifted sets show val's pictures, test-dev shows test2015's."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        records = [vcr_record(number, split=split) for number in range(4)]
        write_vcr(Path("datasets"), records, split=split)
        stems = {Path(record["img_fn"]).stem for record in records}
        found = {f"vcr_{split}_{stem}": some_regions(12, seed) for seed, stem in enumerate(sorted(stems))}
        own = {f"vcr_gt_{split}_{stem}": some_regions(4, seed) for seed, stem in enumerate(sorted(stems))}
        write_uniter_layout(Path("img_db"), f"vcr_{split}", found)
        write_uniter_layout(Path("img_db"), f"vcr_gt_{split}", own)
    shifted = [vcr_record(number, split="val") for number in range(2)]
    write_vcr(Path("datasets"), shifted, file="shortcut/rule_based/val_rule_singular.jsonl")
    common = ("--student", "uniter-tiny", "--recipe", "none", "--method", "plain", "--num-steps", 2)
    code, _, err = advl(
        *(capsys, "finetune", "--dataset", "vcr", *common, "--batch-size", 2, "--region-naming", "uniter"),
        *("--regions", "img_db/vcr_{split}", "--ground-truth-regions", "img_db/vcr_gt_{split}", "--output", "run"),
    )
    assert code == 0, err
    code, _, err = advl(capsys, "evaluate", "run", "--on", "val", "--on", "rule-singular", "--probe", "none")
    assert code == 0, err

    for split, filed_under in SPLITS.items():
        write_vqa(Path("datasets"), split=split, count=12)
        names = [f"coco_{path.stem[5:]}" for path in pictures(Path("datasets"), split)]
        write_uniter_layout(Path("img_db"), f"coco_{filed_under}", {name: some_regions(12, 0) for name in names})
    official = Path("datasets/vqa-v2")
    (official / "minival.json").write_text(json.dumps([{"question_id": 2000000}, {"question_id": 2001001}]))
    test = official / "v2_OpenEnded_mscoco_test2015_questions.json"
    test.with_name("v2_OpenEnded_mscoco_test-dev2015_questions.json").write_bytes(test.read_bytes())
    Path("answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    code, _, err = advl(
        *(capsys, "finetune", "--dataset", "vqa-v2", *common, "--batch-size", 2, "--answers", "answers.json"),
        *("--regions", "img_db/coco_{split}", "--region-naming", "uniter", "--output", "vqa"),
    )
    assert code == 0, err
    code, _, err = advl(capsys, "evaluate", "vqa", "--on", "minival", "--probe", "none")
    assert code == 0, err
    code, _, err = advl(capsys, "predict", "vqa", "--on", "test-dev")
    assert code == 0, err


def test_a_folder_that_holds_no_lmdb_or_several_is_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "answers.json").write_text(json.dumps(["yes", "no", "2", "red"]))
    folder = tmp_path / "coco_train2014"
    for name in ("feat_th0.2_max100_min10", "feat_numbb36"):
        (folder / name).mkdir(parents=True)
    (folder / "nbb_th0.2_max100_min10.json").write_text("{}")
    code, _, err = advl(capsys, *finetune(root, tmp_path / "run", folder, "uniter"))
    assert code == 5
    assert "no region features in a known format" in err
    for name in ("feat_th0.2_max100_min10", "feat_numbb36"):
        (folder / name / "data.mdb").touch()
    code, _, err = advl(capsys, *finetune(root, tmp_path / "run", folder, "uniter"))
    assert code == 5
    assert f"name one of them, such as {folder}/feat_numbb36" in err
