"""Twins of public sets: rows that are made up, in the columns, types and files that their repositories publish."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    """Return questions on pictures of one colour each, no two alike."""
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


@dataclass(frozen=True)
class Part:
    """The rows of one split of one configuration of a repository."""

    repository: str
    split: str
    rows: Sequence[Mapping[str, Any]]
    features: Mapping[str, Any]
    configuration: str = ""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """Of rows that name their pictures, which are then lines of JSON beside them."""


TEXT, WHOLE, PICTURE = Value("string"), Value("int64"), datasets.Image()
TEXTS = List(TEXT)
Samples = Sequence[Sample]


def columns(texts: str, **others: Any) -> dict[str, Any]:
    """Return the columns of a repository: those of texts by their names, others with their types."""
    return dict.fromkeys(texts.split(), TEXT) | others


def rows_of(samples: Samples, features: Mapping[str, Any], row: Callable[[int, Sample], dict[str, Any]]) -> list[Any]:
    """Return a row of each sample: its picture, what is said of it, and a blank in every other column of texts."""
    blank = {name: "" if kind is TEXT else None for name, kind in features.items()}
    return [
        blank | ({"image": stored(sample.picture)} if "image" in features else {}) | row(number, sample)
        for number, sample in enumerate(samples)
    ]


def stored(picture: bytes | None) -> dict[str, Any] | None:
    """Return a picture as the library stores it."""
    return None if picture is None else {"bytes": picture, "path": "picture.jpg"}


def thirds(samples: Samples, *splits: str) -> Iterator[tuple[str, Samples]]:
    """Yield the first half of the samples as the first split, and equal parts of the rest as the others."""
    half, others = len(samples) // 2, len(splits) - 1
    yield splits[0], samples[:half]
    size = (len(samples) - half) // others
    for place, split in enumerate(splits[1:]):
        yield split, samples[half + place * size : half + (place + 1) * size]


def aokvqa(samples: Samples) -> Iterable[Part]:
    features = columns("question_id question direct_answers", image=PICTURE, choices=TEXTS, rationales=TEXTS)
    features |= {"correct_choice_idx": Value("int8"), "difficult_direct_answer": Value("bool")}

    def row(split: str, number: int, sample: Sample) -> dict[str, Any]:
        asked = {"question_id": f"{split[:2]}{number}", "question": sample.question, "choices": list(sample.choices)}
        asked["difficult_direct_answer"] = number % 3 == 2
        if split == "test":
            return asked | {"direct_answers": None, "rationales": []}
        return asked | {
            "correct_choice_idx": sample.right,
            # A list of Python in a text, an apostrophe in it too.
            "direct_answers": repr([sample.choices[sample.right], "it's dark"] * 5),
            "rationales": [f"{number} shows {sample.choices[sample.right]}.", "So it is."],
        }

    for split, part in thirds(samples, "train", "validation", "test"):
        yield Part("HuggingFaceM4/A-OKVQA", split, rows_of(part, features, partial(row, split)), features)


def scienceqa(samples: Samples) -> Iterable[Part]:
    features = columns(
        "question hint task grade subject topic category skill lecture solution",
        image=PICTURE,
        choices=TEXTS,
        answer=Value("int8"),
    )

    def row(number: int, sample: Sample) -> dict[str, Any]:
        return {
            "image": stored(sample.picture if number % 4 else None),
            "question": sample.question,
            # Between two and five choices, each a number in some questions.
            "choices": [*sample.choices[: sample.right + 1], "7"] if number % 3 else ["2", "1", "0"],
            "answer": sample.right if number % 3 else 1,
            "hint": "The figure shows a colour." if number % 2 else "",
            "subject": "natural science" if number % 2 else "language science",
            "topic": "physics" if number % 2 else "punctuation",
            "grade": f"grade{1 + number % 12}",
        }

    for split, part in thirds(samples, "train", "validation", "test"):
        yield Part("derek-thomas/ScienceQA", split, rows_of(part, features, row), features)


def vqa_v2_hf(samples: Samples) -> Iterable[Part]:
    answer = columns("answer answer_confidence", answer_id=WHOLE)
    features = columns("question_type multiple_choice_answer answer_type question", image=PICTURE)
    features |= {"image_id": WHOLE, "question_id": WHOLE, "answers": List(answer)}

    def row(number: int, sample: Sample) -> dict[str, Any]:
        right = sample.choices[sample.right]
        texts = [right] * 7 + ["dark"] * 3
        return {
            "image_id": number,
            "question_id": number,
            "question": sample.question,
            "answer_type": "other",
            "multiple_choice_answer": right,
            "answers": [
                {"answer": text, "answer_confidence": "yes", "answer_id": person} for person, text in enumerate(texts)
            ],
        }

    held = len(samples) * 2 // 3
    yield Part("Multimodal-Fatima/VQAv2_train", "train", rows_of(samples[:held], features, row), features)
    yield Part("lmms-lab/VQAv2", "validation", rows_of(samples[held:], features, row), features)


def snli_ve_hf(samples: Samples) -> Iterable[Part]:
    label = ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = columns("premise hypothesis", image=PICTURE, label=label)

    def row(number: int, sample: Sample) -> dict[str, Any]:
        colour = sample.choices[sample.right if number % 3 == 0 else sample.right - 1]
        return {"premise": "A picture.", "hypothesis": f"It is {colour}.", "label": number % 3}

    for split, part in thirds(samples, "train", "validation"):
        yield Part("sedrickkeh/snli-ve", split, rows_of(part, features, row), features)


def gqa(samples: Samples) -> Iterable[Part]:
    features = columns("id imageId question answer fullAnswer entailed equivalent", isBalanced=Value("bool"))
    features |= {"groups": columns("global local"), "types": columns("structural semantic detailed")}

    def row(number: int, sample: Sample) -> dict[str, Any]:
        asked = {"id": f"{number:07}", "imageId": f"n{number // 2}", "question": f"{sample.question} ({number})"}
        types = {"structural": ("query", "verify", "choose")[number % 3], "semantic": "attr", "detailed": "directOf"}
        groups = {"global": ("colour", None)[number % 2], "local": ""}
        return asked | {"answer": sample.choices[sample.right], "groups": groups, "types": types}

    pictured = columns("id", image=PICTURE)
    for split, part in thirds(samples, "train", "val", "testdev"):
        yield Part("lmms-lab/GQA", split, rows_of(part, features, row), features, f"{split}_balanced_instructions")
        # In another order than the questions, and with a picture that no question is about.
        pictures = rows_of(part[::2], pictured, lambda number, _: {"id": f"n{number}"})
        extra = rows_of(part[:1], pictured, lambda *_: {"id": "unused"})
        yield Part("lmms-lab/GQA", split, [*extra, *pictures[::-1]], pictured, f"{split}_balanced_images")


def vcr_hf(samples: Samples) -> Iterable[Part]:
    token = columns("kind text", object_indices=List(WHOLE))
    features = columns("annot_id img_fn metadata_fn question_text", objects=TEXTS, question_tokens=List(token))
    features |= {"answer_choice_texts": TEXTS, "answer_label": WHOLE}
    features |= {"rationale_choice_texts": TEXTS, "rationale_label": WHOLE}
    pictured = columns("img_fn", image=PICTURE, objects=TEXTS, boxes=List(List(Value("float32"))))

    def row(split: str, number: int, sample: Sample) -> dict[str, Any]:
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

    def picture(number: int, _: Sample) -> dict[str, Any]:
        return {"img_fn": f"m/{number}.jpg", "objects": ["person"], "boxes": [[0.0, 0.0, 9.0, 9.0, 0.9]]}

    for split, part in thirds(samples, "train", "validation", "test"):
        yield Part("Rowan/vcr", split, rows_of(part, features, partial(row, split)), features, "questions")
        yield Part("Rowan/vcr", split, rows_of(part, pictured, picture), pictured, "image_examples")


def cv_bench(samples: Samples) -> Iterable[Part]:
    features = columns("type task question answer prompt filename source", image=PICTURE, idx=WHOLE, choices=TEXTS)

    def row(number: int, sample: Sample) -> dict[str, Any]:
        source = ("ADE20K", "COCO", "Omni3D")[number % 3]
        fields = {"idx": number, "type": "2D", "task": ("Count", "Relation")[number % 2], "question": sample.question}
        return fields | {"choices": list(sample.choices), "answer": f"({LETTERS[sample.right]})", "source": source}

    yield Part("nyu-visionx/CV-Bench", "test", rows_of(samples, features, row), features)


def mmstar(samples: Samples) -> Iterable[Part]:
    features = columns("question answer category l2_category", image=PICTURE, index=WHOLE)
    features |= {"meta_info": columns("source split image_path")}

    def row(number: int, sample: Sample) -> dict[str, Any]:
        options = (f"{letter}: It is {choice}." for letter, choice in zip(LETTERS, sample.choices, strict=False))
        asked = {"index": number, "question": f"{sample.question}\nOptions: {', '.join(options)}"}
        return asked | {"answer": LETTERS[sample.right], "category": "math", "l2_category": "geometry"}

    yield Part("Lin-Chen/MMStar", "val", rows_of(samples, features, row), features)


def realworldqa(samples: Samples) -> Iterable[Part]:
    features = columns("question answer image_path", image=PICTURE)

    def row(number: int, sample: Sample) -> dict[str, Any]:
        if number % 3 == 0:
            return {"question": "How many are there?\nPlease answer with a number.", "answer": "2"}
        options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABC", sample.choices, strict=False))
        asked = "Please answer directly with only the letter of the correct option and nothing else."
        return {"question": f"{sample.question}\n{options}\n{asked}", "answer": LETTERS[min(sample.right, 2)]}

    yield Part("lmms-lab/RealWorldQA", "test", rows_of(samples, features, row), features)


def pope(samples: Samples) -> Iterable[Part]:
    features = columns("id question_id question answer image_source category", image=PICTURE)

    def row(category: str, number: int, sample: Sample) -> dict[str, Any]:
        return {
            "id": str(number),
            "question_id": str(number + 1),
            "category": category,
            "question": f"Is there a {sample.choices[sample.right - number % 2]} thing in the image?",
            "answer": "no" if number % 2 else "yes",
        }

    categories = ("adversarial", "popular")
    rows = [filled for name in categories for filled in rows_of(samples, features, partial(row, name))]
    yield Part("lmms-lab/POPE", "test", rows, features)


def sugarcrepe(samples: Samples) -> Iterable[Part]:
    def row(_: int, sample: Sample) -> dict[str, Any]:
        pair = [f"A {sample.choices[place]} thing." for place in (sample.right, sample.right - 1)]
        return {"tested_labels": pair, "true_label": pair[0]}

    labels = ClassLabel(names=[f"A {colour} thing." for colour in sorted(COLOURS)])
    features = {"image": PICTURE, "tested_labels": TEXTS, "true_label": labels}
    for name in ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att"):
        yield Part(f"HuggingFaceM4/SugarCrepe_{name}", "test", rows_of(samples, features, row), features)


def whatsup(samples: Samples) -> Iterable[Part]:
    features = {"image_options": List(PICTURE), "caption_options": TEXTS}

    sides = ("to the left of", "to the right of")
    places = {
        "Controlled_Images_A": (*sides, "on", "under"),
        "Controlled_Images_B": (*sides, "in front of", "behind"),
        "COCO_QA_one_obj": ("on the left", "on the right"),
        "COCO_QA_two_obj": (*sides, "above", "below"),
        "VG_QA_one_obj": ("on the left", "on the right"),
        "VG_QA_two_obj": (*sides, "in front of", "behind"),
        "VG_Relation": sides,
    }

    def row(where: Sequence[str], number: int, sample: Sample) -> dict[str, Any]:
        right = number % len(where)
        end = "" if where[0].startswith("on the") else f" a table {number // 4}"
        captions = [f"A {COLOURS[number // 4 % 5]} thing {place}{end}" for place in (*where[right:], *where[:right])]
        return {"image_options": [stored(sample.picture)], "caption_options": captions}

    for split, where in places.items():
        yield Part("ServiceNow/whatsup_all", split, rows_of(samples, features, partial(row, where)), features)


def naturalbench(samples: Samples) -> Iterable[Part]:
    asked = [f"Image_{picture}_Question_{question}" for question in (0, 1) for picture in (0, 1)]
    features = columns(f"Question_0 Question_1 {' '.join(asked)} Question_Type Source", Index=WHOLE)
    features |= {"Image_0": PICTURE, "Image_1": PICTURE}

    def row(number: int, sample: Sample) -> dict[str, Any]:
        pair, is_choice = (sample, samples[2 * number + 1]), number % 5 == 4
        answers = ("A", "B", "B", "A") if is_choice else ("Yes", "No", "No", "Yes")
        return {
            "Index": number,
            **{f"Image_{place}": stored(each.picture) for place, each in enumerate(pair)},
            **{
                f"Question_{place}": "What is on it? Option: A:a knit cap; B:a helmet;"
                if is_choice
                else f"Is it {each.choices[each.right]}?"
                for place, each in enumerate(pair)
            },
            **dict(zip(asked, answers, strict=True)),
            "Question_Type": "multiple_choice" if is_choice else "yes_no",
        }

    yield Part("BaiqiL/NaturalBench", "train", rows_of(samples[: len(samples) // 2 * 2 : 2], features, row), features)


def blink(samples: Samples) -> Iterable[Part]:
    features = columns("idx question sub_task answer prompt explanation", choices=TEXTS)
    features |= {f"image_{number}": PICTURE for number in range(1, 5)}

    def row(split: str, number: int, sample: Sample) -> dict[str, Any]:
        asked = {"idx": f"{split}_{number}", "question": sample.question, "choices": list(sample.choices)}
        answer = "hidden" if split == "test" else f"({LETTERS[sample.right]})"
        return asked | {"answer": answer, "image_1": stored(sample.picture)}

    tasks = "Counting Spatial_Relation Object_Localization Relative_Depth Relative_Reflectance IQ_Test"
    for task in tasks.split():
        for split in ("val", "test"):
            rows = rows_of(samples, features, partial(row, split))
            yield Part("BLINK-Benchmark/BLINK", split, rows, features, task)


def hallusion_bench(samples: Samples) -> Iterable[Part]:
    features = columns(
        "category subcategory visual_input set_id figure_id sample_note question_id question gt_answer_details "
        "gt_answer filename",
        image=PICTURE,
    )

    def row(number: int, sample: Sample) -> dict[str, Any]:
        places = {"set_id": str(number // 4), "figure_id": str(number % 2), "question_id": str(number // 2 % 2)}
        asked = {"category": "VD", "subcategory": "illusion", "question": sample.question, "visual_input": "1"}
        return asked | places | {"gt_answer": str(number % 2), "sample_note": "circle"}

    yield Part("lmms-lab/HallusionBench", "image", rows_of(samples, features, row), features)
    without = {name: kind for name, kind in features.items() if name != "image"}
    yield Part("lmms-lab/HallusionBench", "non_image", rows_of(samples[:2], without, row), without)


def mmvp(samples: Samples) -> Iterable[Part]:
    features = {"Index": Value("int32"), **columns("Question Options"), "Correct Answer": TEXT, "image": PICTURE}

    def row(number: int, _: Sample) -> dict[str, Any]:
        asked = {"Index": number + 1, "Question": f"Is the wing of bird {number // 2} open?"}
        return asked | {"Options": "(a) Open (b) Closed", "Correct Answer": f"({'ab'[number % 2]})"}

    yield Part("lmms-lab-eval/MMVP", "train", rows_of(samples[: len(samples) // 2 * 2], features, row), features)


def vsr(samples: Samples) -> Iterable[Part]:
    features = columns("image image_link caption relation", label=WHOLE)

    def row(number: int, sample: Sample) -> dict[str, Any]:
        colour = sample.choices[sample.right - number % 2]
        told = {"caption": f"The thing is {colour}.", "relation": ("under", "facing")[number % 2]}
        return {"image": f"{number:012}.png", "label": 1 - number % 2, **told}

    for split, part in thirds(samples, "train", "dev", "test"):
        rows = [{**dict.fromkeys(features, ""), **row(number, sample)} for number, sample in enumerate(part)]
        pictures = {row["image"]: sample.picture for row, sample in zip(rows, part, strict=True)}
        yield Part("cambridgeltl/vsr_zeroshot", split, rows, features, pictures=pictures)


TWINS: Mapping[str, Callable[[Samples], Iterable[Part]]] = {
    "aokvqa": aokvqa,
    "aokvqa-rationales": aokvqa,
    "scienceqa": scienceqa,
    "vqa-v2-hf": vqa_v2_hf,
    "snli-ve-hf": snli_ve_hf,
    "gqa": gqa,
    "vcr-hf": vcr_hf,
    "cv-bench": cv_bench,
    "mmstar": mmstar,
    "realworldqa": realworldqa,
    "pope": pope,
    "sugarcrepe": sugarcrepe,
    "whatsup": whatsup,
    "naturalbench": naturalbench,
    "aokvqa-direct": aokvqa,
    "realworldqa-all": realworldqa,
    "blink": blink,
    "hallusion-bench": hallusion_bench,
    "mmvp": mmvp,
    "vsr": vsr,
}


def write_twin(root: Path, card: str, samples: Samples, *, group_rows: int | None = None) -> None:
    """Write the repositories of a card as copies below the folder of the datasets.

    Args:
        group_rows: rows of a row group; None for the library's own choice.
    """
    pages: dict[str, dict[str, list[str]]] = {}
    for part in TWINS[card](samples):
        if part.pictures:
            folder = root / part.repository
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{part.split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part.rows))
            for name, picture in part.pictures.items():
                (folder / name).write_bytes(picture)
            continue
        name = f"{part.configuration or 'data'}/{part.split}-00000-of-00001.parquet"
        pages.setdefault(part.repository, {}).setdefault(part.configuration, []).append(part.split)
        file = root / part.repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list([dict(row) for row in part.rows], features=Features(part.features)).to_parquet(
            file, batch_size=group_rows
        )
    for repository, configurations in pages.items():
        if "" in configurations:
            continue
        lines = ["---", "configs:"]
        for configuration, splits in configurations.items():
            lines += [f"- config_name: {configuration}", "  data_files:"]
            lines += [f"  - split: {split}\n    path: {configuration}/{split}-*" for split in splits]
        (root / repository / "README.md").write_text("\n".join([*lines, "---", ""]))
