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
from PIL import Image

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, ObjectTag, text_unit
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.clip_vil import ClipVil
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.registry import build_student, family_of, student_names
from advl_pipeline.students.saved import save_student
from advl_pipeline.training.build_model import compile_student

SMALL = [name for name in student_names() if name.endswith("-tiny") or name.startswith("scenes-")]

COMPILED = ["clip-vil-tiny", "uniter-tiny", "villa-tiny", "vilt-tiny", "visualbert-tiny", "vl-bert-tiny"]
"""Students that are tested under torch.compile; tracing one takes about twenty seconds, so that not all are."""

UNUSED = {
    "uniter": r"mask_embedding",
    "villa": r"mask_embedding",
    "scenes-uniter": r"mask_embedding",
    "bridgetower": r"text_model\.pooler",
}
"""Parameters of the original files that finetuning does not use, by family."""


@cache
def student_of(name: str) -> Student:
    torch.manual_seed(0)
    return build_student(name).eval()


@pytest.fixture(params=SMALL)
def student(request: pytest.FixtureRequest) -> Student:
    return student_of(request.param)


def picture(path: Path, seed: int, boxes: list[list[float]]) -> ImageUnit:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((160, 120), Image.Resampling.NEAREST).save(path)
    return ImageUnit(
        unit_id=f"{path.name}{seed}",
        path=path,
        width=160,
        height=120,
        boxes_R4=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        box_labels=("person", "dog", "person")[: len(boxes)],
    )


def choice(context: str, answer: str, question_length: int = 0) -> Candidate:
    text = f"{context} {answer}"
    tags = tuple(
        ObjectTag(start=found.start(), end=found.end(), box=int(found.group(1)) - 1)
        for found in re.finditer(r"(?:person|dog)(\d)", text)
    )
    return Candidate(
        text_unit=text_unit(text), context_length=len(context), question_length=question_length, tags=tags
    )


BOXES = [[10, 10, 60, 100], [70, 20, 150, 110], [5, 60, 40, 118]]


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    first, second = picture(tmp_path / "a.png", 1, BOXES), picture(tmp_path / "b.png", 2, BOXES[:1])
    question = "Why is person1 pointing at dog2?"
    answers = ["person3 doesn't know.", "Because it's raining.", "person1 likes the dog2.", "They are lost."]
    alone = "Why is person1 alone?"
    rationales = ["person1's friends left.", "It is a rather small room.", "They are lost."]
    return [
        Example(
            example_id="q2a",
            task="vcr-q2a",
            image=first,
            candidates=tuple(choice(question, answer) for answer in answers),
            label=0,
        ),
        Example(
            example_id="qa2r",
            task="vcr-qa2r",
            image=second,
            candidates=tuple(choice(f"{alone} person1 waits.", text, len(alone)) for text in rationales),
            label=1,
        ),
    ]


@pytest.fixture
def single(tmp_path: Path) -> list[Example]:
    unit = picture(tmp_path / "c.png", 3, BOXES[:2])
    words = ["What colour is the café's left door?", "How many?"]
    return [
        Example(
            example_id=str(index),
            task="vqa",
            image=unit,
            candidates=(Candidate(text_unit=text_unit(text)),),
            label=None,
        )
        for index, text in enumerate(words)
    ]


def encode(student: Student, examples: list[Example], **options: bool) -> tuple[StudentBatch, StudentOutput]:
    batch = student.collate(examples)
    with torch.no_grad():
        return batch, student.encode(batch, **options)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-4)


def test_shapes_and_kinds(student: Student, examples: list[Example]) -> None:
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
    for task, num_classes in (("vcr-q2a", 1), ("vqa", 11), ("snli-ve", 3)):
        logits = output.class_logits(student.build_head(task, num_classes))
        # A candidate in words has one score, whatever the head's classes.
        assert logits.shape == (num_sequences, num_classes if output.answered is None else 1)


def test_texts_are_cut_alike_with_their_pictures_and_without(student: Student, single: list[Example]) -> None:
    batch = student.collate(single)
    if isinstance(student, GenerativeStudent):
        with pytest.raises(ConfigError, match="without their pictures"):
            student.text_tokens(single)
        return
    token_ids_NL, token_mask_NL = student.text_tokens(single)
    assert torch.equal(token_ids_NL, batch.token_ids_NL)
    assert torch.equal(token_mask_NL, batch.token_mask_NL)


@pytest.mark.parametrize("group", ["examples", "single"])
def test_batch_composition_changes_nothing(student: Student, group: str, request: pytest.FixtureRequest) -> None:
    items: list[Example] = request.getfixturevalue(group)
    batch, together = encode(student, items)
    row = 0
    for item in items:
        alone_batch, alone = encode(student, [item])
        for index in range(len(item.candidates)):
            text, visual = alone_batch.token_mask_NL[index], alone_batch.visual_mask_NR[index]
            close(together.text_states_NLH[row][batch.token_mask_NL[row]], alone.text_states_NLH[index][text])
            close(together.visual_states_NRH[row][batch.visual_mask_NR[row]], alone.visual_states_NRH[index][visual])
            close(together.pooled_NP[row], alone.pooled_NP[index])
            row += 1


def test_order_of_examples_changes_nothing(student: Student, examples: list[Example]) -> None:
    _, forward = encode(student, examples)
    _, backward = encode(student, examples[::-1])
    close(torch.cat([backward.pooled_NP[3:], backward.pooled_NP[:3]]), forward.pooled_NP)


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
    _, found = encode(again, examples)
    assert torch.equal(found.text_states_NLH, expected.text_states_NLH)
    assert torch.equal(found.visual_states_NRH, expected.visual_states_NRH)
    head, head_again = (one.build_head("vcr-q2a", 1).eval() for one in (student, again))
    head_again.load_state_dict(head.state_dict())
    assert torch.equal(found.class_logits(head_again), expected.class_logits(head))


def test_bf16_autocast_runs_and_stays_close(student: Student, examples: list[Example]) -> None:
    batch, exact = encode(student, examples)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = student.encode(batch)
    assert torch.isfinite(rough.pooled_NP.float()).all()
    assert (rough.pooled_NP.float() - exact.pooled_NP).abs().max() < 0.1


def test_compiling_is_refused_with_a_reason_or_tested(student: Student) -> None:
    if student.compile_refusal:
        with pytest.raises(ConfigError, match="cannot be compiled") as refused:
            compile_student(student)
        assert refused.value.why == student.compile_refusal
    else:
        assert student.name in COMPILED


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_student_computes_the_same(
    name: str, examples: list[Example], single: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The captured graph runs as it is: generating machine code from it takes minutes on a CPU.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    plain, compiled = student_of(name), build_student(name).eval()
    compiled.load_state_dict(plain.state_dict())
    compile_student(compiled)
    assert "encode" in vars(compiled)
    for items in (examples, single):
        (batch, expected), (_, found) = encode(plain, items), encode(compiled, items)
        close(found.pooled_NP, expected.pooled_NP)
        close(found.text_states_NLH, expected.text_states_NLH)
        with torch.no_grad():
            close(compiled.encode_pooled(batch).pooled_NP, expected.pooled_NP)


def test_spans_line_up_with_the_text(student: Student, examples: list[Example], single: list[Example]) -> None:
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


def test_boxes_line_up(student: Student, examples: list[Example]) -> None:
    batch = student.collate(examples)
    images = [item.image for item in examples for _ in item.candidates]
    for unit, index, mask in zip(images, batch.box_index_NR, batch.visual_mask_NR, strict=True):
        assert (index[~mask] == -1).all()
        boxes = [int(value) for value in index if value >= 0]
        assert boxes in ([], list(range(len(unit.boxes_R4))))


def test_every_visual_token_says_where_it_lies(
    student: Student, examples: list[Example], single: list[Example]
) -> None:
    for items in (examples, single):
        batch = student.collate(items)
        assert student.places is not None
        assert batch.places_BR4 is not None
        assert batch.places_BR4.shape == (len(items), batch.visual_mask_NR.shape[1], 4)
        first = torch.tensor((0, *batch.num_candidates[:-1])).cumsum(0)
        visible_BR, box_BR = batch.visual_mask_NR[first], batch.box_index_NR[first]
        lies_BR = ~batch.places_BR4.isnan().any(dim=2)
        assert not (lies_BR & ~visible_BR).any()
        # At most a class token or the whole picture lies nowhere.
        assert ((visible_BR & ~lies_BR).sum(1) <= 1).all()
        x1, y1, x2, y2 = batch.places_BR4[lies_BR].unbind(-1)
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= 1) & (y1 >= 0) & (y1 < y2) & (y2 <= 1)).all()
        for item, places, boxes in zip(items, batch.places_BR4, box_BR, strict=True):
            edges = torch.tensor([item.image.width, item.image.height] * 2)
            expected = torch.from_numpy(item.image.boxes_R4)[boxes[boxes >= 0]] / edges
            close(places[boxes >= 0], expected)
        if student.places == "patches":
            area_BR = (batch.places_BR4[..., 2] - batch.places_BR4[..., 0]) * (
                batch.places_BR4[..., 3] - batch.places_BR4[..., 1]
            )
            close(area_BR.nan_to_num().sum(1), torch.ones(len(items)))


def test_a_patchs_state_is_of_its_place(student: Student, examples: list[Example], tmp_path: Path) -> None:
    """A place that is painted over changes the state of the token that lies there most."""
    if student.places != "patches":
        return
    item = dataclasses.replace(examples[0], candidates=(choice("Is it so?", "Yes."),))
    batch = student.collate([item])
    with torch.no_grad():
        before = student.encode_unimodal(batch)
    assert batch.places_BR4 is not None
    edges = np.array([item.image.width, item.image.height] * 2)
    for token in range(batch.places_BR4.shape[1]):
        place = batch.places_BR4[0, token].numpy()
        if np.isnan(place).any():
            continue
        unit = dataclasses.replace(item.image, boxes_R4=(place * edges).round()[None])
        path = tmp_path / f"{token}.png"
        changed = dataclasses.replace(item.image, unit_id=path.name, path=repainted(unit, 0, path).path)
        with torch.no_grad():
            after = student.encode_unimodal(student.collate([dataclasses.replace(item, image=changed)]))
        change_NR = (after.visual_states_NRH - before.visual_states_NRH).norm(dim=2)
        change_NR[:, batch.places_BR4[0].isnan().any(dim=1)] = 0.0
        assert strongest(change_NR) == [token]


def strongest(change_NS: torch.Tensor) -> list[int]:
    return [int(index) for index in change_NS.argmax(1)]


def test_a_tokens_state_is_of_the_characters_that_it_covers(student: Student, examples: list[Example]) -> None:
    """A word that is replaced by another of one token changes the state of its own token most."""
    context = "Is the big dog near the old red car?"
    words = [(match.start(), match.end()) for match in re.finditer("big|dog|old|red", context)]
    for start, end in words:
        changed = f"{context[:start]}cat{context[end:]}"
        items = [
            dataclasses.replace(examples[0], candidates=(choice(text, "Yes."), choice(text, "It is small.")))
            for text in (context, changed)
        ]
        (batch, before), (_, after) = (encode(student, [item]) for item in items)
        change_NL = (after.text_states_NLH - before.text_states_NLH).norm(dim=2) * batch.token_mask_NL
        for row, token in enumerate(strongest(change_NL)):
            assert batch.char_spans_NL2[row, token].tolist() == [start, end]


def repainted(unit: ImageUnit, box: int, path: Path) -> ImageUnit:
    """The picture with one box painted over."""
    x1, y1, x2, y2 = (int(value) for value in unit.boxes_R4[box])
    with Image.open(unit.path) as file:
        picture = file.convert("RGB")
    picture.paste((250, 240, 10), (x1, y1, x2, y2))
    picture.save(path)
    return dataclasses.replace(unit, unit_id=path.name, path=path)


def test_a_regions_state_is_of_its_box(student: Student, examples: list[Example], tmp_path: Path) -> None:
    """A box that is painted over changes the state of its own region most, whatever the order of the boxes."""
    first = examples[0]
    apart = np.array([[8, 8, 50, 50], [100, 10, 150, 55], [20, 70, 70, 115]], dtype=np.float32)
    for order in ([0, 1, 2], [2, 0, 1]):
        unit = dataclasses.replace(first.image, unit_id=f"apart{order}", boxes_R4=apart[order])
        item = dataclasses.replace(first, image=unit, candidates=(choice("Is it so?", "Yes."),))
        batch, before = encode(student, [item])
        if not (batch.box_index_NR >= 0).any():
            assert isinstance(student, PixelStudent | ClipVil | GenerativeStudent)
            return
        for box in range(len(apart)):
            path = tmp_path / f"{order}{box}.png"
            _, after = encode(student, [dataclasses.replace(item, image=repainted(unit, box, path))])
            change_NR = (after.visual_states_NRH - before.visual_states_NRH).norm(dim=2)
            change_NR[batch.box_index_NR < 0] = 0.0
            assert [int(batch.box_index_NR[0, region]) for region in strongest(change_NR)] == [box]


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("scenes-")])
def test_a_tagged_word_sees_the_object_that_it_names(name: str, examples: list[Example], tmp_path: Path) -> None:
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
        one, other = (student.encode(batch).text_states_NLH[0] for batch in batches)
        hidden, other_hidden = (student.encode(batch, mask_visual=True).text_states_NLH[0] for batch in batches)
        apart, other_apart = (student.encode_unimodal(batch).text_states_NLH[0] for batch in batches)
    change_L = (one - other).norm(dim=1)
    assert inside[change_L.argmax()]
    assert change_L.max() > 1e-3
    close(other_hidden, hidden)
    close(other_apart, apart)


def other_pictures(examples: list[Example], folder: Path) -> list[Example]:
    return [
        dataclasses.replace(
            item,
            image=picture(folder / f"other{index}.png", 50 + index, (item.image.boxes_R4 * 0.9).tolist()),
        )
        for index, item in enumerate(examples)
    ]


def test_mask_visual_hides_the_picture(student: Student, examples: list[Example], tmp_path: Path) -> None:
    changed = other_pictures(examples, tmp_path)
    (batch, hidden), (_, hidden_changed) = (encode(student, items, mask_visual=True) for items in (examples, changed))
    text = batch.token_mask_NL
    close(hidden_changed.text_states_NLH[text], hidden.text_states_NLH[text])
    close(hidden_changed.pooled_NP, hidden.pooled_NP)
    (_, seen), (_, seen_changed) = (encode(student, items) for items in (examples, changed))
    assert (seen_changed.text_states_NLH[text] - seen.text_states_NLH[text]).abs().max() > 1e-4
    assert (hidden_changed.visual_states_NRH - hidden.visual_states_NRH).abs().max() > 1e-4


def test_mask_visual_hides_the_text_from_the_picture(student: Student, examples: list[Example]) -> None:
    batch, hidden = encode(student, examples[:1], mask_visual=True)
    visual = hidden.visual_states_NRH[:, batch.visual_mask_NR[0]]
    close(visual, visual[:1].expand_as(visual))


# A generative student's own scores no answers, and is the hidden pass otherwise.
HIDDEN_PASSES = (Student.encode_unimodal, GenerativeStudent.encode_unimodal)
LOWER = [name for name in SMALL if type(student_of(name)).encode_unimodal not in HIDDEN_PASSES]


def test_unimodal_states_have_not_seen_the_other_side(
    student: Student, examples: list[Example], tmp_path: Path
) -> None:
    batch, plain = encode(student, examples)
    with torch.no_grad():
        own, other = (
            student.encode_unimodal(student.collate(items))
            for items in (examples, other_pictures(examples, tmp_path))
        )
    assert own.text_states_NLH.shape == plain.text_states_NLH.shape
    assert own.visual_states_NRH.shape == plain.visual_states_NRH.shape
    assert own.pooled_NP.shape == plain.pooled_NP.shape
    assert (own.image_state_NH is None) == (plain.image_state_NH is None)
    text = batch.token_mask_NL
    close(other.text_states_NLH[text], own.text_states_NLH[text])
    close(other.pooled_NP, own.pooled_NP)
    assert (other.visual_states_NRH - own.visual_states_NRH).abs().max() > 1e-4
    # The first example's candidates are different texts about one picture.
    visual = own.visual_states_NRH[:4, batch.visual_mask_NR[0]]
    close(visual, visual[:1].expand_as(visual))
    assert (own.text_states_NLH[0] - own.text_states_NLH[1]).abs().max() > 1e-4


def test_unimodal_states_do_not_depend_on_the_batch(student: Student, examples: list[Example]) -> None:
    one = dataclasses.replace(examples[1], candidates=examples[1].candidates[:1])
    batch, alone_batch = student.collate(examples), student.collate([one])
    with torch.no_grad():
        together, alone = student.encode_unimodal(batch), student.encode_unimodal(alone_batch)
    assert alone_batch.token_mask_NL.all()
    close(together.text_states_NLH[4][batch.token_mask_NL[4]], alone.text_states_NLH[0])
    close(together.visual_states_NRH[4][batch.visual_mask_NR[4]], alone.visual_states_NRH[0])
    close(together.pooled_NP[4], alone.pooled_NP[0])


@pytest.mark.parametrize("name", LOWER)
def test_lower_states_are_those_that_the_fusion_starts_from(name: str, examples: list[Example]) -> None:
    """The task's gradient passes through them: what they learn reaches the answer."""
    student = student_of(name)
    batch = student.collate(examples)
    student.zero_grad()
    lower = student.encode_unimodal(batch)
    (lower.text_states_NLH.square().sum() + lower.visual_states_NRH.square().sum()).backward()
    below = {name for name, value in student.named_parameters() if value.grad is not None and value.grad.any()}
    student.zero_grad()
    student.encode(batch).pooled_NP.square().sum().backward()
    used = {name for name, value in student.named_parameters() if value.grad is not None and value.grad.any()}
    student.zero_grad()
    assert below < used


def test_blanked_pictures_show_nothing_but_their_boxes(
    student: Student, examples: list[Example], tmp_path: Path
) -> None:
    repainted = [
        dataclasses.replace(item, image=picture(tmp_path / f"b{index}.png", 70 + index, item.image.boxes_R4.tolist()))
        for index, item in enumerate(examples)
    ]
    batches = [student.collate(items) for items in (examples, repainted)]
    with torch.no_grad():
        seen, other = (student.encode(batch).pooled_NP for batch in batches)
        blank, other_blank = (student.encode(batch.blanked()).pooled_NP for batch in batches)
    close(other_blank, blank)
    assert (other - seen).abs().max() > 1e-4
    assert (blank - seen).abs().max() > 1e-4


def test_relevance_is_a_share_of_attention(student: Student, examples: list[Example]) -> None:
    batch, plain = encode(student, examples)
    output = student.encode(batch, need_relevance=True)
    close(output.pooled_NP.detach(), plain.pooled_NP)
    if output.relevance_NL is not None:
        assert output.relevance_NL.shape == batch.token_ids_NL.shape
        assert not output.relevance_NL.requires_grad
        share = output.relevance_NL[batch.token_mask_NL]
        assert ((share > 0) & (share < 1)).all()


def test_perturbations_are_added_to_the_inputs_or_refused(student: Student, examples: list[Example]) -> None:
    batch, clean = encode(student, examples)
    make: Callable[..., Perturbation] | None = getattr(student, "zero_perturbation", None)
    if student.starts_from_pixels:
        with pytest.raises(ConfigError, match="no adversarial"):
            student.encode(batch, perturbation=Perturbation())
        return
    if make is None:
        pytest.skip("the shapes of this student's perturbations are not its own to give")
    zero = make(batch)
    with torch.no_grad():
        close(student.encode(batch, perturbation=zero).pooled_NP, clean.pooled_NP, 1e-6)
        for field in dataclasses.fields(zero):
            start = getattr(zero, field.name)
            moved = Perturbation(**{field.name: start + 0.5 * torch.randn_like(start)})
            assert (student.encode(batch, perturbation=moved).pooled_NP - clean.pooled_NP).abs().max() > 1e-4


@pytest.mark.parametrize("name", SMALL)
def test_views_that_share_towers_have_the_scores_of_views_apart(
    name: str, examples: list[Example], tmp_path: Path
) -> None:
    """Every view of the pictures, with what lies below the fusion computed once, and each by itself."""
    student = student_of(name).eval()
    others = [
        dataclasses.replace(item, image=picture(tmp_path / f"v{index}.png", 90 + index, item.image.boxes_R4.tolist()))
        for index, item in enumerate(examples)
    ]
    shown, swapped = student.collate(examples), student.collate(others)
    views = [(shown, False), (swapped, False), (shown.blanked(), False), (shown, True)]
    with torch.inference_mode():
        apart = [student.encode(batch, mask_visual=hidden).pooled_NP for batch, hidden in views]
        with student.sharing():
            shared = [student.encode_pooled(batch, mask_visual=hidden).pooled_NP for batch, hidden in views]
    for one, other in zip(apart, shared, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    assert (apart[1] - apart[0]).abs().max() > 1e-4


@pytest.mark.parametrize("name", LOWER)
def test_a_step_that_shares_the_layers_below_the_fusion_has_the_gradients_of_passes_apart(
    name: str, examples: list[Example]
) -> None:
    student = student_of(name).eval()
    batch = student.collate(examples)
    found = []
    for sharing in (contextlib.nullcontext(), student.sharing()):
        student.zero_grad()
        with sharing:
            below, fused = student.encode_unimodal(batch), student.encode(batch)
            (below.text_states_NLH.square().sum() + fused.pooled_NP.square().sum()).backward()  # type: ignore[no-untyped-call]
        found.append({key: value.grad for key, value in student.named_parameters() if value.grad is not None})
    apart, shared = found
    assert apart.keys() == shared.keys()
    # Some, such as those of the keys' biases, are nothing but rounding.
    scale = max(float(gradient.abs().max()) for gradient in apart.values())
    for key, gradient in apart.items():
        torch.testing.assert_close(shared[key], gradient, rtol=1e-3, atol=1e-5 * scale)


# One row of scenes-uniter passes its lower layer as text and regions together.
@pytest.mark.parametrize("name", [name for name in LOWER if name != "scenes-uniter"])
def test_a_text_below_the_fusion_is_computed_once_for_all_views(
    name: str, examples: list[Example], single: list[Example]
) -> None:
    student = student_of(name).eval()
    asked: list[str] = []
    batches = [student.collate(items) for items in (examples, single)]
    real = student.once

    def counted(name: str, inputs: Sequence[torch.Tensor], compute: Callable[[], Any]) -> Any:
        def run() -> Any:
            asked.append(name)
            return compute()

        return real(name, inputs, run)

    student.once = counted  # type: ignore[method-assign]
    with torch.inference_mode():
        for batch in batches:
            with student.sharing():
                for view in (batch, batch.blanked()):
                    student.encode_pooled(view)
                student.encode_pooled(batch, mask_visual=True)
        student.encode_pooled(batches[0])
        student.encode_pooled(batches[0])
    # Once for each batch, and without sharing each time anew.
    assert asked.count("text") == len(batches) + 2
