"""`advl readout` as a user runs it, and the readout that a run with an adapt step leaves."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from commands import completed
from own_rows import choice_row, write_json_lines
from small_corpus import SmallCorpus, build_small_corpus

from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.runs.results import read_readout
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student
from advl_pipeline.students.weight_files import write_known_words
from advl_pipeline.training.run import run_finetune


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return build_small_corpus(tmp_path_factory.mktemp("readout"))


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    torch.manual_seed(0)
    save_student(folder, build_student("scenes-small"), origin={})
    write_known_words(folder, dict.fromkeys("is a an the it of to that with for in on and".split(), 50))
    return folder


def readout(*arguments: object) -> subprocess.CompletedProcess[str]:
    return completed("readout", *arguments)


def test_the_command_tells_agreement(corpus: SmallCorpus, student_folder: Path) -> None:
    caches = [argument for path in corpus.caches for argument in ("--cache", path)]
    done = readout(student_folder, *caches, "--data-root", corpus.data_root, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    words = found["placement"]["minilm-l6"]["words"]
    assert words["chance"] == 0.25
    assert 0 <= words["share"] <= 1
    assert found["placement"]["minilm-l6"]["regions"] is None
    assert found["placement"]["efficientnet-lite0"]["regions"]["num_asked"] > 10
    told = readout(student_folder, *caches, "--data-root", corpus.data_root)
    assert "minilm-l6  words:" in told.stdout
    assert "(chance 25 %)" in told.stdout


def test_what_cannot_be_read_is_refused(corpus: SmallCorpus, student_folder: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        ((student_folder,), 2, "needs a teacher cache"),
        ((tmp_path, "--cache", corpus.caches[0]), 6, "no saved student"),
    ):
        refused = readout(*arguments, "--data-root", corpus.data_root)
        assert refused.returncode == code, refused.stderr
        assert message in refused.stderr
        assert "next:" in refused.stderr


def test_a_path_of_a_caches_record_is_opened_where_it_was_typed_or_is_the_runs_own(
    corpus: SmallCorpus, student_folder: Path, tmp_path: Path
) -> None:
    own = write_json_lines(tmp_path / "mine.jsonl", map(choice_row, range(20)))
    strange = tmp_path / "strange"
    run_extract(ExtractConfig(teacher="minilm-l6", dataset=str(own), output=strange, confidence=False))
    for cache, typed in (
        (corpus.caches[0], ("--data-root", corpus.data_root)),
        (strange, ("--data", own)),
    ):
        refused = readout(student_folder, "--cache", cache)
        assert refused.returncode == 2, refused.stderr
        assert "only paths that you give are opened" in refused.stderr
        advised = shlex.split(refused.stderr.partition("next:")[2])
        assert advised[:3] == ["advl", "readout", str(student_folder)]
        for words in (advised[2:], [student_folder, "--cache", cache, *typed]):
            done = readout(*words)
            assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    run_finetune(corpus.config(run))
    done = readout(run, "--cache", corpus.caches[0])
    assert done.returncode == 0, done.stderr
    assert "only paths that you give are opened" in readout(run, "--cache", strange).stderr


def test_a_run_reads_out_before_and_after_its_adapt_step_against_the_true_teacher(
    corpus: SmallCorpus, tmp_path: Path
) -> None:
    for name, changes in (("true", {}), ("shuffled", {"teacher_control": "shuffle"})):
        run_finetune(corpus.config(tmp_path / name, **changes))
    true, shuffled = (
        json.loads((tmp_path / name / "readout.json").read_text(encoding="utf-8")) for name in ("true", "shuffled")
    )
    assert true["before"] == shuffled["before"]
    assert set(true["after"]) == {"minilm-l6", "efficientnet-lite0"}
    gathered = read_readout(tmp_path / "true")
    by_nodes = {(row["teacher"], row["nodes"]): row for row in gathered}
    assert set(by_nodes) == {("minilm-l6", "words"), ("efficientnet-lite0", "regions")}
    words = by_nodes["minilm-l6", "words"]
    assert words["before"] == 100 * true["before"]["minilm-l6"]["words"]["share"]
    assert words["after"] == 100 * true["after"]["minilm-l6"]["words"]["share"]
    assert words["chance"] == 25.0
    run_finetune(corpus.config(tmp_path / "plain", method="plain", cache=()))
    assert not (tmp_path / "plain" / "readout.json").exists()
    assert read_readout(tmp_path / "plain") == []


def test_a_cache_of_a_part_and_of_joined_splits_is_read_out(
    corpus: SmallCorpus, student_folder: Path, tmp_path: Path
) -> None:
    for name, made in (("part", {"shots": 4}), ("joined", {"split": "train+val"})):
        run_extract(
            ExtractConfig(
                teacher="minilm-l6",
                dataset="scenes-vcr",
                data_root=corpus.data_root,
                output=tmp_path / name,
                confidence=False,
                **made,
            )
        )
        done = readout(student_folder, "--cache", tmp_path / name, "--data-root", corpus.data_root, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["placement"]["minilm-l6"]["words"]["num_asked"] > 0
