"""Evaluation of finished runs: items, replaced pictures, a student without pictures, scores that are no numbers."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import advl, printed
from failing_calls import stopping
from made_examples import unit
from run_logs import forget_digests, items_file, load_json
from safetensors.torch import load_file, save_file

from advl_pipeline.base.errors import ConfigError, IdentityMismatch
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, ObjectTag, text_unit
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.predict import Condition, load_finished, swapped_pictures, with_picture
from advl_pipeline.evaluation.prepare import prepare_scoring
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.evaluation.score_parts import score_matrices
from advl_pipeline.runs.evaluations import Sample, read_evaluation
from advl_pipeline.students.interface import StudentBatch
from advl_pipeline.students.registry import build_student


@pytest.fixture(scope="module")
def trained(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run over both tasks without teachers."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    small_corpus.run(run, task=(), num_steps=2, method="plain", cache=())
    return run


def test_evaluation_scores_items_and_spoilt_pictures(trained: Path) -> None:
    # The run knows where its data lie.
    sets = run_evaluate(prepare_scoring(EvaluateConfig(run=trained, on=("test", "test-shift")))).sets
    assert not sets["test-shift"].use_of_vision
    document = sets["test"]
    assert set(document.metrics) == {"q2a", "qa2r", "q2ar"}
    arrays = np.load(items_file(trained), allow_pickle=False)
    for metric, percent in document.metrics.items():
        items = arrays[f"item/{metric}"]
        assert items.shape == (8,)
        assert 100 * items.mean() == pytest.approx(percent)
        for kind in ("swapped", "blanked", "removed"):
            replaced = 100 * arrays[f"item_{kind}/{metric}"].mean()
            seen = document.use_of_vision[metric][kind]
            assert (seen.accuracy, seen.drop) == pytest.approx((replaced, percent - replaced))
        by_type = document.by_question_type[metric]
        assert sum(part.num_items for part in by_type.values()) == len(items) == len(arrays[f"pictures/{metric}"])
    scores, labels = arrays["scores/vcr-q2a"], arrays["labels/vcr-q2a"]
    assert (scores.argmax(1) == labels).astype(np.float32).tolist() == arrays["item/q2a"].tolist()
    trivial = document.trivial
    assert (trivial["q2a"].chance, trivial["q2ar"].chance) == (25.0, 6.25)
    ((_, number),) = Counter(labels.tolist()).most_common(1)
    assert trivial["q2a"].majority == 100 * number / 8
    assert trivial["q2a"].answer in {f"choice {label + 1}" for label in set(labels.tolist())}
    assert trivial["q2a"].given == 100 * max(Counter(scores.argmax(1).tolist()).values()) / 8


def test_a_split_that_was_trained_on_and_texts_that_are_cut_are_told(small_corpus: Any, tmp_path: Path) -> None:
    options = {"num_steps": 1, "method": "plain", "cache": (), "student": "vilt-tiny", "init": None}
    run = tmp_path / "run"
    small_corpus.run(run, student_option=("max_text_length=12",), **options)
    sets = small_corpus.evaluate(run, on=("train", "test"))
    assert "the run was trained on train" in sets["train"].caveats
    assert "the run was trained on train" not in sets["test"].caveats
    (cut,) = [caveat for caveat in sets["test"].caveats if "are cut" in caveat]
    assert re.fullmatch(r"[1-9]\d* of 32 texts of test are cut to the student's length", cut)


def test_heads_of_an_earlier_version_are_told_and_not_taken(small_corpus: Any, tmp_path: Path) -> None:
    options = {"num_steps": 1, "method": "plain", "cache": (), "dataset": "scenes-snli-ve", "task": ()}
    run = tmp_path / "run"
    small_corpus.run(run, **options)
    continued = small_corpus.run(tmp_path / "next", init=run, **options).output
    assert load_json(continued / "settings.json")["heads"]["classes"]["origin"] == "checkpoint"
    former = build_student("uniter-tiny").build_head("classes", 3).state_dict()
    save_file({f"snli-ve.{key}": value for key, value in former.items()}, run / "heads.safetensors")
    forget_digests(run)
    with pytest.raises(IdentityMismatch, match="another shape") as refused:
        load_finished(run)
    assert refused.value.next_command is not None
    assert "--no-resume" in refused.value.next_command
    afresh = small_corpus.run(tmp_path / "afresh", init=run, **options).output
    head = load_json(afresh / "settings.json")["heads"]["classes"]
    assert head["origin"] == "fresh"
    assert "earlier version" in head["why"]


def test_probes_and_the_sets_that_they_are_made_on_can_be_chosen(small_corpus: Any, trained: Path) -> None:
    sets = small_corpus.evaluate(trained, on=("test", "test-shift"), probe=("removed",), probe_on=("test-shift",))
    assert not sets["test"].use_of_vision
    assert set(sets["test-shift"].use_of_vision["q2a"]) == {"removed"}
    none = small_corpus.evaluate(trained, on=("test", "test-shift"), probe=("none",))
    assert not any(document.use_of_vision for document in none.values())


def test_spoilt_pictures_are_what_they_say(small_corpus: Any, trained: Path) -> None:
    """Two pictures give the same scores once blanked only where their boxes agree, and always once removed."""
    finished, dataset = load_finished(trained), small_corpus.dataset("test")
    example = dataset[0]
    boxes_R4 = example.image.boxes_R4
    other = next(unit for unit in dataset.image_units() if unit.unit_id != example.image.unit_id)
    painted = replace(other, boxes_R4=boxes_R4, width=example.image.width, height=example.image.height)
    moved = replace(painted, boxes_R4=boxes_R4[:, [0, 1, 2, 3]] * np.float32(0.5))
    conditions = ("shown", "blanked", "removed")
    scores = [
        next(finished.scores([replace(example, image=image)], batch_size=1, conditions=conditions))
        for image in (example.image, painted, moved)
    ]
    for condition, differs in (("shown", (True, True)), ("blanked", (False, True)), ("removed", (False, False))):
        original, *others = (by_condition[conditions.index(condition)] for by_condition in scores)
        assert tuple(bool(np.abs(row - original).max() > 1e-6) for row in others) == differs, condition


def test_all_conditions_come_of_one_reading_and_a_swap_is_another_picture(small_corpus: Any, trained: Path) -> None:
    finished, examples = load_finished(trained), small_corpus.examples("test")
    others = swapped_pictures(small_corpus.dataset("test").image_units())
    read = Counter[str]()
    collate = finished.student.collate

    def counted(batch: Sequence[Example]) -> StudentBatch:
        read.update(example.image.unit_id for example in batch)
        return collate(batch)

    finished.student.collate = counted  # type: ignore[method-assign]
    conditions: tuple[Condition, ...] = ("shown", "swapped", "blanked", "removed")
    together = score_matrices(finished, examples, 4, conditions, others)
    # Once as it is, and once as the other one of another picture.
    assert sum(read.values()) == 2 * len(examples)
    moved = [with_picture(example, others[example.image.unit_id]) for example in examples]
    np.testing.assert_allclose(together[1], score_matrices(finished, moved, 4)[0], atol=1e-5)
    for condition, scored in zip(conditions, together, strict=True):
        if condition != "swapped":
            (alone,) = score_matrices(finished, examples, 4, (condition,))
            np.testing.assert_allclose(scored, alone, atol=1e-5)


def test_a_sample_is_the_same_questions_for_every_run_with_its_interval(
    small_corpus: Any, trained: Path, tmp_path: Path
) -> None:
    whole = small_corpus.evaluate(trained, probe=("none",))["test"]
    assert whole.sample is None
    assert whole.num_examples == sum(whole.num_items.values()) - whole.num_items["q2ar"]
    scores = np.load(items_file(trained))
    score_of = dict(zip(scores["item_ids/q2a"].tolist(), scores["item/q2a"].tolist(), strict=True))
    small_corpus.run(tmp_path, task=(), num_steps=1, method="plain", cache=(), seed=3)
    ids = []
    for run in (trained, tmp_path):
        document = small_corpus.evaluate(run, num_questions=5, probe=("none",))["test"]
        assert document.num_items == {"q2a": 5, "qa2r": 5, "q2ar": 5}
        assert document.sample == Sample(asked=5, of_examples=whole.num_examples)
        for metric, value in document.metrics.items():
            assert document.intervals[metric].low - 1e-6 <= value <= document.intervals[metric].high + 1e-6
        sampled = np.load(items_file(run))
        ids.append(sampled["item_ids/q2a"].tolist())
        if run == trained:
            assert sampled["item/q2a"].tolist() == [score_of[question] for question in ids[0]]
    assert ids[0] == ids[1]


@pytest.mark.slow
def test_an_evaluation_is_replaced_whole_or_not_at_all_wherever_the_disk_fills_up(
    small_corpus: Any, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation")))
    words = ("evaluate", run, "--on", "test", "--probe", "none", "--data-root", small_corpus.data_root)
    printed(capsys, *words)
    for call in itertools.count(1):
        with stopping(run, call=call) as watched:
            code, _, message = advl(capsys, *words, "--num-questions", 5)
        evaluation = read_evaluation(run, "test")
        assert evaluation is not None
        num_items = len(evaluation.items[evaluation.items["metric"] == "q2a"])
        if watched.num_calls < call:
            break
        assert code == 7 or num_items == 5, message
        assert "Traceback" not in message
        # The last calls remove the former items; the new evaluation is in its place then.
        assert (num_items, evaluation.document.num_items["q2a"]) in ((8, 8), (5, 5))
        printed(capsys, *words)
    assert call > 5
    assert (code, num_items) == (0, 5)
    assert {path.name for path in (run / "evaluation").iterdir()} == {"test.json", items_file(run).name}


def test_numbers_that_contradict_their_items_are_refused_and_an_earlier_evaluation_is_read(
    small_corpus: Any, trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    small_corpus.evaluate(run)
    file, document = run / "evaluation" / "test.json", load_json(run / "evaluation" / "test.json")
    items = items_file(run)
    with np.load(items) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(items, **arrays | {"item/q2a": 1 - arrays["item/q2a"]})
    with pytest.raises(ConfigError, match=r"not those that test\.json was written with"):
        read_evaluation(run, "test")
    # As an earlier version wrote it.
    items.unlink()
    np.savez(file.with_suffix(".npz"), **arrays)
    del document["items_digest"]
    file.write_text(json.dumps(document), encoding="utf-8")
    assert read_evaluation(run, "test") is not None
    for changed in (
        {"metrics": {**document["metrics"], "q2a": 99.0}},
        {"use_of_vision": {"q2a": {"swapped": {"accuracy": 1.0, "drop": 0.0}}}},
        {"items_digest": "../../elsewhere"},
    ):
        file.write_text(json.dumps(document | changed), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"(cannot be read|is damaged)"):
            read_evaluation(run, "test")


def test_a_text_only_student_never_sees_a_picture(small_corpus: Any, tmp_path: Path) -> None:
    """It has the same answers about other pictures; that they change nothing in training, `test_leaks.py` tells."""
    small_corpus.run(tmp_path / "run", method="plain", cache=(), hide_picture=True)
    assert not small_corpus.evaluate(tmp_path / "run")["test"].use_of_vision
    finished, examples = load_finished(tmp_path / "run"), small_corpus.examples("test")
    others = swapped_pictures(small_corpus.dataset("test").image_units())
    swapped = [replace(example, image=others[example.image.unit_id]) for example in examples]
    as_shown, as_swapped = (score_matrices(finished, items, 4)[0] for items in (examples, swapped))
    np.testing.assert_allclose(as_shown, as_swapped, atol=1e-5)


def test_scores_that_are_not_numbers_are_refused(small_corpus: Any, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    forget_digests(run)
    path = run / "heads.safetensors"
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}, path)
    with pytest.raises(ConfigError, match="NaN for 8 of 8 items") as refused:
        small_corpus.evaluate(run)
    assert "diverged" in refused.value.why


def test_another_picture_leaves_the_text_alone() -> None:
    def picture(name: str, *labels: str) -> ImageUnit:
        boxes = np.array([[0, 0, 4, 4]] * len(labels), np.float32)
        return unit(Path(name), 8, 8, boxes, labels, name=name)

    tags = (ObjectTag(start=0, end=3, box=1), ObjectTag(start=4, end=7, box=2))
    candidate = Candidate(text_unit=text_unit("dog man"), tags=tags)
    example = Example(
        example_id="x", task="vcr-q2a", image=picture("one", "cup", "dog", "person"), candidates=(candidate,), label=0
    )
    moved = with_picture(example, picture("two", "person", "person", "hat", "tree"))
    assert moved.image.unit_id == "two"
    assert moved.image.box_labels == ("person", "dog", "person", "tree")
    assert [moved.image.box_labels[tag.box] for tag in moved.candidates[0].tags] == ["dog", "person"]
