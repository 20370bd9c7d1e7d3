"""The datasets of the built-in corpus: plug-ins of `advl.datasets`, in the formats of published benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from advl_data.scenes.captions import CAPTION_READING, caption_source
from advl_data.scenes.generator import paths
from advl_pipeline.datasets.benchmark import Benchmark, ReadOptions
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.index import Index, open_index
from advl_pipeline.datasets.indexed import IndexedDataset, Source
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, require_file
from advl_pipeline.datasets.snli_ve import snli_ve_reading, snli_ve_source
from advl_pipeline.datasets.vcr import open_vcr
from advl_pipeline.datasets.vqa import VqaFiles, vocabulary_of, vocabulary_or, vqa_reading, vqa_source
from advl_pipeline.errors import advise


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
        require_file(source.folder / paths.vcr_annotations(split).name, dataset=source.dataset),
        labelled=True,
        tasks=options.tasks,
        conditioning=options.conditioning,
        style=options.text_style or "indexed",
    )


def _open_vqa(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-vqa", paths.VQA_FOLDER, split, root, options)

    def index_of(of: str) -> Index:
        questions, annotations = (
            require_file(source.folder / name.name, dataset=source.dataset)
            for name in (paths.vqa_questions(of), paths.vqa_annotations(of))
        )
        files = VqaFiles(questions=questions, annotations=annotations, subtype=paths.vqa_subtype(of))
        boxes = source.folder / paths.boxes(paths.VQA_FOLDER, of).name
        rows = vqa_source(files, dataset=source.dataset, pictures=source.pictures, boxes=boxes)
        return open_index(rows, dataset=source.dataset, folder=source.index)

    def built() -> tuple[str, ...]:
        # Answers of the corpus carry no annotation noise: every one that training knows is a class.
        where = str(source.folder / paths.vqa_annotations("train").name)
        return vocabulary_of([(index_of("train"), None)], min_occurrences=1, where=where)

    index = index_of(split)
    reading = vqa_reading(vocabulary_or(options.answers, built))
    return IndexedDataset(source, index, reading, digests=index.digests)


def _open_snli_ve(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-snli-ve", paths.SNLI_VE_FOLDER, split, root, options)
    rows = snli_ve_source(
        require_file(source.folder / paths.snli_ve_annotations(split).name, dataset=source.dataset),
        pictures=source.pictures,
        images=paths.FLICKR_IMAGES,
        boxes=source.folder / paths.boxes(paths.SNLI_VE_FOLDER, split).name,
    )
    index = open_index(rows, dataset=source.dataset, folder=source.index)
    return IndexedDataset(source, index, snli_ve_reading(options.label_order), digests=index.digests)


def _open_captions(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-captions", paths.CAPTIONS_FOLDER, split, root, options)
    annotations = require_file(source.folder / paths.captions(split).name, dataset=source.dataset)
    rows = caption_source(annotations, pictures=source.pictures)
    index = open_index(rows, dataset=source.dataset, folder=source.index)
    return IndexedDataset(source, index, CAPTION_READING, digests=index.digests)


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
