"""`advl readout` as a user types it, and the readout that a run with an adapt stage leaves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from commands import completed
from own_rows import choice_row, write_json_lines
from small_corpus import SmallCorpus

from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.prepare import prepare_extract
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.runs.results import read_readout
from advl_pipeline.students.known_words import write_known_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    torch.manual_seed(0)
    save_student(folder, build_student("scenes-small"), origin={})
    write_known_words(folder, dict.fromkeys("is a an the it of to that with for in on and".split(), 50))
    return folder


def test_the_command_tells_agreement_with_caches_of_a_split_or_of_its_part(
    small_corpus: SmallCorpus, student_folder: Path, tmp_path: Path
) -> None:
    caches = [argument for path in small_corpus.caches for argument in ("--cache", path)]
    done = completed("readout", student_folder, *caches, "--data-root", small_corpus.data_root, "--json")
    assert done.returncode == 0, done.stderr
    agreements = json.loads(done.stdout)["placement"]
    assert agreements["minilm-l6"]["words"]["chance"] == 0.25
    assert 0 <= agreements["minilm-l6"]["words"]["share"] <= 1
    assert agreements["minilm-l6"]["regions"] is None
    assert agreements["efficientnet-lite0"]["regions"]["num_asked"] > 10
    part = small_corpus.extract(tmp_path / "part", shots=4, confidence="none")
    described = completed("readout", student_folder, "--cache", part, "--data-root", small_corpus.data_root)
    assert "minilm-l6  words:" in described.stdout, described.stderr
    assert "(chance 25 %)" in described.stdout


def test_what_cannot_be_read_is_refused(small_corpus: SmallCorpus, student_folder: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        ((student_folder,), 2, "needs a teacher cache"),
        ((tmp_path, "--cache", small_corpus.caches[0]), 6, "no saved student"),
    ):
        refused = completed("readout", *arguments, "--data-root", small_corpus.data_root)
        assert refused.returncode == code, refused.stderr
        assert message in refused.stderr


def test_a_path_of_a_caches_record_is_opened_where_it_was_typed(student_folder: Path, tmp_path: Path) -> None:
    rows_file = write_json_lines(tmp_path / "mine.jsonl", map(choice_row, range(20)))
    cache = tmp_path / "strange"
    run_extract(
        prepare_extract(ExtractConfig(teacher="minilm-l6", dataset=str(rows_file), output=cache, confidence="none"))
    )
    refused = completed("readout", student_folder, "--cache", cache)
    assert refused.returncode == 2, refused.stderr
    assert "opened only if you give them" in refused.stderr
    advised = shlex.split(refused.stderr.partition("next:")[2])
    assert advised[:3] == ["advl", "readout", str(student_folder)]
    done = completed(*advised[1:])
    assert done.returncode == 0, done.stderr


def test_a_run_reads_out_before_and_after_its_adapt_step_against_the_true_teacher(
    small_corpus: SmallCorpus, tmp_path: Path
) -> None:
    for name, changes in (("true", {}), ("shuffled", {"teacher_control": "shuffle"})):
        small_corpus.run(tmp_path / name, **changes)
    true, shuffled = (
        json.loads((tmp_path / name / "readout.json").read_text(encoding="utf-8")) for name in ("true", "shuffled")
    )
    assert true["before"] == shuffled["before"]
    assert set(true["after"]) == {"minilm-l6", "efficientnet-lite0"}
    assert true["after"]["minilm-l6"]["regions"] is None
    regions, words = read_readout(tmp_path / "true")
    assert (words.teacher, words.nodes) == ("minilm-l6", "words")
    assert (regions.teacher, regions.nodes) == ("efficientnet-lite0", "regions")
    for time in ("before", "after"):
        assert getattr(words, time) == 100 * true[time]["minilm-l6"]["words"]["share"]
    assert words.chance == 25.0
    ranks = true["effective_rank"]
    assert ranks["before"] == shuffled["effective_rank"]["before"] != ranks["after"]
    assert all(1 <= rank <= 128 for of_time in ranks.values() for rank in of_time.values())
    assert [set(of_time) for of_time in ranks.values()] == [{"words", "regions"}] * 3
    small_corpus.run(tmp_path / "plain", method="plain", cache=())
    assert not (tmp_path / "plain" / "readout.json").exists()
    assert read_readout(tmp_path / "plain") == []
