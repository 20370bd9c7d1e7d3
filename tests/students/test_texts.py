"""Students lay texts out as the originals do, by the vocabulary of their word table, and cut them only when asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import completed
from made_examples import unit
from references import ASSETS, reference
from tokenizers import Tokenizer

from advl_pipeline.base.errors import ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.datasets.records import Candidate, Example, ObjectTag, text_unit
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.tokenizer import TokenPart, embedded_tokenizer_file, is_uncased, load_text_tokenizer
from advl_pipeline.students.uniter import NUM_PERSON_TOKENS, Uniter, grow_word_table

CLS_ID, SEP_ID = 101, 102


@pytest.fixture(scope="module")
def student() -> Uniter:
    return build_student("uniter-tiny")


def part(token_ids: list[int]) -> TokenPart:
    return TokenPart(token_ids=token_ids, spans=[(0, 0)] * len(token_ids))


@pytest.mark.parametrize("task", ["qa", "qar"])
def test_rows_equal_the_original_collate(task: str, student: Uniter) -> None:
    expected = reference("uniter_data/vcr_collate_expected.npz")
    items: dict[str, Any] = json.loads((ASSETS / "uniter_data" / "vcr_items.json").read_text())
    assert (student.tokenizer.cls_id, student.tokenizer.sep_id) == (CLS_ID, SEP_ID)
    row = 0
    for item in items.values():
        answers = item["input_ids_as"]
        context = [part(item["input_ids"])]
        if task == "qar":
            context.append(part(answers[item["qa_target"]]))
        for choice in answers if task == "qa" else item["input_ids_rs"]:
            made = student.lay_out([*context, part(choice)], "choice")
            length = len(made.token_ids)
            assert made.token_ids == expected[f"{task}/input_ids"][row][:length].tolist()
            assert made.types == expected[f"{task}/txt_type_ids"][row][:length].tolist()
            assert not expected[f"{task}/input_ids"][row][length:].any()
            row += 1
    assert row == 8


def example(text: str, tags: tuple[ObjectTag, ...] = (), context_length: int = 0) -> Example:
    image = unit(boxes=[[0] * 4] * 3, labels=("person", "dog", "person"))
    candidate = Candidate(text_unit=text_unit(text), context_length=context_length, tags=tags)
    return Example(example_id="e", task="vcr-q2a", image=image, candidates=(candidate,), label=0)


def test_a_person_is_one_token_and_other_objects_are_words(student: Uniter) -> None:
    text = "Why is person_0 near the dog ? person_2 , maybe ."
    spans = [(text.index(word), text.index(word) + len(word)) for word in ("person_0", "dog", "person_2")]
    tags = tuple(ObjectTag(start=start, end=end, box=box) for box, (start, end) in enumerate(spans))
    tensors, num_cut = student.collate_texts([example(text, tags, context_length=text.index(" person_2"))])
    ids, places = tensors["token_ids_NL"][0].tolist(), tensors["char_spans_NL2"][0].tolist()
    first_person = student.config.vocab_size
    assert num_cut == 0
    assert [place for token, place in zip(ids, places, strict=True) if token >= first_person] == [
        list(spans[0]),
        list(spans[2]),
    ]
    assert [token - first_person for token in ids if token >= first_person] == [0, 2]
    assert list(spans[1]) in places


def test_people_beyond_the_table_share_its_last_token(student: Uniter) -> None:
    many = example("person_90 waits .", (ObjectTag(start=0, end=9, box=90),))
    crowd = unit(boxes=[[0] * 4] * 91, labels=("person",) * 91)
    tensors, _ = student.collate_texts([dataclasses.replace(many, image=crowd)])
    assert tensors["token_ids_NL"].max() == student.config.vocab_size + 80


def test_long_texts_are_an_error_unless_cutting_is_asked_for() -> None:
    long = example("why " * 50 + "because " * 10, context_length=199)
    for name, length in (("uniter-tiny", 64), ("scenes-small", 63)):
        with pytest.raises(DatasetError, match="this student takes 20") as raised:
            build_student(name, overrides={"max_text_length": 20}).collate([long])
        assert f"--student-option max_text_length={length}" in str(raised.value.next_command)
        build_student(name, overrides={"max_text_length": length}).text_tokens([long])
    for name in ("uniter-tiny", "scenes-small"):
        student = build_student(name, overrides={"max_text_length": 20})
        student.cut_texts()
        assert student.count_cut([long, example("why", context_length=0)]) == 1
        tokens_NL, _ = student.text_tokens([long])
        assert tokens_NL.shape[1] <= 20
    cutting = build_student("uniter-tiny", overrides={"max_text_length": 20, "overlong": "cut"})
    tensors, num_cut = cutting.collate_texts([long])
    assert num_cut == 1
    assert tensors["token_mask_NL"].sum() == 19
    spans = tensors["char_spans_NL2"][0]
    answer = [list(span) for span in spans.tolist() if span[0] >= 200]
    assert len(answer) == 8


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
    with pytest.raises(ConfigError, match="vocabularies of") as refused:
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
    with pytest.raises(ConfigError, match="vocabularies of") as refused:
        build_student("uniter-tiny", weights=checkpoint)
    assert f"{SMALL} words" in refused.value.why
    # A table may hold person tokens and padding.
    table = torch.zeros(SMALL + NUM_PERSON_TOKENS, 2)
    for rows in (SMALL, len(table), len(table) + 7):
        assert grow_word_table(torch.zeros(rows, 2), table).shape == table.shape
    for rows in (SMALL - 1, len(table) + 8):
        with pytest.raises(ConfigError, match="vocabularies of"):
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
    assert "vocabularies of" in process.stderr
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
