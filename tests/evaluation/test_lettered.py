"""`advl evaluate --as letters`: what a student is asked, what is read of its answers, and where the numbers lie."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")

from commands import complaint, printed
from fake_hub.sets import colour_samples, write_twin
from own_rows import choice_row, write_json_lines, write_pictures
from run_logs import items_file

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.listed_options import CLOSINGS
from advl_pipeline.datasets.listed_options import SHORT as SHORTLY
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.evaluation.answer_reading import read_option
from advl_pipeline.evaluation.lettered import as_asked
from advl_pipeline.evaluation.predict import FinishedRun
from advl_pipeline.runs.evaluations import read_documents, read_evaluation

SHORT = ("--num-steps", 1, "--batch-size", 2, "--method", "plain")
SETS = ("cv-bench/test", "pope/test", "naturalbench/test", "realworldqa-all/test", "gqa/testdev", "aokvqa-direct/val")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with own data of choices and copies of sets of the hub."""
    folder = tmp_path_factory.mktemp("letters")
    write_pictures(folder / "pictures")
    rows = [choice_row(number, split=("train", "test")[number % 2]) for number in range(8)]
    write_json_lines(folder / "mine.jsonl", rows)
    for name in {test_set.partition("/")[0] for test_set in SETS}:
        write_twin(folder / "data", name, colour_samples(20))
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setenv("ADVL_DATA", "data")
    return home


@pytest.fixture
def chat_run(here: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    run = here / "runs" / "chat"
    if not run.exists():
        printed(capsys, "finetune", "--data", "mine.jsonl", "--student", "smolvlm-tiny", *SHORT, "--output", run)
    return run


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the student answer by a script, and return what it was asked."""
    asked: list[str] = []
    scripted = itertools.cycle(("The answer is (A)", "A.", "Yes, it is.", "no", "red", "it is dark", "Z"))
    really = FinishedRun.generated

    def generated(finished: FinishedRun, examples: Iterable[Example], *, batch_size: int) -> Iterator[str]:
        listed = list(examples)
        # The tiny student writes whatever comes, which nobody could score.
        assert len([*really(finished, listed, batch_size=batch_size)]) == len(listed)
        for example in listed:
            asked.append(example.candidates[0].text)
            yield "red" if "colour" in asked[-1] and asked[-1].endswith(SHORTLY) else next(scripted)

    monkeypatch.setattr(FinishedRun, "generated", generated)
    return asked


def document(run: Path, test_set: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "evaluation" / f"{test_set.replace('/', '--')}.json").read_text())
    return content


def test_what_is_written_is_read_by_the_rule_of_each_card(
    chat_run: Path, prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for test_set in SETS for word in ("--on", test_set)]
    out, _ = printed(capsys, "evaluate", chat_run, *words, "--as", "letters")
    assert "each answer is written by the student, its options listed behind letters" in out
    assert "name no option" in out
    assert "a letter beyond the options; they count as wrong" in out
    documents, shares = read_documents(chat_run), dict[str, float]()
    for test_set in SETS:
        name, split = test_set.split("/")
        found = documents[f"{test_set}@letters"]
        assert found.protocol == "letters"
        assert test_set not in documents, "scores of the likeliest candidate are others, and are not made"
        (metric,) = found.metrics
        evaluation = read_evaluation(chat_run, f"{test_set}@letters")
        assert evaluation is not None
        with np.load(items_file(chat_run, f"{name}--{split}@letters")) as file:
            arrays = dict(file)
        written = arrays[f"written/{metric}"].tolist()
        dataset = open_dataset(name, split=split)
        examples = [dataset[place] for place in range(len(dataset))]
        assert arrays[f"example_ids/{metric}"].tolist() == [example.example_id for example in examples]
        if metric == "choice":
            options = [[each.answer for each in example.candidates] for example in examples]
            read = [read_option(text, of, dataset.card.reads) for text, of in zip(written, options, strict=True)]
            hits = [float(place == example.label) for place, example in zip(read, examples, strict=True)]
        else:
            worth = [dataset.answers_of(example.example_id) for example in examples]
            hits = [of.get(text, 0.0) for text, of in zip(written, worth, strict=True)]
            if name == "realworldqa-all":
                is_a = [text in ("A.", "The answer is (A)") for text in written]
                hits = [float(named and "A" in of) for named, of in zip(is_a, worth, strict=True)]
        assert evaluation.items["score"].tolist() == pytest.approx(hits)
        shares[name] = sum(hits) / len(hits)
    assert all(0 < shares[name] < 1 for name in ("cv-bench", "pope", "naturalbench", "realworldqa-all")), shares
    assert shares["gqa"] + shares["aokvqa-direct"] > 0, shares
    assert documents["pope/test@letters"].measures["choice"]["mean F1 of the three splits"] > 0
    assert documents["gqa/testdev@letters"].measures["answers"]["distribution"] >= 0
    assert documents["naturalbench/test@letters"].measures["choice"].keys() == {"Acc", "Q-Acc", "I-Acc", "G-Acc"}
    assert "B. " in prompts[0]
    assert f"\n{CLOSINGS['letters']}" in prompts[0]
    assert any(prompt.count("Please answer Yes or No.") == 1 and "\nA. " not in prompt for prompt in prompts)
    assert any("A. a knit cap\nB. a helmet\nPlease output the letter" in prompt for prompt in prompts)
    # Before, and after, the default stands by itself.
    printed(capsys, "evaluate", chat_run, "--on", "test", "--probe", "none")
    assert document(chat_run, "test")["protocol"] == "likelihood"
    printed(capsys, "report", chat_run)
    page = (chat_run / "report.html").read_text(encoding="utf-8")
    assert "choice accuracy, answer written, options behind letters" in page
    assert "naturalbench/test@letters: Acc " in page


def test_a_question_is_asked_as_the_harness_asks_it(here: Path) -> None:
    write_json_lines(
        here / "many.jsonl", [choice_row(0, choices=[f"thing {n}" for n in range(27)], label=26, split=...)]
    )
    example = open_dataset("mine.jsonl", split="train")[0]
    asked = as_asked(example, {})
    options = [each.answer for each in example.candidates]
    question = example.candidates[0].text[: example.candidates[0].context_length]
    lines = [question, *(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False))]
    assert asked.candidates[0].text == "\n".join([*lines, CLOSINGS["letters"]])
    assert as_asked(example, {"letters": ""}).candidates[0].text == "\n".join(lines)
    lettered = [choice_row(0, choices=["A. red", "B. blue"], label="B", split=...)]
    own = open_dataset(str(write_json_lines(here / "lettered.jsonl", lettered)), split="train")[0]
    assert as_asked(own, {"letters": ""}).candidates[0].text.endswith("?\nA. red\nB. blue")
    with pytest.raises(DatasetError, match="27 options, and letters go from A to Z"):
        as_asked(open_dataset("many.jsonl", split="train")[0], {})


def test_a_measure_whose_column_is_not_there_stops_before_anything_is_written(
    chat_run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [choice_row(number, split="test", source=("a", "")[number % 2]) for number in range(4)]
    write_json_lines(here / "other.jsonl", rows)

    def evaluated(column: str) -> tuple[int, str]:
        (here / "other.toml").write_text(
            f'files = "other.jsonl"\n[facets]\nsource = {{ column = "{column}" }}\n'
            '[[measures]]\nname = "by source"\nby = "source"\n'
        )
        return complaint(capsys, "evaluate", chat_run, "--on", "other.toml/test", "--probe", "none")

    code, messages = evaluated("sourse")
    assert (code, "[facets.source]" in messages) == (5, True)
    assert "column 'sourse', which the card gives as 'facets.source', is missing; did you mean source" in messages
    code, messages = evaluated("source")
    assert (code, "'by source' needs the facet 'source', and an item has none" in messages) == (5, True)
    assert not [*chat_run.glob("evaluation/other*")]
