"""The datasets of the built-in corpus: plug-ins of `advl.datasets`, in the formats of published benchmarks.

Only this corpus has captions, for pretraining its students. Each line of `captions/<split>.jsonl` contains
`caption_id`, `image`, `width`, `height`, `boxes`, `caption`, `phrases`: characters [start, end) of the caption name
the object in row `box`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from advl_data.scenes.generator import paths
from advl_pipeline.base.errors import advise
from advl_pipeline.datasets.boxes import SizedBoxes, parse_boxes
from advl_pipeline.datasets.cards import Card, load_card
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.records import ObjectTag, parse_tagged
from advl_pipeline.datasets.roots import DatasetMissing, is_safe_name, resolve_data_root
from advl_pipeline.datasets.row_files import text_field
from advl_pipeline.datasets.rows import Item, RowSource, checked_rows
from advl_pipeline.datasets.snli_ve import SnliVeFiles
from advl_pipeline.datasets.spec import DatasetSpec, ReadOptions
from advl_pipeline.datasets.split_files import SplitFiles
from advl_pipeline.datasets.vcr import VcrFiles
from advl_pipeline.datasets.vqa import VqaFiles


def _item(record: Mapping[str, Any], known: dict[str, SizedBoxes]) -> Item:
    caption_id, image = text_field(record, "caption_id"), text_field(record, "image")
    if not is_safe_name(image):
        raise Malformed(f"picture name {image!r} leaves the dataset's folder")
    size, boxes = parse_boxes(record)
    caption, phrases = text_field(record, "caption"), record.get("phrases", [])
    if not isinstance(phrases, list):
        raise Malformed("field 'phrases' is not a list")
    tags = tuple(_phrase(item, caption, len(boxes)) for item in phrases)
    # Phrases refer to boxes like texts of a user's data.
    parts, end = [], 0
    for tag in tags:
        parts += [caption[end : tag.start], f"[{caption[tag.start : tag.end]}|{tag.box}]"]
        end = tag.end
    tagged = "".join([*parts, caption[end:]])
    if parse_tagged(tagged, len(boxes)) != (caption, tags):
        raise Malformed("the caption is not in normal form, or its phrases overlap or hold brackets")
    if known.setdefault(image, (size, boxes)) != (size, boxes):
        raise Malformed(f"boxes differ from those of another caption of {image}")
    return Item(
        item_id=caption_id,
        image=image,
        boxes=boxes,
        size=size,
        texts=(tagged,),
        # All items share one class-balance cell.
        cell=0,
    )


def _phrase(item: Any, caption: str, num_boxes: int) -> ObjectTag:
    if not isinstance(item, dict) or not all(isinstance(item.get(name), int) for name in ("start", "end", "box")):
        raise Malformed("a phrase is not {start, end, box}")
    tag = ObjectTag(start=item["start"], end=item["end"], box=item["box"])
    if not (0 <= tag.start < tag.end <= len(caption) and 0 <= tag.box < num_boxes):
        raise Malformed(f"phrase {item!r} is outside the caption or names no box")
    return tag


class CaptionFiles(SplitFiles):
    """Captions of the corpus: they have no labels, and their wording is unchanged."""

    tasks = ("captions",)

    def open(self, options: ReadOptions) -> IndexedDataset:
        annotations = self.named("annotations")
        rows = RowSource(
            rows=lambda: checked_rows(annotations, partial(_item, known={})),
            pictures=self.pictures,
            files=(annotations,),
            version="captions",
            kind="classes",
        )
        reading = Reading(variants=(RowVariant("captions"),))
        return IndexedDataset(self.index_of(rows), reading, split=self.split, on_error=options.on_error)


@dataclass(frozen=True, kw_only=True)
class CorpusPart(DatasetSpec):
    """A part of the corpus: `files` is a card of the format that `form` reads."""

    files: Card
    form: type[SplitFiles]

    def open(self, split: str, data_root: Path | None, options: ReadOptions) -> IndexedDataset:
        root = resolve_data_root(data_root)
        if not (root / paths.FOLDER).is_dir():
            raise DatasetMissing(
                "The built-in corpus has not been built.",
                where=str(root / paths.FOLDER),
                next_command=advise(["advl", "scenes", "build"]),
            )
        return self.form(card=self.files, split=split, root=root).open(options)

    def common_name(self, split: str, question: str) -> str:
        """Return the common name of a question in all splits that contain it.

        An id contains the split: its name in the VCR format, the first digit in the others. Splits that the card
        compares contain the same items in the same order; a prefix keeps the others apart.
        """
        if split not in paths.SPLIT_CODES:
            return question
        suffix = question.removeprefix(f"{split}-")
        if suffix == question:
            suffix = question.removeprefix(str(paths.SPLIT_CODES[split]))
        return f"{self.card.splits.get(split, {}).get('compare_with', split)} {suffix}"


def _part(
    form: type[SplitFiles], folder: str, splits: Mapping[str, Mapping[str, Any]], *, pictures: str = ".", **facts: Any
) -> CorpusPart:
    """Return a part of the corpus, with its files in the form of a card of its format."""
    corpus = load_card("scenes")
    place = PurePosixPath(paths.FOLDER, folder)
    facts |= {"folder": str(place), "pictures_folder": str(place / pictures), "splits": splits}
    name = f"scenes-{folder.partition('-v2')[0]}"
    return CorpusPart(
        name=name,
        card=corpus,
        tasks=form.tasks,
        splits=tuple(splits),
        labelled=tuple(splits),
        files=Card(name=name, facts=facts),
        form=form,
    )


VCR = _part(
    VcrFiles,
    paths.VCR_FOLDER,
    {split: {"annotations": paths.vcr_annotations(split).name, "labelled": True} for split in paths.SPLIT_CODES},
    pictures=paths.VCR_IMAGES,
    text_style="indexed",
)
VQA = _part(
    VqaFiles,
    paths.VQA_FOLDER,
    {
        split: {
            "questions": paths.vqa_questions(split).name,
            "annotations": paths.vqa_annotations(split).name,
            "subtype": paths.vqa_subtype(split),
            "boxes": paths.boxes(paths.VQA_FOLDER, split).name,
        }
        for split in paths.SPLIT_CODES
    },
    answer_lists={"train": ["train"]},
    # Answers of the corpus have no annotation noise: every answer in train is a class.
    min_occurrences=1,
)
SNLI_VE = _part(
    SnliVeFiles,
    paths.SNLI_VE_FOLDER,
    {
        split: {
            "annotations": paths.snli_ve_annotations(split).name,
            "boxes": paths.boxes(paths.SNLI_VE_FOLDER, split).name,
        }
        for split in paths.SPLIT_CODES
    },
)
CAPTIONS = _part(
    CaptionFiles,
    paths.CAPTIONS_FOLDER,
    {split: {"annotations": paths.captions(split).name} for split in paths.CAPTION_SPLITS},
)
