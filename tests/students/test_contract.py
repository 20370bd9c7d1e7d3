"""What every registered student owes the rest of the pipeline, at a size that a CPU runs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_near
from made_examples import answered, picture, question
from made_examples import unit as made_unit
from PIL import Image

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Example, ImageUnit, ObjectTag
from advl_pipeline.students.abilities import Perturbable, TokenisesTexts
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.students.presets import family_of
from advl_pipeline.students.registry import build_student, student_names
from advl_pipeline.students.saved import save_student
from advl_pipeline.training.build_model import fill_towers

# VILLA is UNITER, and scenes-small-lm is scenes-small, but for how they are trained.
SMALL = [
    name
    for name in student_names()
    if (name.endswith("-tiny") and name != "villa-tiny") or (name.startswith("scenes-") and name != "scenes-small-lm")
]


UNUSED = {
    "uniter": r"mask_embedding",
    "scenes-uniter": r"mask_embedding",
    "scenes-efficientnet": r"^vision\.",
    "bridgetower": r"text_model\.pooler",
    "efficientnet-minilm": r"^(vision|text)\.",
    "words-efficientnet": r"^vision\.",
}
"""Parameters of the original files that finetuning does not use, and those of frozen towers, by family."""

BOXES = [[10, 10, 60, 100], [70, 20, 150, 110], [5, 60, 40, 118]]


@cache
def student_of(name: str) -> Student:
    torch.manual_seed(0)
    student = build_student(name)
    # Every cell of a tower with random weights depends on the whole picture.
    fill_towers(student)
    return student.eval()


@pytest.fixture(params=SMALL)
def student(request: pytest.FixtureRequest) -> Student:
    return student_of(request.param)


def shown(path: Path, seed: int, boxes: Any) -> ImageUnit:
    return picture(path, seed=seed, boxes=boxes, labels=("person", "dog", "person")[: len(boxes)])


def with_pictures(examples: list[Example], folder: Path, seed: int, scale: float = 1.0) -> list[Example]:
    """The same questions about other pictures."""
    return [
        dataclasses.replace(
            item, image=shown(folder / f"{seed}-{index}.png", seed + index, item.image.boxes_R4 * scale)
        )
        for index, item in enumerate(examples)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def examples(folder: Path) -> list[Example]:
    first, second = shown(folder / "a.png", 1, BOXES), shown(folder / "b.png", 2, BOXES[:1])
    question = "Why is person1 pointing at dog2?"
    answers = ["person3 doesn't know.", "Because it's raining.", "person1 likes the dog2.", "They are lost."]
    alone = "Why is person1 alone?"
    rationales = ["person1's friends left.", "It is a rather small room.", "They are lost."]
    return [
        Example(
            example_id="q2a",
            task="vcr-q2a",
            image=first,
            candidates=tuple(answered(question, answer) for answer in answers),
            label=0,
        ),
        Example(
            example_id="qa2r",
            task="vcr-qa2r",
            image=second,
            candidates=tuple(answered(f"{alone} person1 waits.", text, len(alone)) for text in rationales),
            label=1,
        ),
    ]


@pytest.fixture(scope="module")
def single(folder: Path) -> list[Example]:
    unit = shown(folder / "c.png", 3, BOXES[:2])
    return [question(unit, text, "vqa") for text in ("What colour is the café's left door?", "How many?")]


def encode(student: Student, examples: list[Example], **options: bool) -> tuple[StudentBatch, StudentOutput]:
    batch = student.collate(examples)
    with torch.no_grad():
        return batch, student.encode(batch, **options)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-4)


def test_shapes_and_kinds(student: Student, examples: list[Example]) -> None:
    # A generative student's own scores no answers, and is the hidden pass otherwise.
    is_hidden_pass = type(student).encode_unimodal in (Student.encode_unimodal, GenerativeStudent.encode_unimodal)
    assert is_hidden_pass == (student.name not in LOWER)
    batch, output = encode(student, examples)
    num_sequences, num_text = batch.token_ids_NL.shape
    num_visual = batch.visual_mask_NR.shape[1]
    assert batch.num_candidates == (4, 3)
    assert num_sequences == batch.num_sequences == 7
    assert batch.token_mask_NL.dtype == batch.visual_mask_NR.dtype == torch.bool
    assert batch.char_spans_NL2.shape == (num_sequences, num_text, 2)
    assert batch.box_index_NR.shape == (num_sequences, num_visual)
    assert output.text_states_NLH.shape == (num_sequences, num_text, student.hidden_size)
    assert output.visual_states_NRH.shape == (num_sequences, num_visual, student.hidden_size)
    assert output.pooled_NP.shape == (num_sequences, student.pooled_size)
    assert output.image_state_NH is None or output.image_state_NH.shape == (num_sequences, student.hidden_size)
    for kind, num_classes in (("choice", 1), ("answers", 11), ("classes", 3)):
        logits = output.class_logits(student.build_head(kind, num_classes))
        # A candidate in words has one score, whatever the head's classes.
        assert logits.shape == (num_sequences, num_classes if output.answered is None else 1)
    with_relevance = student.encode(batch, need_relevance=True)
    close(with_relevance.pooled_NP.detach(), output.pooled_NP)
    if with_relevance.relevance_NL is not None:
        assert with_relevance.relevance_NL.shape == batch.token_ids_NL.shape
        assert not with_relevance.relevance_NL.requires_grad
        share = with_relevance.relevance_NL[batch.token_mask_NL]
        assert ((share > 0) & (share < 1)).all()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = student.encode(batch)
    assert torch.isfinite(rough.pooled_NP.float()).all()
    assert (rough.pooled_NP.float() - output.pooled_NP).abs().max() < 0.1


def test_batch_composition_changes_nothing(student: Student, examples: list[Example], single: list[Example]) -> None:
    for items in (examples, single):
        batch, together = encode(student, items)
        with torch.no_grad():
            apart_together = student.encode_unimodal(batch)
        row = 0
        for item in items:
            alone_batch, alone = encode(student, [item])
            with torch.no_grad():
                apart_alone = student.encode_unimodal(alone_batch)
            for index in range(len(item.candidates)):
                text, visual = alone_batch.token_mask_NL[index], alone_batch.visual_mask_NR[index]
                all_text, all_visual = batch.token_mask_NL[row], batch.visual_mask_NR[row]
                for batched, other in ((together, alone), (apart_together, apart_alone)):
                    close(batched.text_states_NLH[row][all_text], other.text_states_NLH[index][text])
                    close(batched.visual_states_NRH[row][all_visual], other.visual_states_NRH[index][visual])
                    close(batched.pooled_NP[row], other.pooled_NP[index])
                row += 1


def test_gradients_reach_every_parameter_in_use(student: Student, examples: list[Example]) -> None:
    output = student.encode(student.collate(examples))
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (state * torch.randn(state.shape, generator=generator)).sum()
        for state in (output.text_states_NLH, output.visual_states_NRH, output.pooled_NP)
    )
    if output.answered is not None:
        total = total + output.answered.log_likelihood_NK.sum()
    student.zero_grad()
    total.backward()
    silent = {name for name, value in student.named_parameters() if value.grad is None or not value.grad.abs().any()}
    student.zero_grad()
    unused = UNUSED.get(family_of(student.name))
    expected = {name for name, _ in student.named_parameters() if unused and re.search(unused, name)}
    assert silent == expected


def test_saved_and_built_again_gives_the_same_logits(
    student: Student, examples: list[Example], tmp_path: Path
) -> None:
    save_student(tmp_path / "saved", student, origin={"made": "here"})
    again = build_student(student.name, weights=tmp_path / "saved").eval()
    _, expected = encode(student, examples)
    _, restored = encode(again, examples)
    assert torch.equal(restored.text_states_NLH, expected.text_states_NLH)
    assert torch.equal(restored.visual_states_NRH, expected.visual_states_NRH)
    head, head_again = (built.build_head("choice", 1).eval() for built in (student, again))
    head_again.load_state_dict(head.state_dict())
    assert torch.equal(restored.class_logits(head_again), expected.class_logits(head))


def test_tokens_say_what_they_are_of(student: Student, examples: list[Example], single: list[Example]) -> None:
    """Characters of word pieces, boxes of regions, and the place of each visual token."""
    assert student.places is not None
    for items in (examples, single):
        batch = student.collate(items)
        candidates = [candidate for item in items for candidate in item.candidates]
        for candidate, spans, mask in zip(candidates, batch.char_spans_NL2, batch.token_mask_NL, strict=True):
            assert not spans[~mask].any()
            real = [(int(start), int(end)) for start, end in spans[mask] if end > start]
            assert real == sorted(real)
            assert all(before[1] <= after[0] for before, after in itertools.pairwise(real))
            covered = {position for start, end in real for position in range(start, end)}
            visible = {position for position, letter in enumerate(candidate.text) if not letter.isspace()}
            assert visible <= covered
            context_end = candidate.context_length
            assert not any(start < context_end < end for start, end in real)
        images = [item.image for item in items for _ in item.candidates]
        for unit, index, mask in zip(images, batch.box_index_NR, batch.visual_mask_NR, strict=True):
            assert (index[~mask] == -1).all()
            boxes = [int(value) for value in index if value >= 0]
            assert boxes in ([], list(range(len(unit.boxes_R4))))
        assert batch.places_BR4.shape == (len(items), batch.visual_mask_NR.shape[1], 4)
        visible_BR, box_BR = batch.visual_mask_NR[batch.first_B], batch.box_index_NR[batch.first_B]
        lies_BR = ~batch.places_BR4.isnan().any(dim=2)
        assert not (lies_BR & ~visible_BR).any()
        # At most a class token or the whole picture lies nowhere.
        assert ((visible_BR & ~lies_BR).sum(1) <= 1).all()
        x1, y1, x2, y2 = batch.places_BR4[lies_BR].unbind(-1)
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= 1) & (y1 >= 0) & (y1 < y2) & (y2 <= 1)).all()
        for item, places, box_R in zip(items, batch.places_BR4, box_BR, strict=True):
            edges = torch.tensor([item.image.width, item.image.height] * 2)
            close(places[box_R >= 0], torch.from_numpy(item.image.boxes_R4)[box_R[box_R >= 0]] / edges)
        if student.places == "patches":
            sides_BR2 = batch.places_BR4[..., 2:] - batch.places_BR4[..., :2]
            close(sides_BR2.prod(-1).nan_to_num().sum(1), torch.ones(len(items)))
        assert isinstance(student, TokenisesTexts) != isinstance(student, GenerativeStudent)
        if isinstance(student, TokenisesTexts):
            token_ids_NL, token_mask_NL = student.text_tokens(items)
            assert torch.equal(token_ids_NL, batch.token_ids_NL)
            assert torch.equal(token_mask_NL, batch.token_mask_NL)


def repainted(unit: ImageUnit, box_4: Any, path: Path) -> ImageUnit:
    """The picture with one box painted over."""
    with Image.open(unit.path) as file:
        pixels = file.convert("RGB")
    pixels.paste((250, 240, 10), tuple(int(value) for value in box_4))
    pixels.save(path)
    return made_unit(path, unit.width, unit.height, unit.boxes_R4, unit.box_labels, name=path.name)


def strongest(change_NS: torch.Tensor) -> list[int]:
    return [int(index) for index in change_NS.argmax(1)]


def test_a_visual_tokens_state_is_of_its_place(student: Student, examples: list[Example], tmp_path: Path) -> None:
    """A patch or a box that is painted over changes its own token's state most, whatever the order of the boxes."""
    apart = np.array([[20, 70, 70, 115], [8, 8, 50, 50], [100, 10, 150, 55]], dtype=np.float32)
    unit = dataclasses.replace(examples[0].image, unit_id="apart", boxes_R4=apart)
    item = dataclasses.replace(examples[0], image=unit, candidates=(answered("Is it so?", "Yes."),))
    batch = student.collate([item])
    lies_R = ~batch.places_BR4[0].isnan().any(dim=1)
    tokens = lies_R.nonzero()[:, 0]
    assert student.places == "patches" or len(tokens) == len(apart)
    with torch.no_grad():
        before = student.encode_unimodal(batch)
    for token in (tokens if student.places == "regions" else tokens[[1, -2]]).tolist():
        box_4 = (batch.places_BR4[0, token].numpy() * np.array([unit.width, unit.height] * 2)).round()
        changed = repainted(unit, box_4, tmp_path / f"{student.name}{token}.png")
        with torch.no_grad():
            after = student.encode_unimodal(student.collate([dataclasses.replace(item, image=changed)]))
        change_NR = (after.visual_states_NRH - before.visual_states_NRH).norm(dim=2)
        change_NR[:, ~lies_R] = 0.0
        assert strongest(change_NR) == [token]


def test_a_tokens_state_is_of_the_characters_that_it_covers(student: Student, examples: list[Example]) -> None:
    """A word that is replaced by another of one token changes the state of its own token most."""
    context = "Is the big dog near the old red car?"
    for word in ("big", "red"):
        start, changed = context.index(word), context.replace(word, "cat")
        items = [
            dataclasses.replace(examples[0], candidates=(answered(text, "Yes."), answered(text, "It is small.")))
            for text in (context, changed)
        ]
        (batch, before), (_, after) = (encode(student, [item]) for item in items)
        change_NL = (after.text_states_NLH - before.text_states_NLH).norm(dim=2) * batch.token_mask_NL
        for row, token in enumerate(strongest(change_NL)):
            assert batch.char_spans_NL2[row, token].tolist() == [start, start + len(word)]


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("scenes-")])
def test_a_tagged_word_sees_the_object_that_it_names(name: str, examples: list[Example]) -> None:
    """The same words about another box are another question, unless the picture is hidden."""
    student = student_of(name)
    asked = examples[0].candidates[0]
    where = asked.text.index("dog2")
    unit = dataclasses.replace(examples[0].image, box_labels=("dog", "dog", "dog"))
    batches = []
    for box in (1, 2):
        tags = (ObjectTag(start=where, end=where + 4, box=box),)
        item = dataclasses.replace(examples[0], image=unit, candidates=(dataclasses.replace(asked, tags=tags),))
        batches.append(student.collate([item]))
    inside = (batches[0].char_spans_NL2[0, :, 0] >= where) & (batches[0].char_spans_NL2[0, :, 1] <= where + 4)
    with torch.no_grad():
        seen, other = (student.encode(batch).text_states_NLH[0] for batch in batches)
        hidden, other_hidden = (student.encode(batch, mask_visual=True).text_states_NLH[0] for batch in batches)
        apart, other_apart = (student.encode_unimodal(batch).text_states_NLH[0] for batch in batches)
    change_L = (seen - other).norm(dim=1)
    assert inside[change_L.argmax()]
    assert change_L.max() > 1e-3
    close(other_hidden, hidden)
    close(other_apart, apart)


@pytest.mark.parametrize("unimodal", [False, True], ids=["mask_visual", "unimodal"])
def test_hidden_from_one_another_text_and_picture_have_not_seen_the_other_side(
    student: Student, examples: list[Example], folder: Path, unimodal: bool
) -> None:
    batch, seen = encode(student, examples)
    other_batch, seen_other = encode(student, with_pictures(examples, folder, 50, 0.9))
    hide = student.encode_unimodal if unimodal else partial(student.encode, mask_visual=True)
    with torch.no_grad():
        hidden, other = hide(batch), hide(other_batch)
    assert hidden.text_states_NLH.shape == seen.text_states_NLH.shape
    assert hidden.visual_states_NRH.shape == seen.visual_states_NRH.shape
    assert hidden.pooled_NP.shape == seen.pooled_NP.shape
    assert (hidden.image_state_NH is None) == (seen.image_state_NH is None)
    text = batch.token_mask_NL
    close(other.text_states_NLH[text], hidden.text_states_NLH[text])
    close(other.pooled_NP, hidden.pooled_NP)
    assert (seen_other.text_states_NLH[text] - seen.text_states_NLH[text]).abs().max() > 1e-4
    assert (other.visual_states_NRH - hidden.visual_states_NRH).abs().max() > 1e-4
    # The first example's candidates are different texts about one picture.
    visual = hidden.visual_states_NRH[:4, batch.visual_mask_NR[0]]
    close(visual, visual[:1].expand_as(visual))
    assert (hidden.text_states_NLH[0] - hidden.text_states_NLH[1]).abs().max() > 1e-4


LOWER = [
    "bridgetower-tiny",
    "lxmert-tiny",
    "meter-tiny",
    "scenes-efficientnet",
    "scenes-small",
    "scenes-uniter",
    "scenes-vilt",
    "words-efficientnet-tiny",
]
"""Students with layers below their fusion."""


def test_conditions_show_what_they_say_and_share_towers_without_a_difference(
    student: Student, examples: list[Example], folder: Path
) -> None:
    """Every condition of the pictures, with what lies below the fusion computed once, and each by itself."""
    shown, swapped = student.collate(examples), student.collate(with_pictures(examples, folder, 90))
    blanked = [(shown.blanked(), False), (swapped.blanked(), False)]
    conditions = [(shown, False), (swapped, False), *blanked, (shown, True)]
    with torch.inference_mode():
        apart = [student.encode(batch, mask_visual=hidden).pooled_NP for batch, hidden in conditions]
        with student.sharing():
            shared = [student.encode_pooled(batch, mask_visual=hidden).pooled_NP for batch, hidden in conditions]
    for expected, other in zip(apart, shared, strict=True):
        assert_near(other, expected, roundings=16)
    seen, other_seen, blank, other_blank, _ = apart
    # Blanked pictures show nothing but their boxes.
    close(other_blank, blank)
    assert (other_seen - seen).abs().max() > 1e-4
    assert (blank - seen).abs().max() > 1e-4


def test_perturbations_are_added_to_the_inputs_or_refused(student: Student, examples: list[Example]) -> None:
    batch, clean = encode(student, examples[:1])
    if not isinstance(student, Perturbable):
        with pytest.raises(ConfigError, match="no adversarial"):
            student.encode(batch, perturbation=Perturbation())
        return
    zero = student.zero_perturbation(batch)
    with torch.no_grad():
        close(student.encode(batch, perturbation=zero).pooled_NP, clean.pooled_NP, 1e-6)
        for field in dataclasses.fields(zero):
            start = getattr(zero, field.name)
            moved = Perturbation(**{field.name: start + 0.5 * torch.randn_like(start)})
            assert (student.encode(batch, perturbation=moved).pooled_NP - clean.pooled_NP).abs().max() > 1e-4


@pytest.mark.parametrize("name", LOWER)
def test_a_step_that_shares_the_layers_below_the_fusion_has_the_gradients_of_passes_apart(
    name: str, examples: list[Example]
) -> None:
    """The task's gradient passes through lower states, so that what they learn reaches the answer."""
    student = student_of(name)
    batch = student.collate(examples)

    def gradients(*losses: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
        student.zero_grad()
        torch.stack([loss() for loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
        return {key: value.grad for key, value in student.named_parameters() if value.grad is not None}

    def lower() -> torch.Tensor:
        states = student.encode_unimodal(batch)
        return states.text_states_NLH.square().sum() + states.visual_states_NRH.square().sum()

    def fused() -> torch.Tensor:
        return student.encode(batch).pooled_NP.square().sum()

    below, used = ({key for key, value in gradients(loss).items() if value.any()} for loss in (lower, fused))
    assert below < used
    accumulated = []
    for sharing in (contextlib.nullcontext(), student.sharing()):
        with sharing:
            accumulated.append(gradients(lower, fused))
    apart, shared = accumulated
    assert apart.keys() == shared.keys()
    # Some, such as those of the keys' biases, are nothing but rounding.
    scale = max(float(gradient.abs().max()) for gradient in apart.values())
    for key, gradient in apart.items():
        torch.testing.assert_close(shared[key], gradient, rtol=1e-3, atol=1e-5 * scale)
    student.zero_grad()


# One row of scenes-uniter passes its lower layer as text and regions together; word vectors alone are looked up.
@pytest.mark.parametrize("name", [name for name in LOWER if name not in ("scenes-uniter", "words-efficientnet-tiny")])
def test_a_text_below_the_fusion_is_computed_once_for_all_conditions(
    name: str, examples: list[Example], single: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of(name)
    asked: list[str] = []
    batches = [student.collate(items) for items in (examples, single)]
    real = student.once

    def counted(name: str, inputs: Sequence[torch.Tensor], compute: Callable[[], Any]) -> Any:
        def run() -> Any:
            asked.append(name)
            return compute()

        return real(name, inputs, run)

    monkeypatch.setattr(student, "once", counted)
    with torch.inference_mode():
        for batch in batches:
            with student.sharing():
                for condition in (batch, batch.blanked()):
                    student.encode_pooled(condition)
                student.encode_pooled(batch, mask_visual=True)
        student.encode_pooled(batches[0])
        student.encode_pooled(batches[0])
    # Once for each batch, and without sharing each time anew.
    assert asked.count("text") == len(batches) + 2
