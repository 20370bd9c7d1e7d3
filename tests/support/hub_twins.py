"""Twins of public sets: rows that are made up, in the columns, types and files that their repositories publish."""

from __future__ import annotations

import io
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, List, Value
from PIL import Image

datasets.disable_progress_bars()

COLOURS = ("red", "green", "blue", "yellow", "white")
LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Sample:
    """A question on a picture with four choices."""

    picture: bytes
    question: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Part:
    """The rows of one split of one configuration of a repository; `types` are those that the rows do not tell."""

    repository: str
    split: str
    rows: Sequence[Mapping[str, Any]]
    types: Mapping[str, Any]
    configuration: str = ""


def colour_samples(count: int) -> list[Sample]:
    """Return questions on pictures of one colour each, no two alike."""
    found = []
    for number in range(count):
        file = io.BytesIO()
        image = Image.new("RGB", (32, 24), COLOURS[number % 5])
        image.putpixel((number % 32, number // 32), (1, 2, 3))
        image.save(file, "PNG")
        choices = tuple(COLOURS[(number + step + number // 5) % 5] for step in range(4))
        right = choices.index(COLOURS[number % 5]) if COLOURS[number % 5] in choices else 0
        found.append(Sample(file.getvalue(), f"Which colour has picture {number}?", choices, right))
    return found


def stored(picture: bytes | None) -> dict[str, Any] | None:
    """Return a picture as the library stores it."""
    return None if picture is None else {"bytes": picture, "path": None}


TEXT, PICTURE = Value("string"), datasets.Image()


def aokvqa(samples: Sequence[Sample]) -> Iterable[Part]:
    types = {"image": PICTURE, "correct_choice_idx": Value("int8"), "direct_answers": TEXT, "rationales": List(TEXT)}
    for split, part in thirds(samples, "train", "validation", "test"):
        yield Part(
            "HuggingFaceM4/A-OKVQA",
            split,
            [
                {
                    "image": stored(one.picture),
                    "question_id": f"{split[:2]}{number}",
                    "question": one.question,
                    "choices": list(one.choices),
                    "correct_choice_idx": None if split == "test" else one.right,
                    # A list of Python in a text, an apostrophe in it too.
                    "direct_answers": None if split == "test" else repr([one.choices[one.right], "it's dark"] * 5),
                    "difficult_direct_answer": False,
                    "rationales": [f"{number} shows {one.choices[one.right]}.", "So it is."] * (split != "test"),
                }
                for number, one in enumerate(part)
            ],
            types,
        )


def scienceqa(samples: Sequence[Sample]) -> Iterable[Part]:
    told = ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution")
    for split, part in thirds(samples, "train", "validation", "test"):
        yield Part(
            "derek-thomas/ScienceQA",
            split,
            [
                {
                    **dict.fromkeys(told, ""),
                    "image": stored(one.picture if number % 4 else None),
                    "question": one.question,
                    # Between two and five choices, each a number in some questions.
                    "choices": [*one.choices[: one.right + 1], "7"] if number % 3 else ["2", "1", "0"],
                    "answer": one.right if number % 3 else 1,
                    "hint": "The figure shows a colour." if number % 2 else "",
                    "subject": "natural science" if number % 2 else "language science",
                }
                for number, one in enumerate(part)
            ],
            {"image": PICTURE, "answer": Value("int8")},
        )


def vqa_v2_hf(samples: Sequence[Sample]) -> Iterable[Part]:
    for repository, split, part in (
        ("Multimodal-Fatima/VQAv2_train", "train", samples[: len(samples) * 2 // 3]),
        ("lmms-lab/VQAv2", "validation", samples[len(samples) * 2 // 3 :]),
    ):
        yield Part(
            repository,
            split,
            [
                {
                    "question_type": "what",
                    "image_id": number,
                    "answer_type": "other",
                    "question_id": number,
                    "question": one.question,
                    "image": stored(one.picture),
                    "multiple_choice_answer": one.choices[one.right],
                    "answers": [
                        {
                            "answer": one.choices[one.right] if place < 7 else "dark",
                            "answer_confidence": "yes",
                            "answer_id": place + 1,
                        }
                        for place in range(10)
                    ],
                }
                for number, one in enumerate(part)
            ],
            {"image": PICTURE},
        )


def snli_ve_hf(samples: Sequence[Sample]) -> Iterable[Part]:
    names = ["entailment", "neutral", "contradiction"]
    types = {"image": PICTURE, "label": ClassLabel(names=names)}
    for split, part in thirds(samples, "train", "validation"):
        yield Part(
            "sedrickkeh/snli-ve",
            split,
            [
                {
                    "image": stored(one.picture),
                    "premise": "A picture.",
                    "hypothesis": f"It is {one.choices[one.right if number % 3 == 0 else one.right - 1]}.",
                    "label": number % 3,
                }
                for number, one in enumerate(part)
            ],
            types,
        )


def gqa(samples: Sequence[Sample]) -> Iterable[Part]:
    for split, part in thirds(samples, "train", "val", "testdev"):
        rows = [
            {
                "id": f"{number:07}",
                "imageId": f"n{number // 2}",
                "question": f"{one.question} ({number})",
                "answer": one.choices[one.right],
                "fullAnswer": "It is so.",
                "isBalanced": True,
                "groups": {"global": "", "local": ""},
                "entailed": "",
                "equivalent": "",
            }
            for number, one in enumerate(part)
        ]
        # In another order than the questions, and with a picture that no question is about.
        pictures = [{"id": f"n{number // 2}", "image": stored(one.picture)} for number, one in enumerate(part)][::2]
        extra = [{"id": "unused", "image": stored(part[0].picture)}]
        yield Part("lmms-lab/GQA", split, rows, {}, f"{split}_balanced_instructions")
        yield Part("lmms-lab/GQA", split, [*extra, *pictures[::-1]], {"image": PICTURE}, f"{split}_balanced_images")


def vcr_hf(samples: Sequence[Sample]) -> Iterable[Part]:
    token = {"kind": TEXT, "text": TEXT, "object_indices": List(Value("int64"))}
    types = {"answer_label": Value("int64"), "rationale_label": Value("int64"), "question_tokens": List(token)}
    boxes = {"image": PICTURE, "boxes": List(List(Value("float32")))}
    for split, part in thirds(samples, "train", "validation", "test"):
        labelled = split != "test"
        rows = [
            {
                "annot_id": f"{split}-{number}",
                "img_fn": f"m/{number}.jpg",
                "metadata_fn": f"m/{number}.json",
                "objects": ["person"],
                "question_tokens": [{"kind": "text", "text": one.question, "object_indices": []}],
                "question_text": one.question,
                "answer_choice_texts": list(one.choices),
                "answer_label": one.right if labelled else None,
                "rationale_choice_texts": [f"[person1] sees {choice}." for choice in one.choices],
                "rationale_label": one.right if labelled else None,
            }
            for number, one in enumerate(part)
        ]
        pictures = [
            {
                "img_fn": f"m/{number}.jpg",
                "image": stored(one.picture),
                "objects": ["person"],
                "boxes": [[0.0, 0.0, 9.0, 9.0, 0.9]],
            }
            for number, one in enumerate(part)
        ]
        yield Part("Rowan/vcr", split, rows, types, "questions")
        yield Part("Rowan/vcr", split, pictures, boxes, "image_examples")


def cv_bench(samples: Sequence[Sample]) -> Iterable[Part]:
    rows = [
        {
            "idx": number,
            "type": "2D",
            "task": ("Count", "Relation")[number % 2],
            "image": stored(one.picture),
            "question": one.question,
            "choices": list(one.choices),
            "answer": f"({LETTERS[one.right]})",
            "prompt": "",
            "filename": "",
            "source": "COCO",
        }
        for number, one in enumerate(samples)
    ]
    yield Part("nyu-visionx/CV-Bench", "test", rows, {"image": PICTURE})


def mmstar(samples: Sequence[Sample]) -> Iterable[Part]:
    rows = [
        {
            "index": number,
            "image": stored(one.picture),
            "answer": LETTERS[one.right],
            "question": f"{one.question}\nOptions: "
            + ", ".join(f"{letter}: It is {choice}." for letter, choice in zip(LETTERS, one.choices, strict=False)),
            "category": "math",
            "l2_category": "geometry",
            "meta_info": dict.fromkeys(("source", "split", "image_path"), ""),
        }
        for number, one in enumerate(samples)
    ]
    yield Part("Lin-Chen/MMStar", "val", rows, {"image": PICTURE})


def realworldqa(samples: Sequence[Sample]) -> Iterable[Part]:
    asked = "Please answer directly with only the letter of the correct option and nothing else."
    rows = [
        {
            "image": stored(one.picture),
            "image_path": f"{number}.webp",
            **(
                {
                    "question": f"{one.question}\n"
                    + "".join(
                        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, one.choices[:3], strict=False)
                    )
                    + f"\n{asked}",
                    "answer": LETTERS[min(one.right, 2)],
                }
                if number % 3
                else {"question": "How many are there?\nPlease answer with a number.", "answer": "2"}
            ),
        }
        for number, one in enumerate(samples)
    ]
    yield Part("lmms-lab/RealWorldQA", "test", rows, {"image": PICTURE})


def pope(samples: Sequence[Sample]) -> Iterable[Part]:
    rows = [
        {
            "id": str(number),
            "question_id": str(number + 1),
            "image": stored(one.picture),
            "question": f"Is there a {one.choices[one.right - number % 2]} thing in the image?",
            "answer": "no" if number % 2 else "yes",
            "image_source": "COCO_val2014_1",
            "category": category,
        }
        for category in ("adversarial", "popular")
        for number, one in enumerate(samples)
    ]
    yield Part("lmms-lab/POPE", "test", rows, {"image": PICTURE})


def sugarcrepe(samples: Sequence[Sample]) -> Iterable[Part]:
    for name in ("swap_obj", "swap_att"):
        captions = [
            (f"A {one.choices[one.right]} thing.", f"A {one.choices[one.right - 1]} thing.") for one in samples
        ]
        labels = ClassLabel(names=sorted({text for pair in captions for text in pair}))
        rows = [
            {"image": stored(one.picture), "tested_labels": list(pair), "true_label": pair[0]}
            for one, pair in zip(samples, captions, strict=True)
        ]
        types = {"image": PICTURE, "true_label": labels}
        yield Part(f"HuggingFaceM4/SugarCrepe_{name}", "test", rows, types)


def whatsup(samples: Sequence[Sample]) -> Iterable[Part]:
    for split in (
        "Controlled_Images_A",
        "Controlled_Images_B",
        "COCO_QA_one_obj",
        "COCO_QA_two_obj",
        "VG_QA_one_obj",
    ):
        rows = [
            {
                "image_options": [stored(one.picture)],
                "caption_options": [
                    one.choices[one.right],
                    *(text for text in one.choices if text != one.choices[one.right]),
                ],
            }
            for one in samples
        ]
        yield Part("ServiceNow/whatsup_all", split, rows, {"image_options": List(PICTURE)})


def naturalbench(samples: Sequence[Sample]) -> Iterable[Part]:
    asked = [f"Image_{picture}_Question_{question}" for question in (0, 1) for picture in (0, 1)]
    rows = [
        {
            "Index": number,
            "Image_0": stored(one.picture),
            "Image_1": stored(other.picture),
            "Question_0": f"Is it {one.choices[one.right]}?",
            "Question_1": f"Is it {other.choices[other.right]}?",
            **dict(zip(asked, ("A", "B", "B", "A") if number % 5 == 4 else ("Yes", "No", "No", "Yes"), strict=True)),
            "Question_Type": "multiple_choice" if number % 5 == 4 else "yes_no",
            "Source": "Flickr30K",
        }
        for number, (one, other) in enumerate(zip(samples[::2], samples[1::2], strict=False))
    ]
    yield Part("BaiqiL/NaturalBench", "train", rows, {"Image_0": PICTURE, "Image_1": PICTURE})


TWINS: Mapping[str, Callable[[Sequence[Sample]], Iterable[Part]]] = {
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
}


def write_twin(root: Path, card: str, samples: Sequence[Sample], *, group_rows: int | None = None) -> None:
    """Write the repositories of a card as copies below the folder of the datasets.

    Args:
        group_rows: rows of a row group; None for the library's own choice.
    """
    pages: dict[str, dict[str, list[str]]] = {}
    for part in TWINS[card](samples):
        name = f"{part.configuration or 'data'}/{part.split}-00000-of-00001.parquet"
        pages.setdefault(part.repository, {}).setdefault(part.configuration, []).append(part.split)
        file = root / part.repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list([dict(row) for row in part.rows])
        rows.cast(Features({**rows.features, **part.types})).to_parquet(file, batch_size=group_rows)
    for repository, configurations in pages.items():
        if "" in configurations:
            continue
        lines = ["---", "configs:"]
        for configuration, splits in configurations.items():
            lines += [f"- config_name: {configuration}", "  data_files:"]
            lines += [f"  - split: {split}\n    path: {configuration}/{split}-*" for split in splits]
        (root / repository / "README.md").write_text("\n".join([*lines, "---", ""]))


def thirds(samples: Sequence[Sample], *splits: str) -> Iterable[tuple[str, Sequence[Sample]]]:
    """Yield the first half of the samples as the first split, and equal parts of the rest as the others."""
    half, others = len(samples) // 2, len(splits) - 1
    yield splits[0], samples[:half]
    size = (len(samples) - half) // others
    for place, split in enumerate(splits[1:]):
        yield split, samples[half + place * size : half + (place + 1) * size]
