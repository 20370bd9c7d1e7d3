"""What chat students do beyond transformers: candidates share a row, answers come in parts or as letters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_near
from commands import printed
from made_examples import picture, question
from own_rows import COLOURS, choice_row, write_json_lines
from run_logs import items_file
from tiny_chat_models import write_tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForImageTextToText

from advl_pipeline.base.errors import AdvlError, ConfigError, DatasetError, WeightsUnavailable
from advl_pipeline.datasets.listed_options import CLOSINGS
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example, ImageUnit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.runs.results import read_json
from advl_pipeline.students import chat_batch, chat_model
from advl_pipeline.students.chat import Chat
from advl_pipeline.students.chat_model import model_config
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.targets import TaskTargets, score_task

LABELS = ("contradiction", "entailment", "it is neutral")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageUnit, ImageUnit]:
    folder = tmp_path_factory.mktemp("pictures")
    return picture(folder / "a.png"), picture(folder / "b.png", 90, 200, seed=2)


@pytest.fixture(scope="module")
def choices(pictures: tuple[ImageUnit, ImageUnit]) -> list[Example]:
    wide, tall = pictures
    answers = ["Because it's raining in 1987.", "A dog.", "They are lost, café."]
    return [
        question(wide, "Why is person1 pointing?", "vcr-q2a", answers),
        question(tall, "What is it?", "vcr-q2a", answers[:2]),
    ]


@pytest.fixture(scope="module")
def hypotheses(pictures: tuple[ImageUnit, ImageUnit]) -> list[Example]:
    wide, tall = pictures
    return [
        question(wide, "A man walks his dog.", "snli-ve"),
        question(tall, "Two children are outside near a lake.", "snli-ve"),
    ]


def tiny(name: str = "smolvlm-tiny", **overrides: Any) -> GenerativeStudent:
    """Return a chat student with weights far enough from zero to tell answers apart."""
    preset = GenerativeStudent.presets[name]["architecture"]
    table = {**preset, "text_config": {**preset["text_config"], "initializer_range": 0.2}}
    torch.manual_seed(0)
    built = build_student(name, overrides={"architecture": table, **overrides}).eval()
    assert isinstance(built, GenerativeStudent)
    return built


@pytest.fixture(scope="module")
def words() -> GenerativeStudent:
    return tiny()


@pytest.mark.parametrize("name", ["smolvlm-tiny", "qwen3-vl-tiny"])
def test_candidates_lie_in_one_row_behind_their_picture(name: str, choices: list[Example]) -> None:
    """Every layer sees a picture once, one mask of the type that it computes in, and no state of it is kept."""
    student = tiny(name)
    batch = student.collate(choices)
    seen: list[tuple[torch.Size, torch.Tensor]] = []
    for layer in student.decoder.layers:
        layer.register_forward_pre_hook(
            lambda _, inputs, options: seen.append((inputs[0].shape, options["attention_mask"])), with_kwargs=True
        )
    # torch's fused attention in bfloat16 fails where it is told to do without AVX-512 on a processor that has it.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        pooled = student.encode_pooled(batch)
    assert len(seen) == len(student.decoder.layers)
    ((num_rows, width),) = {tuple(shape[:2]) for shape, _ in seen}
    pictures = batch.visual_mask_NR.sum(1)
    assert num_rows == 2
    # A row is as long as its sequences without the pictures that they would repeat, and what fills it up to eights.
    lengths = batch.length_N.split(list(batch.num_candidates))
    alone = [
        int(of_example.sum()) - int(pictures[first]) * (len(of_example) - 1)
        for first, of_example in zip((0, 3), lengths, strict=True)
    ]
    assert width % 8 == 0
    assert width <= max(alone) + 7
    masks = [mask for _, mask in seen]
    assert all(mask is masks[0] for mask in masks)
    assert masks[0].dtype == torch.bfloat16
    assert pooled.text_states_NLH.numel() == 0
    assert pooled.answered is not None


def test_a_long_list_is_scored_in_parts(
    words: GenerativeStudent, hypotheses: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{word} {other}" for word in ("red", "green", "two") for other in ("dogs", "children", "of them")]
    asked = words.collate(hypotheses)
    whole = words.encode(words.with_answers(asked, "vqa", names))
    monkeypatch.setattr(chat_batch, "TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(chat_model, "ROWS_AT_ONCE", 7)
    parts = words.with_answers(asked, "vqa", names)
    assert len(parts.passes) > 3
    in_parts = words.encode(parts)
    assert_near(in_parts.answered.log_likelihood_NK, whole.answered.log_likelihood_NK)
    assert torch.equal(in_parts.answered.num_tokens_NK, whole.answered.num_tokens_NK)
    # What lies behind a sequence changes none of its states.
    assert_near(whole.text_states_NLH, words.encode(asked).text_states_NLH)


def test_training_scores_the_answers_that_annotators_gave(
    words: GenerativeStudent, hypotheses: list[Example]
) -> None:
    names = ("yes", "no", "two dogs", "red")
    asked = words.collate(hypotheses)
    every = words.encode(words.with_answers(asked, "vqa", names)).answered
    scores = torch.tensor([[0.0, 0.3, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    output = words.encode(words.with_answers(asked, "vqa", names, scores > 0))
    assert_near(output.answered.scores[0, 1:3], every.scores[0, 1:3])
    assert output.answered.scores[scores == 0].eq(-torch.inf).all()
    targets = TaskTargets(is_choice=False, label_B=None, scores_BK=scores)
    scored = score_task("answer-lm", words.build_head("answers", 4), output, (1, 1), targets)
    share = torch.tensor([0.3 / 1.3, 1.0 / 1.3])
    likelihood, number = every.log_likelihood_NK[0, 1:3], every.num_tokens_NK[0, 1:3]
    torch.testing.assert_close(scored.loss, -(share * likelihood).sum() / (share * number).sum())


def test_lengths_are_normalised_as_asked(
    words: GenerativeStudent, choices: list[Example], hypotheses: list[Example]
) -> None:
    config = words.config
    for kind, divided in (("choices", (True, False)), ("all", (True, True)), ("none", (False, False))):
        words.config = dataclasses.replace(config, length_normalised=kind)
        asked = words.collate(choices), words.with_answers(words.collate(hypotheses), "snli-ve", LABELS)
        for batch, is_divided in zip(asked, divided, strict=True):
            answered = words.encode(batch).answered
            number = answered.num_tokens_NK if is_divided else 1
            torch.testing.assert_close(answered.scores, answered.log_likelihood_NK / number)
    words.config = config


@pytest.mark.parametrize(("name", "number"), [("2b", 2127532032), ("4b", 4437815808), ("8b", 8767123696)])
def test_sizes_have_the_published_number_of_parameters(name: str, number: int) -> None:
    preset = GenerativeStudent.presets[f"qwen3-vl-{name}"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(model_config(preset["architecture"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == number


def test_pixels_are_bounded_as_asked(tmp_path: Path) -> None:
    unit = picture(tmp_path / "a.png", 320, 240)
    sizes = {
        most: sum(tiny("qwen3-vl-tiny", max_pixels=most).read_picture(unit).runs) for most in (2048, 4096, 16384)
    }
    assert sizes == {2048: 6, 4096: 12, 16384: 54}


PLAIN, LONG = "What is it?", " ".join(["word"] * 600)

REFUSED: dict[str, tuple[str, dict[str, Any], tuple[int, ...], str, type[AdvlError], str, str]] = {
    "a layer": ("smolvlm-tiny", {"align_layer": 4}, (), PLAIN, ConfigError, "has no layer 4", "model has 3"),
    "bounds": ("qwen3-vl-tiny", {"max_pixels": 512}, (), PLAIN, ConfigError, "than max_pixels", "min_pixels=512"),
    "a setting": ("smolvlm-tiny", {"max_pixels": 9}, (), PLAIN, ConfigError, "no setting max_pixels", "leave out"),
    "mark": ("smolvlm-tiny", {}, (64, 64), "What is <image>?", DatasetError, "token of the picture", "reword"),
    "tiles": (
        "smolvlm-tiny", {"image_splitting": True, "longest_edge": 64 * 8}, (200, 200), PLAIN, ConfigError,
        "at most 6 x 6", "longest_edge=384",
    ),
    "long, tiles": (
        "smolvlm-tiny", {"image_splitting": True, "longest_edge": 64 * 6}, (900, 700), LONG, DatasetError,
        "has 1024 positions", "image_splitting=false",
    ),
    "long, patches": (
        "qwen3-vl-tiny", {"max_pixels": 1 << 19}, (900, 700), LONG, DatasetError, "has 1024 positions", "max_pixels=",
    ),
    "a strip": ("qwen3-vl-tiny", {}, (2010, 10), PLAIN, DatasetError, "cannot be read", "200 to 1"),
}  # fmt: skip
"""What is asked for -> student, settings, size of the picture, question, and what is said."""


def collated(name: str, settings: dict[str, Any], asked: Example) -> None:
    student = tiny(name, **settings)
    student.require_inputs()
    student.collate([asked])


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_read_is_refused_by_name(case: str, tmp_path: Path) -> None:
    name, settings, size, text, kind, what, said = REFUSED[case]
    asked = question(picture(tmp_path / "a.png", *size), text, "vqa")
    with pytest.raises(kind, match=what) as refused:
        collated(name, settings, asked)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "family", "of", "changed", "what"),
    [
        ("smolvlm-tiny", "smolvlm", None, {}, "does not belong to these weights"),
        ("chat", "smolvlm", "image_processor", {"max_image_size": {"longest_edge": 64}}, "does not belong"),
        ("chat", "smolvlm", None, {"image_seq_len": 9}, "does not belong"),
        ("chat", "qwen3_vl", "image_processor", {"patch_size": 14}, "does not belong"),
        ("chat", "llava", None, {"chat_template": ""}, "no chat template"),
        ("chat", "llava", None, {"chat_template": "{{ messages[0]['content'][1]['text'] }}"}, "once each"),
    ],
)
def test_a_processor_of_another_model_is_refused(
    name: str, family: str, of: str | None, changed: dict[str, Any], what: str, tmp_path: Path
) -> None:
    processor = write_tiny(family, tmp_path)
    vars(getattr(processor, of) if of else processor).update(changed)
    for file in tmp_path.glob("chat_template*"):
        file.unlink()
    processor.save_pretrained(tmp_path)
    student = build_student(
        name, weights=tmp_path if name == "chat" else None, overrides={"tokenizer": str(tmp_path)}
    )
    with pytest.raises(ConfigError) as refused:
        student.require_inputs()
    assert what in str(refused.value)
    assert refused.value.where == str(tmp_path)


def test_a_folder_without_a_processor_is_named(tmp_path: Path) -> None:
    student = build_student("smolvlm-tiny", overrides={"tokenizer": str(tmp_path)})
    with pytest.raises(WeightsUnavailable, match="processor is not on this machine") as missing:
        student.require_inputs()
    assert missing.value.where == str(tmp_path)


@pytest.fixture(scope="module")
def letters() -> GenerativeStudent:
    built = build_student("smolvlm-tiny", overrides={"options": "letters"})
    assert isinstance(built, GenerativeStudent)
    return built


def rows_of(folder: Path, **changes: object) -> str:
    return str(write_json_lines(folder / "mine.jsonl", [choice_row(0, split=..., **changes)]))


def said(chat: Chat, ids: list[int]) -> str:
    text: str = chat._tokenizer.decode(ids)
    return " ".join(text.split())


@pytest.mark.parametrize("own", ["{text}", "{letter}. {text}", "({letter}) {text}"])
def test_a_candidate_is_its_letter_and_its_words_are_those_of_its_line(
    letters: GenerativeStudent, tmp_path: Path, own: str
) -> None:
    """Options that begin with their letter are listed as they are written."""
    choices = [own.format(letter=letter, text=text) for letter, text in zip("ABCD", COLOURS, strict=False)]
    example = open_dataset(rows_of(tmp_path, choices=choices, label=0), split="train")[0]
    assert example.task in MULTIPLE_CHOICE_TASKS
    picture = letters.read_picture(example.image)
    rows = letters.chat.rows(example.candidates, example.task, "", picture, lists_options=True)
    hidden = letters.chat.rows(example.candidates, example.task, "", picture)
    for number, (row, plain, candidate) in enumerate(zip(rows, hidden, example.candidates, strict=True)):
        whole = said(letters.chat, row.token_ids_S.tolist())
        question = candidate.text[: candidate.context_length].lower()
        options = [each.answer for each in example.candidates]
        lines = [f"{letter}. {text}" for letter, text in zip("abcd", options, strict=True)]
        listed = " ".join(lines if own == "{text}" else options).lower()
        assert f"{question} {listed} {CLOSINGS['letters'].lower()}".replace(" ", "") in whole.replace(" ", "")
        answer = said(letters.chat, row.token_ids_S[row.prompt_length :].tolist())
        assert answer.split()[0].rstrip(".") == "abcd"[number]
        # As many tokens are told to be of the candidate, and they stand for the same characters.
        spans = [tuple(span) for span in row.spans_S2.tolist() if span[1]]
        assert spans == [tuple(span) for span in plain.spans_S2.tolist() if span[1]]
        of_answer = [place for place, span in enumerate(row.spans_S2.tolist()) if span[0] >= candidate.answer_start]
        words = said(letters.chat, row.token_ids_S[of_answer].tolist())
        assert words.replace(" ", "") == options[number].replace(" ", "").lower()
        assert max(of_answer) < row.prompt_length, "they are read in the question, not in the answer"


def test_yes_and_no_are_not_listed_and_letters_end_at_z(letters: GenerativeStudent, tmp_path: Path) -> None:
    asked = open_dataset(rows_of(tmp_path, choices=["yes", "no"], label=0), split="train")[0]
    picture = letters.read_picture(asked.image)
    (row, _) = letters.chat.rows(asked.candidates, asked.task, "", picture, lists_options=True)
    (plain, _) = letters.chat.rows(asked.candidates, asked.task, "", picture)
    assert row.token_ids_S.tolist() == plain.token_ids_S.tolist()
    many = [f"thing {number}" for number in range(27)]
    wide = open_dataset(rows_of(tmp_path / "b", choices=many, label=0), split="train")[0]
    assert len(letters.chat.rows(wide.candidates, wide.task, "", picture)) == 27
    with pytest.raises(DatasetError, match="27 options, and letters go from A to Z"):
        letters.chat.rows(wide.candidates, wide.task, "", picture, lists_options=True)


def test_a_run_is_trained_and_scored_with_options_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [choice_row(number, split=("train", "test")[number % 2]) for number in range(8)]
    data, run = write_json_lines(tmp_path / "mine.jsonl", rows), tmp_path / "run"
    words = ("--student", "smolvlm-tiny", "--student-option", "options=letters", "--method", "plain")
    printed(capsys, "finetune", "--data", data, *words, "--num-steps", 2, "--batch-size", 2, "--output", run)
    assert read_json(run / "student.json")["config"]["options"] == "letters"
    printed(capsys, "evaluate", run, "--on", "test", "--probe", "none")
    printed(capsys, "evaluate", run, "--on", "test", "--as", "letters")
    assert items_file(run, "test@letters").is_file()
