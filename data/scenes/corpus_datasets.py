"""The datasets of the built-in corpus: plug-ins of `advl.datasets`, in the formats of published benchmarks.

Captions are of the corpus alone, for the pretraining of its students. Each line of `captions/<split>.jsonl` holds
`caption_id`, `image`, `width`, `height`, `boxes`, `caption`, `phrases`: characters [start, end) of the caption name
the object in row `box`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from advl_data.scenes.generator import paths
from advl_pipeline.datasets.boxes import PictureBoxes, boxes_of, parse_boxes
from advl_pipeline.datasets.cards import Benchmark, ReadOptions, load_card
from advl_pipeline.datasets.index import Index
from advl_pipeline.datasets.indexed import IndexedDataset, Reading, Source, Variant
from advl_pipeline.datasets.own.columns import parse_tagged
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import ObjectTag
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, is_safe_name, require_there
from advl_pipeline.datasets.row_files import text_field
from advl_pipeline.datasets.rows import Item, RowSource, checked_rows
from advl_pipeline.datasets.snli_ve import snli_ve_reading, snli_ve_source
from advl_pipeline.datasets.vcr import open_vcr
from advl_pipeline.datasets.vqa import vocabulary_of, vqa_reading, vqa_source
from advl_pipeline.errors import advise

CAPTION_READING = Reading(variants=(Variant("captions"),))
"""Captions carry no labels, and are worded as they are written."""


def caption_source(annotations: Path, *, pictures: Path) -> RowSource:
    """Return the captions of a file; picture names are relative to `pictures`."""
    return RowSource(
        rows=lambda: checked_rows(annotations, partial(_item, known={})),
        pictures=pictures,
        files=(annotations,),
        version="captions",
        kind="classes",
    )


def _item(record: Mapping[str, Any], known: dict[str, PictureBoxes]) -> Item:
    caption_id, image = text_field(record, "caption_id"), text_field(record, "image")
    if not is_safe_name(image):
        raise Malformed(f"picture name {image!r} leaves the dataset's folder")
    boxes = parse_boxes(record)
    caption, phrases = text_field(record, "caption"), record.get("phrases", [])
    if not isinstance(phrases, list):
        raise Malformed("field 'phrases' is not a list")
    tags = tuple(_phrase(item, caption, len(boxes.boxes)) for item in phrases)
    # Phrases name their boxes as texts of one's own data do.
    parts, end = [], 0
    for tag in tags:
        parts += [caption[end : tag.start], f"[{caption[tag.start : tag.end]}|{tag.box}]"]
        end = tag.end
    tagged = "".join([*parts, caption[end:]])
    if parse_tagged(tagged, len(boxes.boxes)) != (caption, tags):
        raise Malformed("the caption is not in normal form, or its phrases overlap or hold brackets")
    if known.setdefault(image, boxes) != boxes:
        raise Malformed(f"boxes differ from those of another caption of {image}")
    # All are of one class-balance cell.
    return Item(item_id=caption_id, image=image, **boxes_of(known, image), texts=(tagged,), cell=0)


def _phrase(item: Any, caption: str, num_boxes: int) -> ObjectTag:
    if not isinstance(item, dict) or not all(isinstance(item.get(name), int) for name in ("start", "end", "box")):
        raise Malformed("a phrase is not {start, end, box}")
    tag = ObjectTag(start=item["start"], end=item["end"], box=item["box"])
    if not (0 <= tag.start < tag.end <= len(caption) and 0 <= tag.box < num_boxes):
        raise Malformed(f"phrase {item!r} lies outside the caption or names no box")
    return tag


def _source(name: str, folder: str, split: str, root: Path, options: ReadOptions, *, pictures: str = ".") -> Source:
    corpus = root / paths.FOLDER
    if not corpus.is_dir():
        raise DatasetMissing(
            "The built-in corpus has not been built.",
            where=str(corpus),
            next_command=advise(["advl", "scenes", "build"]),
        )
    home = corpus / folder
    return Source(
        dataset=name,
        split=split,
        folder=home,
        pictures=home / pictures,
        index=index_folder(root, home),
        on_error=options.on_error,
    )


def _open_vcr(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-vcr", paths.VCR_FOLDER, split, root, options, pictures=paths.VCR_IMAGES)
    return open_vcr(
        source,
        require_there(source.folder / paths.vcr_annotations(split).name, dataset=source.dataset),
        labelled=True,
        tasks=options.tasks,
        conditioning=options.conditioning,
        style=options.text_style or "indexed",
    )


def _open_vqa(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-vqa", paths.VQA_FOLDER, split, root, options)

    def index_of(of: str) -> Index:
        questions, annotations = (
            require_there(source.folder / name.name, dataset=source.dataset)
            for name in (paths.vqa_questions(of), paths.vqa_annotations(of))
        )
        boxes = source.folder / paths.boxes(paths.VQA_FOLDER, of).name
        subtype = paths.vqa_subtype(of)
        return source.index_of(
            vqa_source(questions, annotations, subtype=subtype, pictures=source.pictures, boxes=boxes)
        )

    def built() -> tuple[str, ...]:
        # Answers of the corpus carry no annotation noise: every one that training knows is a class.
        where = str(source.folder / paths.vqa_annotations("train").name)
        return vocabulary_of([(index_of("train"), None)], min_occurrences=1, where=where)

    return IndexedDataset(source, index_of(split), vqa_reading(options.answers, built))


def _open_snli_ve(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-snli-ve", paths.SNLI_VE_FOLDER, split, root, options)
    rows = snli_ve_source(
        require_there(source.folder / paths.snli_ve_annotations(split).name, dataset=source.dataset),
        pictures=source.pictures,
        boxes=source.folder / paths.boxes(paths.SNLI_VE_FOLDER, split).name,
    )
    return IndexedDataset(source, source.index_of(rows), snli_ve_reading(options.label_order))


def _open_captions(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-captions", paths.CAPTIONS_FOLDER, split, root, options)
    annotations = require_there(source.folder / paths.captions(split).name, dataset=source.dataset)
    rows = caption_source(annotations, pictures=source.pictures)
    return IndexedDataset(source, source.index_of(rows), CAPTION_READING)


def _common_name(split: str, question: str) -> str:
    """Return what a question is called in all splits that ask it.

    An id holds the split, in the VCR format by its name and in the others by the first digit. Splits that the card
    compares hold the same items in the same order; the others are kept apart by what stands before.
    """
    if split not in paths.SPLIT_CODES:
        return question
    own = question.removeprefix(f"{split}-")
    if own == question:
        own = question.removeprefix(str(paths.SPLIT_CODES[split]))
    return f"{load_card('scenes').splits.get(split, {}).get('compare_with', split)} {own}"


_benchmark = partial(Benchmark, card=load_card("scenes"), common_name=_common_name)

VCR = _benchmark(name="scenes-vcr", tasks=("vcr-q2a", "vcr-qa2r"), splits=paths.TASK_SPLITS, open=_open_vcr)
VQA = _benchmark(name="scenes-vqa", tasks=("vqa",), splits=paths.TASK_SPLITS, open=_open_vqa)
SNLI_VE = _benchmark(name="scenes-snli-ve", tasks=("snli-ve",), splits=paths.TASK_SPLITS, open=_open_snli_ve)
CAPTIONS = _benchmark(name="scenes-captions", tasks=("captions",), splits=paths.CAPTION_SPLITS, open=_open_captions)
