"""Pretraining of the small students: what is learned and kept, what is refused, moved pictures."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import exit_code
from made_examples import unit
from PIL import Image
from safetensors.torch import load_file, save_file

from advl_data.scenes.config import PretrainConfig, Pretraining
from advl_data.scenes.moved_pictures import MIN_SEEN, Move, MovedPictures, draw_moves, moved_example
from advl_data.scenes.objectives import PretrainHeads, phrase_targets, region_questions
from advl_data.scenes.pretrain import PretrainResult, pretrain_identity, run_pretrain
from advl_pipeline.base.errors import ConfigError, IdentityMismatch, WeightsUnavailable
from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, text_unit
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.students.interface import StudentOutput
from advl_pipeline.students.known_words import recorded_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import read_description

STUDENTS = ("scenes-small", "scenes-efficientnet", "scenes-uniter", "scenes-vilt", "scenes-smolvlm")


def settings(small_corpus: Any, output: Path, **changes: Any) -> PretrainConfig:
    short = {"warmup_steps": 1, "joint_steps": 1, "batch_size": 4}
    return PretrainConfig(**{"data_root": small_corpus.data_root, "output": output, **short, **changes})


def captions_of(small_corpus: Any) -> Any:
    return small_corpus.dataset(name="scenes-captions", task="captions")


Pretrain = Callable[[str], PretrainResult]


@pytest.fixture(scope="module")
def pretrain(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Pretrain:
    """Pretrain a student, once for all tests."""
    folder = tmp_path_factory.mktemp("students")
    return functools.cache(lambda name: run_pretrain(settings(small_corpus, folder / name, student=name)))


@pytest.fixture
def pretrained(pretrain: Pretrain) -> Path:
    """A pretrained `scenes-small`."""
    return pretrain("scenes-small").output


@pytest.mark.parametrize("name", STUDENTS)
def test_every_small_student_is_pretrained_by_all_objectives(
    small_corpus: Any, pretrain: Pretrain, name: str
) -> None:
    result = pretrain(name)
    config, folder = settings(small_corpus, result.output, student=name), result.output
    assert set(result.losses) == {"contrast", "words", "matching", "naming"}
    assert all(0 < value < 20 for value in result.losses.values())
    torch.manual_seed(0)
    before, after = build_student(name).state_dict(), build_student(name, weights=folder).state_dict()
    assert any(not torch.equal(before[key], value) for key, value in after.items())
    # Where nothing is asked for, it is made as suits it.
    made = read_description(folder)["origin"]["pretraining"]
    usual = (3e-3, 0.25) if name == "scenes-vilt" else (1e-3, None)
    assert (made["learning_rate"], made.get("move_pictures")) == usual
    assert run_pretrain(config).reused
    with pytest.raises(IdentityMismatch, match="pretrained with other settings"):
        run_pretrain(settings(small_corpus, folder, student=name, seed=1))


def test_a_student_over_patches_learns_from_moved_pictures(
    small_corpus: Any, pretrain: Pretrain, tmp_path: Path
) -> None:
    words = ("--warmup-steps", 1, "--joint-steps", 1, "--batch-size", 4, "--move-pictures", 0)
    place = ("--data-root", small_corpus.data_root, "--output", tmp_path / "still")
    assert exit_code("scenes", "pretrain", "--student", "scenes-vilt", *words, *place) == 0
    moved, still = (
        load_file(folder / "model.safetensors") for folder in (pretrain("scenes-vilt").output, tmp_path / "still")
    )
    assert not all(torch.equal(moved[key], value) for key, value in still.items())


def test_a_student_of_a_shape_that_is_no_longer_built_is_not_taken_for_a_newer_one(
    small_corpus: Any, pretrained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scenes-small"
    shutil.copytree(pretrained, output)
    tensors = load_file(output / "model.safetensors")
    tensors["an.older.layer"] = tensors.pop("box_encoder.weight")
    save_file(tensors, output / "model.safetensors")
    with pytest.raises(IdentityMismatch, match="do not fit the student") as caught:
        run_pretrain(settings(small_corpus, output))
    assert "make the student again" in caught.value.next_command
    assert "an.older.layer" in load_file(output / "model.safetensors")
    weights = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(WeightsUnavailable, match="weights file is damaged"):
        run_pretrain(settings(small_corpus, output))


def test_where_and_how_a_student_is_pretrained_is_not_in_its_identity(small_corpus: Any, tmp_path: Path) -> None:
    dataset = captions_of(small_corpus)
    options = Pretraining(warmup_steps=2, joint_steps=3)
    identity = pretrain_identity(settings(small_corpus, tmp_path), options, dataset)
    moved = pretrain_identity(settings(small_corpus, tmp_path), replace(options, move_pictures=0.25), dataset)
    assert moved == {**identity, "move_pictures": 0.25}
    elsewhere = {"data_root": tmp_path, "device": "cpu", "num_workers": 3}
    assert pretrain_identity(settings(small_corpus, tmp_path / "other", **elsewhere), options, dataset) == identity
    assert list(identity) == [
        "schema", "dataset_digest", "mixed_precision", "dataset", "split", "student", "seed", "warmup_steps",
        "joint_steps", "batch_size", "learning_rate", "weight_decay", "mask_probability",
    ]  # fmt: skip


@pytest.mark.parametrize("name", STUDENTS)
def test_a_phrase_is_placed_at_its_own_box(small_corpus: Any, name: str) -> None:
    student = build_student(name)
    dataset = captions_of(small_corpus)
    examples = [dataset[index] for index in range(6)]
    batch = student.collate(examples)
    phrases = phrase_targets(student, examples, batch)
    torch.testing.assert_close(phrases.place_QR.sum(1), torch.ones(len(phrases.place_QR)))
    tags = [(example, tag) for example in examples for tag in example.candidates[0].tags]
    for (example, tag), caption, place_R in zip(tags, phrases.caption_Q, phrases.place_QR, strict=True):
        if name == "scenes-vilt":
            x1, y1, x2, y2 = example.image.boxes_R4[tag.box].tolist()
            rows, columns = place_R[1:].view(7, 7).sum(1), place_R[1:].view(7, 7).sum(0)
            centre = torch.arange(7) + 0.5
            for shares, low, high, side in (
                (columns, x1, x2, example.image.width),
                (rows, y1, y2, example.image.height),
            ):
                assert float(shares @ centre) / 7 == pytest.approx((low + high) / 2 / side, abs=0.5 / 7)
        else:
            assert int(batch.box_index_NR[caption, int(place_R.argmax())]) == tag.box


def test_the_phrase_that_names_its_box_is_to_have_the_highest_logit() -> None:
    student = build_student("scenes-small")
    heads = PretrainHeads(student)
    pooled_NP = torch.randn(9, student.pooled_size)
    output = StudentOutput(text_states_NLH=pooled_NP, visual_states_NRH=pooled_NP, pooled_NP=pooled_NP)
    optimizer = torch.optim.Adam(heads.naming.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        heads.name(output, (4, 2, 3)).backward()
        optimizer.step()
    logits = heads.naming(pooled_NP)[:, 0].split([4, 2, 3])
    assert [int(of_example.argmax()) for of_example in logits] == [0, 0, 0]
    assert float(heads.name(output, (4, 2, 3)).detach()) < 0.1


def test_regions_are_asked_about_in_the_language_of_captions(small_corpus: Any) -> None:
    dataset = captions_of(small_corpus)
    captions = [dataset[index] for index in range(24)]
    asked = region_questions(captions, torch.Generator().manual_seed(0))
    num_own = 0
    for caption, question in zip(captions, asked, strict=True):
        texts = [candidate.text[candidate.context_length :] for candidate in question.candidates]
        assert 2 <= len(texts) <= 4
        assert len(set(texts)) == len(texts)
        (tag,) = question.candidates[0].tags
        names = [caption.candidates[0].text[mention.start : mention.end] for mention in caption.candidates[0].tags]
        boxes = [mention.box for mention in caption.candidates[0].tags]
        assert names[boxes.index(tag.box)] in texts[0]
        num_own += any(name in text for name in names for text in texts[1:])
    assert num_own > 4


def test_the_choice_head_starts_from_the_head_that_named_regions(
    small_corpus: Any, pretrained: Path, tmp_path: Path
) -> None:
    options = {"method": "plain", "cache": (), "init": pretrained, "num_steps": 1, "learning_rate": 1e-12}
    small_corpus.run(tmp_path, **options)
    head = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))["heads"]["choice"]
    assert head == {"origin": "checkpoint", "why": "naming regions in pretraining"}
    started, learned = (load_file(folder / "heads.safetensors") for folder in (tmp_path, pretrained))
    for key in ("choice.0.weight", "choice.3.weight"):
        assert torch.allclose(started[key], learned[key], atol=1e-6)


def test_another_tasks_head_starts_anew(small_corpus: Any, pretrained: Path, tmp_path: Path) -> None:
    options = {"method": "plain", "cache": (), "init": pretrained, "num_steps": 1}
    small_corpus.run(tmp_path, dataset="scenes-snli-ve", task=(), **options)
    head = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))["heads"]["classes"]
    assert head == {"origin": "fresh", "why": "the folder has heads for choice"}


def test_the_words_of_the_captions_are_kept_with_their_counts(small_corpus: Any, pretrained: Path) -> None:
    dataset = captions_of(small_corpus)
    texts = [dataset[index].candidates[0].text for index in range(len(dataset))]
    expected = Counter(text[start:end].lower() for text in texts for start, end in word_spans(text))
    assert recorded_words(pretrained).counts == expected
    assert expected["a"] > 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"student": "lxmert-tiny"}, "brings its own pretraining"),
        ({"dataset": "scenes-snli-ve"}, "No caption says which box"),
        ({"dataset": "scenes-vcr"}, "Only captions are pretrained on"),
        # It sees what is in a box, wherever that is moved.
        ({"student": "scenes-small", "move_pictures": 0.5}, "scenes-small sees what is in a box"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(
    small_corpus: Any, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        run_pretrain(settings(small_corpus, tmp_path / "out", **changes))
    assert why in str(refused.value)
    assert not (tmp_path / "out").exists()


# Moved pictures: boxes go where the pixels go, and what is out of sight is spoken of no more.

STAY = Move(scale=(1.0, 1.0), shift=(0.0, 0.0))
SIDE = 112


@pytest.fixture
def caption(tmp_path: Path) -> Example:
    """A wide blue picture with a red thing and a green one, and a caption of both."""
    pixels = np.zeros((120, 240, 3), np.uint8)
    pixels[:] = (0, 0, 200)
    pixels[40:90, 60:110] = (200, 0, 0)
    pixels[10:40, 180:230] = (0, 200, 0)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    boxes_R4 = np.array([[60, 40, 110, 90], [180, 10, 230, 40]], np.float32)
    return Example(
        example_id="0",
        task="captions",
        image=unit(path, 240, 120, boxes_R4, name="picture"),
        candidates=(
            Candidate(
                text_unit=text_unit("a cat and a dog"),
                tags=(ObjectTag(start=2, end=5, box=0), ObjectTag(start=12, end=15, box=1)),
            ),
        ),
        label=None,
    )


def test_a_box_goes_where_its_pixels_go(caption: Example) -> None:
    pictures = MovedPictures(SIDE)
    num_tags = []
    for move in draw_moves(60, 0.25, torch.Generator().manual_seed(0)):
        moved = moved_example(caption, move)
        pixels_3SS = pictures.pictures([moved.image])[0].float()
        num_tags.append(len(moved.candidates[0].tags))
        for tag in moved.candidates[0].tags:
            box_4 = moved.image.boxes_R4[tag.box] * SIDE / np.array([240, 120, 240, 120])
            x1, y1, x2, y2 = (box_4 + np.array([2, 2, -2, -2])).round().astype(int)
            inside_3 = pixels_3SS[:, y1:y2, x1:x2].mean((1, 2))
            assert int(inside_3.argmax()) == tag.box
            assert float(inside_3[tag.box]) > 190
    assert set(num_tags) == {1, 2}


def test_a_picture_that_is_not_moved_is_the_decoded_one(caption: Example) -> None:
    pictures = MovedPictures(SIDE)
    (plain,) = pictures.pictures([caption.image])
    (stayed,) = pictures.pictures([moved_example(caption, STAY).image])
    assert torch.equal(plain, stayed)
    assert torch.equal(plain, super(MovedPictures, pictures).pictures([caption.image])[0])
    still, other = pictures.pictures([caption.image, moved_example(caption, replace(STAY, shift=(0.2, 0.0))).image])
    assert torch.equal(still, plain)
    assert not torch.equal(other, plain)


def test_what_is_out_of_sight_is_not_spoken_of(caption: Example) -> None:
    # The right edge moves to the middle of the green thing.
    half_seen = replace(STAY, shift=(-35 / 120, 0.0))
    moved = moved_example(caption, half_seen)
    assert [tag.box for tag in moved.candidates[0].tags] == [0]
    assert moved.candidates[0].text == caption.candidates[0].text
    assert float(moved.image.boxes_R4[1, 2]) == 240
    seen_enough = replace(STAY, shift=(-(10 + 50 * (1 - MIN_SEEN) - 1) / 120, 0.0))
    assert len(moved_example(caption, seen_enough).candidates[0].tags) == 2
    nothing_left = replace(STAY, shift=(1.0, 1.0))
    assert moved_example(caption, nothing_left) is caption


def test_moves_are_drawn_within_their_strength_and_alike_from_one_seed() -> None:
    moves = draw_moves(500, 0.25, torch.Generator().manual_seed(3))
    assert moves == draw_moves(500, 0.25, torch.Generator().manual_seed(3))
    scales, shifts = np.array([move.scale for move in moves]), np.array([move.shift for move in moves])
    largest = 1.25 * (1 + 0.25 / 3)
    assert 1.2 < scales.max() <= largest
    assert 1 / largest <= scales.min() < 1 / 1.2
    assert 0.24 < np.abs(shifts).max() <= 0.25
    assert np.allclose(draw_moves(4, 0.0, torch.Generator().manual_seed(3))[0].scale, 1)
