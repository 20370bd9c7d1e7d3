"""The match head of choices: labelled questions fit its form, and training does not move it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_near
from commands import printed
from made_examples import unit as made_unit
from own_rows import choice_row, write_json_lines
from safetensors.torch import load_file

from advl_pipeline.confidence.match_probe import MatchProbe, unit
from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.students.contrastive_form import fit_contrastive_form
from advl_pipeline.students.interface import LabelledChoices
from advl_pipeline.students.match import ChoiceMatchHead, MatchOutput

TEXT, PICTURE = 6, 5


def example_of(number: int, num_candidates: int, *, picture: str) -> Example:
    texts = [text_unit(f"question {number} answer {place}") for place in range(num_candidates)]
    candidates = tuple(Candidate(text_unit=text, context_length=0) for text in texts)
    image = made_unit(name=picture)
    return Example(example_id=str(number), task="choice", image=image, candidates=candidates, label=None)


def questions_of(counts: list[int], *, one_picture: bool) -> list[LabelledChoices[MatchOutput]]:
    """Batches of five questions with random pooled states; the choices of a question share their picture."""
    batches = []
    for first in range(0, len(counts), 5):
        of = counts[first : first + 5]
        shown_BV = torch.randn(len(of), PICTURE)
        output = MatchOutput(
            text_states_NLH=torch.zeros(sum(of), 1, 4),
            visual_states_NRH=torch.zeros(sum(of), 1, 4),
            pooled_NP=torch.zeros(sum(of), 4),
            said_NT=torch.randn(sum(of), TEXT),
            shown_NV=shown_BV.repeat_interleave(torch.tensor(of), dim=0),
        )
        examples = [
            example_of(first + place, count, picture="one" if one_picture else str(first + place))
            for place, count in enumerate(of)
        ]
        labels = torch.tensor([place % 2 for place in range(len(of))])
        batches.append(LabelledChoices(output=output, examples=examples, label_B=labels))
    return batches


def silent_head() -> ChoiceMatchHead:
    """A head whose maps and fused state say nothing."""
    return ChoiceMatchHead(
        text_size=TEXT, picture_size=PICTURE, pooled_size=4, first_scale=0.0, contrastive=True
    ).eval()


@torch.no_grad()
def scores_of(head: ChoiceMatchHead, questions: list[LabelledChoices[MatchOutput]]) -> list[torch.Tensor]:
    """The scores of each question's choices, relative to the first: a constant changes no choice."""
    scores = []
    for batch in questions:
        of = torch.split(head(batch.output)[:, 0], [len(example.candidates) for example in batch.examples])
        scores += [each - each[0] for each in of]
    return scores


def test_the_form_of_questions_about_one_picture_is_that_of_the_probe() -> None:
    torch.manual_seed(0)
    questions = questions_of([3] * 12, one_picture=True)
    head = silent_head()
    head.read_choices(questions)
    said_NCT = torch.cat([batch.output.said_NT.view(-1, 3, TEXT) for batch in questions]).numpy()
    shown_NV = torch.cat([batch.output.shown_NV[::3] for batch in questions]).numpy()
    label_N = torch.cat([batch.label_B for batch in questions]).numpy()
    expected_NC = MatchProbe.fit(said_NCT, shown_NV, label_N).scores(said_NCT, shown_NV)
    assert np.ptp(expected_NC, axis=1).max() > 0.1
    assert_near(torch.stack(scores_of(head, questions)), torch.from_numpy(expected_NC - expected_NC[:, :1]).float())


def test_questions_with_different_numbers_of_choices_are_fitted_as_asked() -> None:
    torch.manual_seed(0)
    questions = questions_of([2, 4, 3] * 4, one_picture=False)
    head = silent_head()
    head.read_choices(questions)
    said, shown, label_N = [], [], []
    for batch in questions:
        row = 0
        for example, label in zip(batch.examples, batch.label_B.tolist(), strict=True):
            said.append(unit(batch.output.said_NT[row : row + len(example.candidates)].numpy()))
            shown.append(unit(batch.output.shown_NV[row].numpy()))
            label_N.append(label)
            row += len(example.candidates)
    mean_T, mean_V = np.concatenate(said).mean(axis=0), np.mean(shown, axis=0)
    said_NCT, valid_NC = np.zeros((12, 4, TEXT)), np.zeros((12, 4), np.bool_)
    for place, texts in enumerate(said):
        said_NCT[place, : len(texts)] = unit(texts - mean_T)
        valid_NC[place, : len(texts)] = True
    expected_TV = fit_contrastive_form(
        said_NCT,
        unit(np.stack(shown) - mean_V),
        np.array(label_N),
        valid_NC=valid_NC,
        negative_NN=~np.eye(12, dtype=np.bool_),
    )
    assert_near(head.form_TV, torch.from_numpy(expected_TV).float())


def test_equal_right_texts_are_not_negatives() -> None:
    torch.manual_seed(0)
    questions = questions_of([3] * 10, one_picture=True)
    one_picture = silent_head()
    one_picture.read_choices(questions)
    # As with rows that have the answer alone as their text: "yes" is right for other pictures, too.
    for batch in questions:
        for place, (example, label) in enumerate(zip(batch.examples, batch.label_B.tolist(), strict=True)):
            candidates = list(example.candidates)
            candidates[label] = Candidate(text_unit=text_unit("yes"), context_length=0)
            image = replace(example.image, unit_id=example.example_id)
            batch.examples[place] = replace(example, candidates=tuple(candidates), image=image)
    same_answer = silent_head()
    same_answer.read_choices(questions)
    assert torch.equal(same_answer.form_TV, one_picture.form_TV)


def test_order_and_batches_of_questions_do_not_change_the_form() -> None:
    torch.manual_seed(0)
    questions = questions_of([2, 4, 3] * 4, one_picture=False)
    forms = []
    for order in (questions, questions[::-1]):
        head = silent_head()
        head.read_choices(order)
        forms.append(head.form_TV)
    assert_near(forms[0], forms[1])
    assert float(forms[0].abs().max()) > 0.1


def test_a_run_fits_the_form_to_its_labels_and_training_does_not_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json_lines(Path("mine.jsonl"), [choice_row(number) for number in range(20)])
    forms = {}
    for num_steps, labels in ((1, 15), (3, 15), (1, 10)):
        name = f"run-{num_steps}-{labels}"
        chosen = ("--method", "plain", "--shots", labels, "--num-steps", num_steps, "--batch-size", 2)
        printed(
            capsys,
            "finetune",
            "--data",
            "mine.jsonl",
            "--student",
            "words-efficientnet-tiny",
            "--output",
            name,
            *chosen,
        )
        forms[name] = load_file(Path(name) / "heads.safetensors")["choice.form_TV"]
    assert float(forms["run-1-15"].abs().max()) > 0
    assert torch.equal(forms["run-1-15"], forms["run-3-15"])
    assert not torch.equal(forms["run-1-15"], forms["run-1-10"])
