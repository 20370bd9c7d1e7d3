"""Public sets as published: synthetic rows in the columns, types and files of their repositories."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, List, Value
from PIL import Image

datasets.disable_progress_bars()

COLOURS = ("red", "green", "blue", "yellow", "white")
LETTERS = "ABCDE"


@dataclass(frozen=True)
class Sample:
    """A question on a picture with four choices."""

    picture: bytes
    question: str
    choices: tuple[str, ...]
    right: int


def colour_samples(count: int) -> list[Sample]:
    """Return questions about single-colour pictures, all different."""
    samples = []
    for number in range(count):
        file = io.BytesIO()
        image = Image.new("RGB", (32, 24), COLOURS[number % 5])
        image.putpixel((number % 32, number // 32), (1, 2, 3))
        image.save(file, "PNG")
        choices = tuple(COLOURS[(number + step + number // 5) % 5] for step in range(4))
        right = choices.index(COLOURS[number % 5]) if COLOURS[number % 5] in choices else 0
        samples.append(Sample(file.getvalue(), f"Which colour has picture {number}?", choices, right))
    return samples


Samples = Sequence[Sample]
Row = dict[str, Any]
Rows = Callable[[str, Samples], Iterable[tuple[Sample, Row]]]
"""Maps a split and its samples to their rows; pictures and blank columns are filled in later."""

ROWS: dict[str, Rows] = {}
"""Card name -> the function that creates its rows."""


def rows(name: str) -> Callable[[Rows], Rows]:
    """Register the function that creates the rows of a card."""

    def register(make: Rows) -> Rows:
        ROWS[name] = make
        return make

    return register


def each(name: str) -> Callable[[Callable[[str, int, Sample], Row]], None]:
    """Register a function that creates one row per sample of a split."""

    def register(make: Callable[[str, int, Sample], Row]) -> None:
        ROWS[name] = lambda split, part: ((sample, make(split, number, sample)) for number, sample in enumerate(part))

    return register


def stored(picture: bytes | None) -> Row | None:
    """Return a picture in the library's storage format."""
    return None if picture is None else {"bytes": picture, "path": "picture.jpg"}


@each("aokvqa")
def _aokvqa(split: str, number: int, sample: Sample) -> Row:
    asked = {"question_id": f"{split[:2]}{number}", "question": sample.question, "choices": list(sample.choices)}
    asked["difficult_direct_answer"] = number % 3 == 2
    if split == "test":
        return asked | {"direct_answers": None, "rationales": []}
    return asked | {
        "correct_choice_idx": sample.right,
        # A Python list as text, with an apostrophe.
        "direct_answers": repr([sample.choices[sample.right], "it's dark"] * 5),
        "rationales": [f"{number} shows {sample.choices[sample.right]}.", "So it is."],
    }


@each("scienceqa")
def _scienceqa(_: str, number: int, sample: Sample) -> Row:
    return {
        "image": stored(sample.picture if number % 4 else None),
        "question": sample.question,
        # Two to five choices, all numbers in some questions.
        "choices": [*sample.choices[: sample.right + 1], "7"] if number % 3 else ["2", "1", "0"],
        "answer": sample.right if number % 3 else 1,
        "hint": "The figure shows a colour." if number % 2 else "",
        "subject": "natural science" if number % 2 else "language science",
        "topic": "physics" if number % 2 else "punctuation",
        "grade": f"grade{1 + number % 12}",
    }


@each("vqa-v2-hf")
def _vqa_v2(_: str, number: int, sample: Sample) -> Row:
    right = sample.choices[sample.right]
    asked = {"image_id": number, "question_id": number, "question": sample.question, "answer_type": "other"}
    answers = [
        {"answer": text, "answer_confidence": "yes", "answer_id": person}
        for person, text in enumerate([right] * 7 + ["dark"] * 3)
    ]
    return asked | {"multiple_choice_answer": right, "answers": answers}


@each("snli-ve-hf")
def _snli_ve(_: str, number: int, sample: Sample) -> Row:
    colour = sample.choices[sample.right if number % 3 == 0 else sample.right - 1]
    return {"premise": "A picture.", "hypothesis": f"It is {colour}.", "label": number % 3}


@each("gqa")
def _gqa(_: str, number: int, sample: Sample) -> Row:
    asked = {"id": f"{number:07}", "imageId": f"n{number // 2}", "question": f"{sample.question} ({number})"}
    types = {"structural": ("query", "verify", "choose")[number % 3], "semantic": "attr", "detailed": "directOf"}
    groups = {"global": ("colour", None)[number % 2], "local": ""}
    return asked | {"answer": sample.choices[sample.right], "groups": groups, "types": types}


@rows("gqa-pictures")
def _gqa_pictures(_: str, part: Samples) -> Iterator[tuple[Sample, Row]]:
    # In a different order than the questions, with one unused picture.
    yield part[0], {"id": "unused"}
    for number in reversed(range(0, len(part), 2)):
        yield part[number], {"id": f"n{number // 2}"}


@each("vcr-hf")
def _vcr(split: str, number: int, sample: Sample) -> Row:
    right = None if split == "test" else sample.right
    return {
        "annot_id": f"{split}-{number}",
        "img_fn": f"m/{number}.jpg",
        "metadata_fn": f"m/{number}.json",
        "objects": ["person"],
        "question_text": sample.question,
        "question_tokens": [{"kind": "text", "text": sample.question, "object_indices": []}],
        "answer_choice_texts": list(sample.choices),
        "rationale_choice_texts": [f"[person1] sees {choice}." for choice in sample.choices],
        "answer_label": right,
        "rationale_label": right,
    }


@each("vcr-pictures")
def _vcr_pictures(_: str, number: int, __: Sample) -> Row:
    return {"img_fn": f"m/{number}.jpg", "objects": ["person"], "boxes": [[0.0, 0.0, 9.0, 9.0, 0.9]]}


@each("cv-bench")
def _cv_bench(_: str, number: int, sample: Sample) -> Row:
    source = ("ADE20K", "COCO", "Omni3D")[number % 3]
    fields = {"idx": number, "type": "2D", "task": ("Count", "Relation")[number % 2], "question": sample.question}
    return fields | {"choices": list(sample.choices), "answer": f"({LETTERS[sample.right]})", "source": source}


@each("mmstar")
def _mmstar(_: str, number: int, sample: Sample) -> Row:
    options = (f"{letter}: It is {choice}." for letter, choice in zip(LETTERS, sample.choices, strict=False))
    asked = {"index": number, "question": f"{sample.question}\nOptions: {', '.join(options)}"}
    return asked | {"answer": LETTERS[sample.right], "category": "math", "l2_category": "geometry"}


@each("realworldqa")
def _realworldqa(_: str, number: int, sample: Sample) -> Row:
    if number % 3 == 0:
        return {"question": "How many are there?\nPlease answer with a number.", "answer": "2"}
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABC", sample.choices, strict=False))
    asked = "Please answer directly with only the letter of the correct option and nothing else."
    return {"question": f"{sample.question}\n{options}\n{asked}", "answer": LETTERS[min(sample.right, 2)]}


@rows("pope")
def _pope(_: str, part: Samples) -> Iterator[tuple[Sample, Row]]:
    for category in ("adversarial", "popular"):
        for number, sample in enumerate(part):
            asked = f"Is there a {sample.choices[sample.right - number % 2]} thing in the image?"
            row = {"id": str(number), "question_id": str(number + 1), "category": category, "question": asked}
            yield sample, row | {"answer": "no" if number % 2 else "yes"}


@each("sugarcrepe")
def _sugarcrepe(_: str, __: int, sample: Sample) -> Row:
    pair = [f"A {sample.choices[place]} thing." for place in (sample.right, sample.right - 1)]
    return {"tested_labels": pair, "true_label": pair[0]}


SIDES = ("to the left of", "to the right of")
PLACES = {
    "Controlled_Images_A": (*SIDES, "on", "under"),
    "Controlled_Images_B": (*SIDES, "in front of", "behind"),
    "COCO_QA_one_obj": ("on the left", "on the right"),
    "COCO_QA_two_obj": (*SIDES, "above", "below"),
    "VG_QA_one_obj": ("on the left", "on the right"),
    "VG_QA_two_obj": (*SIDES, "in front of", "behind"),
    "VG_Relation": SIDES,
}


@each("whatsup")
def _whatsup(split: str, number: int, sample: Sample) -> Row:
    where = PLACES[split]
    right = number % len(where)
    end = "" if where[0].startswith("on the") else f" a table {number // 4}"
    captions = [f"A {COLOURS[number // 4 % 5]} thing {place}{end}" for place in (*where[right:], *where[:right])]
    return {"image_options": [stored(sample.picture)], "caption_options": captions}


@rows("naturalbench")
def _naturalbench(_: str, part: Samples) -> Iterator[tuple[Sample, Row]]:
    asked = [f"Image_{picture}_Question_{question}" for question in (0, 1) for picture in (0, 1)]
    for number, pair in enumerate(zip(part[::2], part[1::2], strict=False)):
        is_choice = number % 5 == 4
        answers = ("A", "B", "B", "A") if is_choice else ("Yes", "No", "No", "Yes")
        row: Row = {"Index": number, "Question_Type": "multiple_choice" if is_choice else "yes_no"}
        row |= zip(asked, answers, strict=True)
        for place, each_of in enumerate(pair):
            row[f"Image_{place}"] = stored(each_of.picture)
            row[f"Question_{place}"] = f"Is it {each_of.choices[each_of.right]}?"
            if is_choice:
                row[f"Question_{place}"] = "What is on it? Option: A:a knit cap; B:a helmet;"
        yield pair[0], row


@each("blink")
def _blink(split: str, number: int, sample: Sample) -> Row:
    asked = {"idx": f"{split}_{number}", "question": sample.question, "choices": list(sample.choices)}
    answer = "hidden" if split == "test" else f"({LETTERS[sample.right]})"
    return asked | {"answer": answer, "image_1": stored(sample.picture)}


@rows("hallusion-bench")
def _hallusion_bench(split: str, part: Samples) -> Iterator[tuple[Sample, Row]]:
    for number, sample in enumerate(part if split == "image" else part[:2]):
        places = {"set_id": str(number // 4), "figure_id": str(number % 2), "question_id": str(number // 2 % 2)}
        asked = {"category": "VD", "subcategory": "illusion", "question": sample.question, "visual_input": "1"}
        yield sample, asked | places | {"gt_answer": str(number % 2), "sample_note": "circle"}


@rows("mmvp")
def _mmvp(_: str, part: Samples) -> Iterator[tuple[Sample, Row]]:
    for number, sample in enumerate(part[: len(part) // 2 * 2]):
        asked = {"Index": number + 1, "Question": f"Is the wing of bird {number // 2} open?"}
        yield sample, asked | {"Options": "(a) Open (b) Closed", "Correct Answer": f"({'ab'[number % 2]})"}


@each("vsr")
def _vsr(_: str, number: int, sample: Sample) -> Row:
    told = {"caption": f"The thing is {sample.choices[sample.right - number % 2]}."}
    told["relation"] = ("under", "facing")[number % 2]
    return {"image": f"{number:012}.png", "label": 1 - number % 2, **told}


@each("ai2d")
def _ai2d(_: str, __: int, sample: Sample) -> Row:
    return {"question": sample.question, "options": list(sample.choices), "answer": str(sample.right)}


@each("mmbench")
def _mmbench(split: str, number: int, sample: Sample) -> Row:
    # Each second row asks the question of the row before it again, in another order.
    row: Row = {"index": number // 2 + 1_000_000 * (number % 2), "question": sample.question}
    row |= {"hint": "nan" if number % 2 else "A hint.", "category": "colour", "split": split}
    if number % 3 == 2:
        options, right = (sample.choices[sample.right], sample.choices[sample.right - 1], "nan", "nan"), 0
    else:
        options, right = sample.choices, sample.right
    answer = "" if split == "test" else LETTERS[right]
    return row | dict(zip("ABCD", options, strict=True)) | {"answer": answer}


@each("m3cot")
def _m3cot(split: str, number: int, sample: Sample) -> Row:
    asked = {"id": f"colour-{split}-{number}", "question": sample.question, "choices": list(sample.choices)}
    told = {
        "context": "A figure." if number % 2 else "",
        "answer": LETTERS[sample.right],
        "rationale": "One sees it.",
    }
    return asked | told | {"split": "dev" if split == "validation" else split, "domain": "science"}


@each("seed-bench")
def _seed_bench(_: str, number: int, sample: Sample) -> Row:
    row: Row = {f"choice_{letter}": text for letter, text in zip("abcd", sample.choices, strict=True)}
    row |= {"answer": LETTERS[sample.right], "question": sample.question, "question_id": str(number)}
    is_video = number % 5 == 4
    row |= {"data_type": "video" if is_video else "image", "question_type_id": 1 + number % 2}
    return row | {"image": [stored(sample.picture)] * (1 + is_video)}


@each("mmmu")
def _mmmu(split: str, number: int, sample: Sample) -> Row:
    asked = {
        "id": f"{split}_Art_{number}",
        "question": f"<image 1> {sample.question}",
        "image_1": stored(sample.picture),
    }
    asked["image_2"] = stored(sample.picture) if number % 5 == 3 else None
    if number % 5 == 4:
        return asked | {"options": "[]", "answer": "4.5", "question_type": "open"}
    answer = "?" if split == "test" else LETTERS[sample.right]
    return asked | {"options": repr([*sample.choices]), "answer": answer, "question_type": "multiple-choice"}


@rows("mmmu-pro")
def _mmmu_pro(_: str, part: Samples) -> Iterator[tuple[Sample, Row]]:
    for sample, row in ROWS["mmmu"]("validation", part):
        if row.pop("question_type") == "multiple-choice":
            yield sample, row


TWINS: dict[str, list[dict[str, Any]]] = tomllib.loads(
    Path(__file__).with_name("sets.toml").read_text(encoding="utf-8")
)
"""The repositories of each card."""
for _card, _same in {
    "aokvqa-rationales": "aokvqa",
    "aokvqa-direct": "aokvqa",
    "realworldqa-all": "realworldqa",
}.items():
    TWINS[_card] = [{"rows": _same, **repository} for repository in TWINS[_same]]


def type_of(column: Any) -> Any:
    """Return a column's type in the library."""
    if isinstance(column, list):
        return List(type_of(column[0]))
    if isinstance(column, dict):
        labels = column.get("class_labels")
        return ClassLabel(names=labels) if labels else {name: type_of(kind) for name, kind in column.items()}
    return datasets.Image() if column == "picture" else Value("string" if column == "text" else column)


def shared(samples: Samples, facts: Mapping[str, Any]) -> Iterator[tuple[str, Samples]]:
    """Yield each split of a repository with its samples."""
    first, *others = facts["splits"]
    if "thirds" in facts or not others or facts.get("all"):
        start, end = (len(samples) * third // 3 for third in facts.get("thirds", (0, 3)))
        yield from ((split, samples[start:end]) for split in (first, *others))
        return
    half = len(samples) // 2
    size = (len(samples) - half) // len(others)
    yield first, samples[:half]
    for place, split in enumerate(others):
        yield split, samples[half + place * size : half + (place + 1) * size]


def write_twin(root: Path, card: str, samples: Samples, *, group_rows: int | None = None) -> None:
    """Write the repositories of a card below the datasets folder.

    Args:
        group_rows: rows per row group; None for the library's default.
    """
    pages: dict[str, dict[str, list[str]]] = {}
    parts = [
        (facts, name, split, part)
        for facts in TWINS[card]
        for name in facts.get("names", [""])
        for split, part in shared(samples, facts)
    ]
    for facts, name, split, part in parts:
        repository = facts["repository"].replace("NAME", name)
        configuration = facts.get("configuration", "").replace("NAME", name).replace("SPLIT", split)
        types = {**dict.fromkeys(facts.get("texts", "").split(), "text"), **facts["columns"]}
        made = [*ROWS[facts.get("rows", card)](split, part)]
        folder = root / repository / (configuration or "data")
        if facts.get("lines"):
            folder = folder.parent
            folder.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps({**dict.fromkeys(types, ""), **row}) + "\n" for _, row in made)
            (folder / f"{split}.jsonl").write_text("".join(lines))
            for sample, row in made:
                (folder / row["image"]).write_bytes(sample.picture)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        blank = {column: "" if kind == "text" else None for column, kind in types.items()}
        shown = [{"image": stored(sample.picture)} if "image" in types else {} for sample, _ in made]
        filled = [{**blank, **picture, **row} for picture, (_, row) in zip(shown, made, strict=True)]
        features = Features({column: type_of(kind) for column, kind in types.items()})
        file = folder / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(filled, features=features).to_parquet(file, batch_size=group_rows)
        pages.setdefault(repository, {}).setdefault(configuration, []).append(split)
    for repository, configurations in pages.items():
        if "" in configurations:
            continue
        head = ["---", "configs:"]
        for configuration, splits in configurations.items():
            head += [f"- config_name: {configuration}", "  data_files:"]
            head += [f"  - split: {split}\n    path: {configuration}/{split}-*" for split in splits]
        (root / repository / "README.md").write_text("\n".join([*head, "---", ""]))
