"""The estimate of the words that pretraining taught, in runs of students without a record of it."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import completed
from small_corpus import SmallCorpus
from tokenizers import Tokenizer

from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.words import WordClass, fit_word_prior
from advl_pipeline.runs.results import read_words
from advl_pipeline.students.interface import Student, StudentOutput
from advl_pipeline.students.known_words import WordRow, read_known_words, write_known_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student
from advl_pipeline.students.tokenizer import embedded_tokenizer_file
from advl_pipeline.training.landmarks.word_estimate import WordEstimate, estimate_words

WIDTH, NUM_VISUAL = 64, 80


def grounded_student(examples: Sequence[Example], is_known: Callable[[int], bool]) -> Student:
    """Return a student whose words have fixed states; in each picture it sees the known words of all its texts.

    Args:
        is_known: whether a token of the vocabulary is known.
    """
    student = build_student("scenes-small", overrides={"word_size": 16})
    collate = student.collate
    seen: dict[str, set[int]] = defaultdict(set)
    for example in examples:
        tokens = collate([example]).token_ids_NL.flatten().tolist()  # type: ignore[attr-defined]
        seen[example.image.unit_id] |= set(filter(is_known, tokens))
    generator = torch.Generator().manual_seed(0)
    states_VH = torch.randn(30_600, WIDTH, generator=generator)
    visual = {
        unit_id: states_VH[(sorted(tokens) * NUM_VISUAL)[:NUM_VISUAL]]
        + 0.3 * torch.randn(NUM_VISUAL, WIDTH, generator=generator)
        for unit_id, tokens in seen.items()
    }

    def collate_planted(chosen: Sequence[Example]) -> Any:
        batch = collate(chosen)
        batch.planted_BRH = torch.stack([visual[example.image.unit_id] for example in chosen])  # type: ignore[attr-defined]
        batch.visual_mask_NR = torch.ones(batch.num_sequences, NUM_VISUAL, dtype=torch.bool)
        return batch

    def encode_unimodal(batch: Any) -> StudentOutput:
        text_NLH = states_VH[batch.token_ids_NL]
        return StudentOutput(
            text_states_NLH=text_NLH,
            visual_states_NRH=batch.planted_BRH[batch.example_N],
            pooled_NP=text_NLH.mean(1),
        )

    student.collate = collate_planted  # type: ignore[method-assign]
    student.encode_unimodal = encode_unimodal  # type: ignore[method-assign]
    student.hidden_size = WIDTH
    return student


def test_words_by_which_a_student_sees_are_landmarks_and_the_estimate_repeats(small_corpus: SmallCorpus) -> None:
    dataset, examples = small_corpus.dataset(), small_corpus.examples()
    prior = fit_word_prior(candidate.text for example in examples for candidate in example.candidates)
    is_known_V = torch.rand(30_600, generator=torch.Generator().manual_seed(2)) < 0.2
    student = grounded_student(examples, lambda token: bool(is_known_V[token]))
    found = estimate_words(student, dataset, range(len(dataset)), prior)
    assert not found.why, found.why
    assert found == estimate_words(student, dataset, range(len(dataset)), prior)
    vocabulary = Tokenizer.from_file(str(embedded_tokenizer_file())).get_vocab()
    # Of a word of several tokens a part may be known.
    known = {row.word: bool(is_known_V[vocabulary[row.word]]) for row in found.rows if row.word in vocabulary}
    of_class = {row.word: row.word_class for row in found.rows}
    landmarks = [known[word] for word in known if of_class[word] == "landmark"]
    assert len(landmarks) >= 4
    assert sum(landmarks) >= 0.9 * len(landmarks)
    moved = [known[word] for word in known if of_class[word] == "moved"]
    assert len(moved) >= 20
    assert sum(moved) <= 0.05 * len(moved)


@pytest.fixture(scope="module")
def estimating(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a student without a record; what it said is in `said.txt`."""
    run = tmp_path_factory.mktemp("estimating") / "run"
    done = completed(*small_corpus.command(run))
    assert done.returncode == 0, done.stderr
    (run / "said.txt").write_text(done.stderr, encoding="utf-8")
    return run


def test_a_run_without_a_record_writes_its_words_says_what_it_found_and_takes_the_table_back(
    estimating: Path, small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    # Random weights know no word.
    said = (estimating / "said.txt").read_text(encoding="utf-8")
    (line,) = [line for line in said.splitlines() if "nothing to hold on" in line]
    assert json.loads((estimating / "settings.json").read_text(encoding="utf-8"))["known_words"] == line
    words = read_words(estimating)
    assert words is not None
    assert set(words["class"]) == {"held"}
    assert json.loads((estimating / "run.json").read_text(encoding="utf-8"))["estimated_words"] == 1
    rows = list(csv.DictReader((estimating / "words.csv").read_text(encoding="utf-8").splitlines()))
    edited = tmp_path / "edited.csv"
    with edited.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"class": "landmark" if place % 2 else "moved"} for place, row in enumerate(rows))
    small_corpus.run(tmp_path / "edited", known_words=edited)
    assert "estimated_words" not in json.loads((tmp_path / "edited" / "run.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "edited" / "words.csv").exists()
    texts = json.loads((tmp_path / "edited" / "readout.json").read_text(encoding="utf-8"))["after"]["minilm-l6"]
    assert texts["texts"]["num_asked"] > 10


def test_a_short_run_looks_only_at_the_inputs_of_its_steps(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    num_occurrences = []
    for num_steps in (1, 4):
        small_corpus.run(tmp_path / f"{num_steps}", adapt_steps=num_steps, adapt_texts=8)
        rows = csv.DictReader((tmp_path / f"{num_steps}" / "words.csv").read_text(encoding="utf-8").splitlines())
        num_occurrences.append(sum(int(row["occurrences"]) for row in rows))
    assert 0 < num_occurrences[0] < num_occurrences[1]


def test_controls_anchor_the_same_words_and_plain_needs_none(
    estimating: Path, small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    for method in ("plain-two-step", "plain"):
        small_corpus.run(tmp_path / method, method=method, cache=())
    assert (tmp_path / "plain-two-step/words.csv").read_bytes() == (estimating / "words.csv").read_bytes()
    assert not (tmp_path / "plain/words.csv").exists()


@pytest.mark.slow
def test_the_command_writes_a_table_that_a_run_takes_and_measures_it_against_a_record(
    small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    torch.manual_seed(0)
    save_student(folder, build_student("scenes-small", overrides={"word_size": 16}), origin={})
    given = ("--cache", small_corpus.caches[0], "--data-root", small_corpus.data_root)
    done = completed("students", "words", folder, *given, "--output", tmp_path / "words.csv")
    assert done.returncode == 0, done.stderr
    assert "nothing to hold on" in done.stdout
    assert "area under the curve" not in done.stdout
    table = read_known_words(tmp_path / "words.csv")
    assert table.classes
    write_known_words(folder, dict.fromkeys(list(table.classes)[::3], 9))
    measured = completed("students", "words", folder, *given, "--output", tmp_path / "words.csv", "--json")
    assert 0.3 < json.loads(measured.stdout)["record_auc"] < 0.7
    # A name stands for a student before training; its weights, and no folder's, may be given beside it.
    by_name = completed("students", "words", "efficientnet-minilm", *given, "--output", tmp_path / "named.csv")
    assert by_name.returncode == 0, by_name.stderr
    refused = completed("students", "words", folder, "--init", folder, *given, "--output", tmp_path / "words.csv")
    assert refused.returncode == 2
    assert "--init" in refused.stderr
    (tmp_path / "mine.csv").write_text("my own table\n", encoding="utf-8")
    foreign = completed("students", "words", folder, *given, "--output", tmp_path / "mine.csv")
    assert foreign.returncode == 2
    assert (tmp_path / "mine.csv").read_text(encoding="utf-8") == "my own table\n"


def test_a_readout_says_before_training_that_nothing_is_known(small_corpus: SmallCorpus, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_student(tmp_path / "student", build_student("scenes-small", overrides={"word_size": 16}), origin={})
    given = ("--cache", small_corpus.caches[0], "--data-root", small_corpus.data_root)
    done = completed("readout", tmp_path / "student", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing says which words")


def test_an_estimate_that_decides_few_words_cautions() -> None:
    classes: list[WordClass] = ["landmark", "held", "moved", "moved"]
    rows = [WordRow(word=of, num_occurrences=9, score=0.0, word_class=of) for of in classes]
    assert "caution" not in WordEstimate(rows=tuple(rows)).line()
    assert "caution" in WordEstimate(rows=tuple(rows[:3])).line()
