"""The match head of choices: its form is `MatchProbe` of the labelled questions, and training does not move it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_near
from commands import printed
from own_rows import choice_row, write_json_lines
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.confidence.match_probe import MatchProbe
from advl_pipeline.students.interface import LabelledChoices
from advl_pipeline.students.match import ChoiceMatchHead, MatchOutput

TEXT, PICTURE = 6, 5


def output_of(num_candidates: list[int]) -> MatchOutput:
    """Random pooled states, with one picture for the choices of a question."""
    num_sequences = sum(num_candidates)
    shown_BV = torch.randn(len(num_candidates), PICTURE)
    return MatchOutput(
        text_states_NLH=torch.zeros(num_sequences, 1, 4),
        visual_states_NRH=torch.zeros(num_sequences, 1, 4),
        pooled_NP=torch.zeros(num_sequences, 4),
        said_NT=torch.randn(num_sequences, TEXT),
        shown_NV=shown_BV.repeat_interleave(torch.tensor(num_candidates), dim=0),
    )


@pytest.mark.parametrize("num_candidates", [[3] * 12, [2, 4, 3] * 4])
def test_the_form_of_a_head_is_the_probe_of_the_labelled_questions(num_candidates: list[int]) -> None:
    torch.manual_seed(0)
    outputs = [output_of(num_candidates[first : first + 5]) for first in (0, 5, 10)]
    counts = [num_candidates[first : first + 5] for first in (0, 5, 10)]
    labels = [torch.tensor([place % 2 for place in range(len(of))]) for of in counts]
    # With a factor of 0 the maps and the fused state say nothing.
    head = ChoiceMatchHead(text_size=TEXT, picture_size=PICTURE, pooled_size=4, first_scale=0.0).eval()
    head.read_choices(
        LabelledChoices(output=output, num_candidates=of, label_B=label_B)
        for output, of, label_B in zip(outputs, counts, labels, strict=True)
    )
    fitted_N = torch.cat([head(output)[:, 0] for output in outputs])
    said = [of for output, each in zip(outputs, counts, strict=True) for of in torch.split(output.said_NT, each)]
    shown_BV = torch.cat(
        [output.shown_NV[torch.tensor(each).cumsum(0) - 1] for output, each in zip(outputs, counts, strict=True)]
    )
    valid_NC = np.arange(max(num_candidates)) < np.array(num_candidates)[:, None]
    probe = MatchProbe.fit(
        pad_sequence(said, batch_first=True).numpy(),
        shown_BV.numpy(),
        torch.cat(labels).numpy(),
        valid_NC=valid_NC,
    )
    expected_NC = probe.scores(pad_sequence(said, batch_first=True).numpy(), shown_BV.numpy())
    actual_NC = pad_sequence(torch.split(fitted_N.detach(), num_candidates), batch_first=True).numpy()
    # A constant for each question changes no choice.
    for actual, expected, valid in zip(actual_NC, expected_NC, valid_NC, strict=True):
        assert_near(torch.tensor(actual[valid] - actual[0]), torch.tensor(expected[valid] - expected[0]).float())
    assert np.ptp(expected_NC, axis=1).max() > 0.1


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
