"""A student reads by the vocabulary of its word table: another is refused, the one beside its weights is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import completed
from tokenizers import Tokenizer

from advl_pipeline.base.errors import ConfigError, WeightsUnavailable
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.tokenizer import embedded_tokenizer_file, is_uncased, load_text_tokenizer
from advl_pipeline.students.uniter import NUM_PERSON_TOKENS, grow_word_table

SMALL = 600
"""Word pieces of a small cased vocabulary."""


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with BERT's plain vocab.txt and nothing else, of a few hundred cased word pieces."""
    letters = [chr(code) for code in (*range(33, 127),)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder = tmp_path_factory.mktemp("cased vocabulary")
    words = [f"Word{number}" for number in range(SMALL - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join([*tokens, *words]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkpoint(cased: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UNITER's file of a student of that vocabulary, without person tokens, beside the vocabulary."""
    student = build_student("uniter-tiny", overrides={"tokenizer": str(cased), "vocab_size": SMALL})
    state = {name.replace("model.", "uniter.", 1): value for name, value in student.state_dict().items()}
    words = "uniter.embeddings.word_embeddings.weight"
    state[words] = state[words][:SMALL]
    folder = tmp_path_factory.mktemp("weights")
    (folder / "vocab.txt").write_bytes((cased / "vocab.txt").read_bytes())
    torch.save(state, folder / "uniter-tiny.pt")
    return folder / "uniter-tiny.pt"


@pytest.mark.parametrize("name", ["uniter-base", "vilt"])
def test_published_students_refuse_another_vocabulary(name: str, cased: Path) -> None:
    wrong = "minilm-l6" if name == "uniter-base" else str(cased)
    with torch.device("meta"):
        student = build_student(name, overrides={"tokenizer": wrong})
    with pytest.raises(ConfigError, match="another vocabulary") as refused:
        student.require_inputs()
    assert "rows" in refused.value.why
    # What is advised is the student's own, never the embedded one that has just been refused.
    assert "minilm" not in refused.value.next_command
    assert "tokenizer.json or vocab.txt of" in refused.value.next_command


def test_the_embedded_tokenizer_is_advised_for_its_own_vocabulary_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, advised in (("bert-base-cased", False), ("bert-base-uncased", True), ("/no/such/folder", False)):
        with pytest.raises(WeightsUnavailable) as missing:
            load_text_tokenizer(name)
        assert ("minilm-l6" in missing.value.next_command) == advised


def test_a_plain_vocabulary_file_is_a_tokenizer_and_keeps_its_case(cased: Path) -> None:
    tokenizer = load_text_tokenizer(str(cased))
    assert tokenizer.vocab_size == SMALL
    vocabulary = (cased / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert not is_uncased(vocabulary)
    assert tokenizer._tokenizer.encode("Word3", add_special_tokens=False).ids == [vocabulary.index("Word3")]
    assert is_uncased(list(Tokenizer.from_file(str(embedded_tokenizer_file())).get_vocab()))


def test_a_checkpoint_of_another_vocabulary_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="another vocabulary than the student") as refused:
        build_student("uniter-tiny", weights=checkpoint)
    assert f"{SMALL} rows" in refused.value.why
    # A table may hold person tokens and padding.
    table = torch.zeros(SMALL + NUM_PERSON_TOKENS, 2)
    for rows in (SMALL, len(table), len(table) + 7):
        assert grow_word_table(torch.zeros(rows, 2), table).shape == table.shape
    for rows in (SMALL - 1, len(table) + 8):
        with pytest.raises(ConfigError, match="another vocabulary"):
            grow_word_table(torch.zeros(rows, 2), table)


def test_the_tokenizer_beside_the_weights_is_taken_and_goes_with_the_run(
    small_corpus: Any, checkpoint: Path, tmp_path: Path
) -> None:
    """Then the run needs neither the checkpoint nor its vocabulary any more."""
    moved = tmp_path / "weights" / checkpoint.name
    moved.parent.mkdir()
    moved.write_bytes(checkpoint.read_bytes())
    (moved.parent / "vocab.txt").write_bytes((checkpoint.parent / "vocab.txt").read_bytes())
    common = [
        *("finetune", "--dataset", "scenes-vcr", "--data-root", small_corpus.data_root, "--student", "uniter-tiny"),
        *("--method", "plain", "--num-steps", 1, "--batch-size", 2, "--task", "vcr-q2a", "--regions", "pixels"),
        *("--init", moved, "--student-option", f"vocab_size={SMALL}"),
    ]
    run = tmp_path / "run"

    process = completed(*common, "--tokenizer", "minilm-l6", "--output", run)
    assert process.returncode == 2
    assert "another vocabulary" in process.stderr
    assert not run.exists()
    process = completed(*common, "--output", run)
    assert process.returncode == 0, process.stderr
    assert f"tokenizer: {moved.parent}" in process.stderr
    for file in (moved, moved.parent / "vocab.txt"):
        file.unlink()
    process = completed("evaluate", run, "--data-root", small_corpus.data_root, "--probe", "none")
    assert process.returncode == 0, process.stderr
    student = build_student("uniter-tiny", weights=run)
    assert student.tokenizer.vocab_size == SMALL
    assert json.loads((run / "student.json").read_text(encoding="utf-8"))["config"]["vocab_size"] == SMALL
