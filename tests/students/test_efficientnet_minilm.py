"""`efficientnet-minilm`: its towers are the packaged teachers', frozen, and each picture and text is read once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from commands import printed
from made_examples import picture, question
from own_rows import choice_row, write_json_lines

from advl_pipeline.datasets.records import Example
from advl_pipeline.students import frozen_towers
from advl_pipeline.students.registry import build_student
from advl_pipeline.teachers.registry import open_teacher

NAME = "efficientnet-minilm-tiny"


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("pictures")
    units = [picture(folder / f"{number}.png", seed=number) for number in range(2)]
    return [
        question(units[number % 2], text, "vqa")
        for number, text in enumerate(("What is red?", "What is to the left of the large blue one?", "What is red?"))
    ]


@pytest.fixture(scope="module")
def networks() -> list[Any]:
    """The networks of the teachers that it starts from, image and text."""
    image, text = (open_teacher(name) for name in ("efficientnet-lite0", "minilm-l6"))
    towers: list[Any] = [image.image, text.text]
    return [tower.backbone.network for tower in towers]


def forget_states() -> None:
    """Drop what students of equal weights have left in this process."""
    frozen_towers.kept_states = frozen_towers.RecentlyUsed(frozen_towers.KEPT_BYTES)


@pytest.fixture(scope="module")
def student(networks: list[Any]) -> Any:
    torch.manual_seed(0)
    student = build_student(NAME)
    student.take_towers(networks)
    return student.eval()


@contextmanager
def counting(module: Any) -> Iterator[list[int]]:
    """Collect how many items each pass of a module reads."""
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    yield seen
    handle.remove()


def test_the_towers_are_those_of_the_teachers(student: Any, networks: list[Any], examples: list[Example]) -> None:
    batch = student.collate(examples[:1])
    pixels, ids, mask = student.normalised(batch), batch.token_ids_NL, batch.token_mask_NL.long()
    with torch.no_grad():
        assert torch.equal(student.text(ids, mask).last_hidden_state, networks[1](ids, mask).last_hidden_state)
        maps, theirs = (
            network.forward_intermediates(pixels, indices=[4], intermediates_only=True)[0]
            for network in (student.vision, networks[0])
        )
    torch.testing.assert_close(maps, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert float(theirs.abs().max()) > 0


def test_a_frozen_tower_reads_each_picture_and_text_once(
    student: Any, networks: list[Any], examples: list[Example]
) -> None:
    forget_states()
    batch = student.collate(examples)
    with counting(student.vision.conv_stem) as pictures, counting(student.text.encoder) as texts:
        first = student.encode(batch)
        student.encode(student.collate(examples[:1]))
        assert (pictures, texts) == ([1, 1], [1, 1])
        # Other weights, other states.
        student.load_state_dict({name: value * 1.5 for name, value in student.state_dict().items()})
        student.encode(batch)
    student.take_towers(networks)
    assert pictures == [1, 1, 1, 1]
    assert first.pooled_NP.requires_grad


def test_kept_states_do_not_depend_on_the_rest_of_a_batch(
    student: Any, networks: list[Any], examples: list[Example]
) -> None:
    together = student.read_words(student.collate(examples)), *student._seen(student.collate(examples))
    forget_states()  # Else the other student's would be compared with themselves.
    alone: Any = build_student(NAME).eval()
    alone.take_towers(networks)
    for row, example in enumerate(examples):
        batch = alone.collate([example])
        length = batch.token_ids_NL.shape[1]
        assert torch.equal(alone.read_words(batch)[0], together[0][row, :length])
        assert all(torch.equal(own[0], of[row]) for own, of in zip(alone._seen(batch), together[1:], strict=True))


def test_students_of_equal_towers_and_other_grids_share_no_states(
    student: Any, networks: list[Any], examples: list[Example]
) -> None:
    student.encode(student.collate(examples))
    finer = build_student(NAME, overrides={"patch_size": student.config.patch_size // 2})
    finer.take_towers(networks)
    batch = finer.eval().collate(examples)
    with torch.no_grad():
        actual = finer.encode(batch).visual_states_NRH
        for tower in (finer.vision, finer.text):
            tower.requires_grad_(True)  # Now nothing is kept.
        assert_near(actual, finer.encode(batch).visual_states_NRH)


def test_its_heads_read_what_the_teachers_pool_and_hidden_pictures_match_nothing(
    student: Any, networks: list[Any], examples: list[Example]
) -> None:
    batch = student.collate(examples)
    for mask_visual in (False, True):
        output = student.encode(batch, mask_visual=mask_visual)
        pixels = student.normalised(batch)
        with torch.no_grad():
            shown = networks[0].forward_head(networks[0].forward_features(pixels), pre_logits=True)
        assert_near(output.shown_NV, torch.zeros_like(shown) if mask_visual else shown)
        for num_classes in (1, 3):
            head = student.build_head("choice", num_classes).eval()
            logits = head(output)
            assert logits.shape == (len(examples), num_classes)
            # Zero at first, so that the random layers learn after the maps.
            assert torch.equal(logits, head(replace(output, pooled_NP=torch.rand_like(output.pooled_NP))))


def test_training_leaves_frozen_towers_as_in_evaluation(student: Any) -> None:
    student.train()
    assert student.training
    assert not any(part.training for tower in (student.vision, student.text) for part in tower.modules())
    student.eval()


@pytest.mark.slow
def test_it_is_the_default_for_own_data_and_says_whose_teachers_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json_lines(Path("mine.jsonl"), [choice_row(number) for number in range(20)])
    printed(capsys, "extract", "--teacher", "minilm-l6", "--data", "mine.jsonl", "--confidence-folds", 2)
    few = ("--num-steps", 1, "--adapt-steps", 1, "--batch-size", 2, "--confidence-folds", 2)
    cache = "caches/minilm-l6/mine/train"
    _, message = printed(capsys, "finetune", "--data", "mine.jsonl", "--cache", cache, "--output", "run", *few)
    assert json.loads(Path("run/student.json").read_text(encoding="utf-8"))["student"] == "efficientnet-minilm"
    assert "starts from efficientnet-lite0 and minilm-l6, which were trained separately" in message
    (line,) = (line for line in message.splitlines() if line.startswith("caution: minilm-l6"))
    assert "minilm-l6: the student starts from the same weights" in line
    assert "efficientnet-lite2" in line
    assert "mpnet-base" in line
    assert "efficientnet-lite0" not in line


def test_the_student_without_language_matches_the_states_that_are_related(
    examples: list[Example],
) -> None:
    torch.manual_seed(0)
    student: Any = build_student("words-efficientnet-tiny")
    batch = student.collate(examples)
    related, output = student.encode_unimodal(batch), student.encode(batch)
    mask_NL1 = batch.token_mask_NL[..., None]
    assert_near(output.said_NT, (related.text_states_NLH * mask_NL1).sum(1) / mask_NL1.sum(1))
    student.build_head("vcr", 1)(output).sum().backward()
    assert float(student.text.weight.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in student.vision.parameters())
