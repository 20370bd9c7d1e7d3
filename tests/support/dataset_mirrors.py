"""Small complete mirrors of the official downloads, written file by file, with their quirks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

VQA_SUBTYPES = {"train": "train2014", "val": "val2014", "test": "test2015"}
ANSWERS = ("yes", "no", "2", "red", "t-shirt")


def write_picture(path: Path, *, size: tuple[int, int] = (64, 48), shade: int = 0) -> None:
    """Write a picture whose bytes depend on its shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (shade * 7 % 256, shade * 31 % 256, shade // 256)
    Image.new("RGB", size, colour).save(path, quality=90)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def vcr_record(number: int, *, split: str = "val", labelled: bool = True) -> dict[str, Any]:
    """Return a VCR question with all fields; every second question shares its predecessor's picture."""
    picture = number // 2
    base = f"lsmdc_0000_MIRROR/0000_MIRROR_00.00.{picture:02d}@0"
    record: dict[str, Any] = {
        "objects": ["person", "person", "wineglass", "dog"],
        "img_fn": f"{base}.jpg",
        "metadata_fn": f"{base}.json",
        "annot_id": f"{split}-{number}",
        "question": [("Why", "What", "Is")[number % 3], "is", [0, 1], "near", [2], "?"],
        "answer_choices": [[[choice % 2], "likes", f"thing{number}", str(choice), "."] for choice in range(4)],
        "rationale_choices": [["Everyone", "sees", [3], f"{number}", str(choice), "."] for choice in range(4)],
        # Published but unused fields.
        "movie": "0000_MIRROR",
        "interesting_scores": [0],
        "answer_likelihood": "possible",
        **dict.fromkeys(("answer_orig", "question_orig", "rationale_orig"), ""),
        **{key: [3, 0, 2, 1] for key in ("answer_match_iter", "rationale_match_iter")},
        **{key: [1, 2, 3, 4] for key in ("answer_sources", "rationale_sources")},
        "img_id": f"{split}-{picture}",
        "question_number": number % 2,
        "match_fold": f"{split}-0",
        "match_index": number,
    }
    if labelled:
        record |= {"answer_label": number % 4, "rationale_label": number // 4 % 4}
    return record


def vcr_metadata(record: Mapping[str, Any], *, size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    """Return the metadata of a question's picture: boxes with scores, and polygons, one of them empty."""
    count = len(record["objects"])
    boxes = [[4.5 * i, 2.25 * i, 4.5 * i + 20, 2.25 * i + 10.5, 0.9] for i in range(count)]
    segms: list[Any] = [[[[x1, y1], [x2, y1], [x2, y2]]] for x1, y1, x2, y2, _ in boxes]
    segms[-1:] = [[]] if count else []
    return {"names": record["objects"], "boxes": boxes, "segms": segms, "width": size[0], "height": size[1]}


def write_vcr(
    root: Path, records: Iterable[Mapping[str, Any]], *, split: str = "val", file: str | None = None
) -> Path:
    """Write a split of VCR with its pictures and metadata; returns the annotation file."""
    records = list(records)
    annotations = root / "vcr" / (file or f"{split}.jsonl")
    write_lines(annotations, records)
    for number, record in enumerate(records):
        picture = root / "vcr" / "vcr1images" / record["img_fn"]
        if not picture.exists():
            write_picture(picture, shade=number)
            write_json(root / "vcr" / "vcr1images" / record["metadata_fn"], vcr_metadata(record))
    return annotations


def vqa_items(
    count: int, *, first_image: int = 1000, answers: Sequence[str] = ANSWERS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return questions and annotations: three questions per picture, with answers that differ by annotator."""
    questions, annotations = [], []
    for number in range(count):
        image_id = first_image + number // 3
        question_id = image_id * 1000 + number % 3
        questions.append({"image_id": image_id, "question": f"Is it number {number}?", "question_id": question_id})
        main = answers[number % len(answers)]
        given_answers = [main] * (10 - number % 4) + ["something else"] * (number % 4)
        annotation = {
            "question_id": question_id,
            "image_id": image_id,
            "question_type": ("is it", "how many", "none of the above")[number % 3],
            "answer_type": ("yes/no", "number", "other")[number % 3],
            "multiple_choice_answer": main,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": person}
                for person, answer in enumerate(given_answers, start=1)
            ],
        }
        annotations.append(annotation)
    return questions, annotations


def wrap_vqa(key: str, items: list[dict[str, Any]], subtype: str) -> dict[str, Any]:
    """Wrap items in the format of the official files."""
    head = {"info": {"year": 2017, "version": "2.0"}, "license": {"name": "", "url": ""}, "data_type": "mscoco"}
    extra = {"task_type": "Open-Ended"} if key == "questions" else {}
    return {**head, **extra, "data_subtype": subtype, key: items}


def write_coco(root: Path, subtype: str, image_id: int) -> None:
    """Write a COCO picture to its folder if it is missing."""
    picture = root / "vqa-v2" / subtype / f"COCO_{subtype}_{image_id:012d}.jpg"
    if not picture.exists():
        write_picture(picture, shade=image_id)


def write_vqa(root: Path, *, split: str = "train", count: int = 30, answers: Sequence[str] = ANSWERS) -> None:
    """Write a split of VQA v2 with its pictures; test has no annotations."""
    subtype, folder = VQA_SUBTYPES[split], root / "vqa-v2"
    first_image = {"train": 1000, "val": 2000, "test": 3000}[split]
    questions, annotations = vqa_items(count, first_image=first_image, answers=answers)
    asked = wrap_vqa("questions", questions, subtype)
    write_json(folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json", asked)
    if split != "test":
        answered = wrap_vqa("annotations", annotations, subtype)
        write_json(folder / f"v2_mscoco_{subtype}_annotations.json", answered)
    for question in questions:
        write_coco(root, subtype, question["image_id"])


def write_vqa_cp(root: Path, *, count: int = 120) -> None:
    """Write VQA-CP v2: bare lists whose items name their picture folder; the pictures are those of VQA v2."""
    for part, first_image in (("train", 5000), ("test", 6000)):
        questions, annotations = vqa_items(count, first_image=first_image)
        for number, (question, annotation) in enumerate(zip(questions, annotations, strict=True)):
            split = ("train2014", "val2014")[number // 3 % 2]
            question["coco_split"] = annotation["coco_split"] = split
            write_coco(root, split, question["image_id"])
        for name, items in (("questions", questions), ("annotations", annotations)):
            write_json(root / "vqa-cp-v2" / f"vqacp_v2_{part}_{name}.json", items)


def write_vqa_vs(root: Path, *, count: int = 60) -> None:
    """Write VQA-VS with one of its OOD sets; pictures are in either folder of VQA v2, and items do not say which."""
    for part, stem, first, number in (
        ("Training", "Training", 7000, count),
        ("Val", "Val", 7100, 12),
        ("IID-Test", "IID-Test", 7200, 12),
        ("OOD-Test/QT+KW", "OOD-Test-QT+KW", 7200, 6),
    ):
        questions, annotations = vqa_items(number, first_image=first)
        write_json(root / "vqa-vs" / part / f"{stem}-Ques.json", questions)
        write_json(root / "vqa-vs" / part / f"{stem}-Ans.json", annotations)
        for question in questions:
            write_coco(root, ("train2014", "val2014")[question["image_id"] % 2], question["image_id"])


def snli_ve_record(number: int) -> dict[str, Any]:
    """Return a pair; picture ids use every spelling found in circulating files."""
    picture = 1000000001 + number // 2
    record: dict[str, Any] = {
        "annotator_labels": ["neutral", "entailment", "neutral"],
        "captionID": f"{picture}.jpg#{number % 5}",
        "gold_label": ("entailment", "neutral", "contradiction")[number % 3],
        "pairID": f"{picture}.jpg#{number % 5}r{number}n",
        "sentence1": "The premise is not to be read.",
        "sentence2": f"Two friends wait for bus {number}.",
        **{f"sentence{side}_{kind}": "" for side in (1, 2) for kind in ("parse", "binary_parse")},
    }
    spelling = number % 3
    if spelling == 0:
        record["Flickr30K_ID"] = str(picture)
    elif spelling == 1:
        record["Flikr30kID"] = f"{picture}.jpg"
    return record


def write_snli_ve(root: Path, *, name: str = "test", count: int = 12) -> Path:
    """Write a split of SNLI-VE with its pictures; returns the annotation file."""
    records = [snli_ve_record(number) for number in range(count)]
    annotations = root / "snli-ve" / f"snli_ve_{name}.jsonl"
    write_lines(annotations, records)
    for record in records:
        picture = record["pairID"].partition("#")[0]
        write_picture(root / "snli-ve" / "flickr30k_images" / picture, shade=int(picture[:-4]) % 997)
    return annotations


def write_official_sets(root: Path) -> None:
    """Write VCR with one of its shortcut sets, VQA v2 and SNLI-VE, a few items of each split."""
    for split in ("train", "val"):
        write_vcr(root, [vcr_record(number, split=split) for number in range(8)], split=split)
    write_vcr(root, [vcr_record(number, split="test", labelled=False) for number in range(11)], split="test")
    singular = "shortcut/rule_based/val_rule_singular.jsonl"
    write_vcr(root, [vcr_record(number) for number in range(6)], file=singular)
    # Enough in train for an answer list of its own.
    for split, count in (("train", 60), ("val", 30), ("test", 30)):
        write_vqa(root, split=split, count=count)
    for name in ("train", "dev", "test"):
        write_snli_ve(root, name=name)


def write_captions(root: Path, *, count: int = 6) -> Path:
    """Write captions of the built-in corpus, two for each picture; returns their file."""
    folder = root / "scenes" / "captions"
    records = [
        {
            "caption_id": f"c{number}",
            "image": f"images/train-{number // 2:06d}.jpg",
            "width": 40,
            "height": 30,
            "boxes": [[1, 2, 11, 12], [20, 3, 30, 13]],
            "caption": "a cat and a red dog",
            "phrases": [{"start": 2, "end": 5, "box": 0}, {"start": 12, "end": 19, "box": 1}],
        }
        for number in range(count)
    ]
    write_lines(folder / "train.jsonl", records)
    for record in records:
        write_picture(folder / str(record["image"]), size=(40, 30), shade=int(str(record["caption_id"])[1:]) // 2)
    return folder / "train.jsonl"
