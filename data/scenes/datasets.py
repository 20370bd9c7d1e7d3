"""The datasets of the built-in corpus: plug-ins of `advl.datasets`, in the formats of published benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from advl_data.scenes.captions import CaptionDataset
from advl_data.scenes.generator import layout
from advl_pipeline.datasets.benchmark import Benchmark, ReadOptions
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.indexed import IndexedDataset, Source
from advl_pipeline.datasets.roots import DatasetMissing, index_folder
from advl_pipeline.datasets.snli_ve import SnliVeDataset, SnliVeFiles
from advl_pipeline.datasets.vcr import VcrDataset, VcrFiles
from advl_pipeline.datasets.vqa import VqaDataset, VqaFiles, vocabulary_of
from advl_pipeline.datasets.vqa_answers import read_vocabulary


def _source(name: str, folder: str, split: str, root: Path, options: ReadOptions, *, pictures: str = ".") -> Source:
    corpus = root / layout.FOLDER
    if not corpus.is_dir():
        raise DatasetMissing(
            "The built-in corpus has not been built.",
            where=str(corpus),
            next_command="advl scenes build",
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
    return VcrDataset(
        _source("scenes-vcr", layout.VCR_FOLDER, split, root, options, pictures=layout.VCR_IMAGES),
        VcrFiles(annotations=layout.vcr_annotations(split).name, labelled=True),
        tasks=options.tasks,
        text_style=options.text_style or "indexed",
        conditioning=options.conditioning,
    )


def _open_vqa(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = partial(_source, "scenes-vqa", layout.VQA_FOLDER, root=root, options=options)
    train = [(source(split="train"), _vqa_files("train"), None)]
    answers = options.answers

    def vocabulary() -> tuple[str, ...]:
        if answers is None:
            # Answers of the corpus carry no annotation noise: every one that training knows is a class.
            return vocabulary_of(train, min_occurrences=1)
        return read_vocabulary(answers) if isinstance(answers, Path) else answers

    return VqaDataset(source(split=split), _vqa_files(split), vocabulary=vocabulary)


def _vqa_files(split: str) -> VqaFiles:
    return VqaFiles(
        questions=layout.vqa_questions(split).name,
        annotations=layout.vqa_annotations(split).name,
        subtype=layout.vqa_subtype(split),
        boxes=layout.boxes(layout.VQA_FOLDER, split).name,
    )


def _open_snli_ve(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    files = SnliVeFiles(
        annotations=layout.snli_ve_annotations(split).name,
        images=layout.FLICKR_IMAGES,
        boxes=layout.boxes(layout.SNLI_VE_FOLDER, split).name,
    )
    source = _source("scenes-snli-ve", layout.SNLI_VE_FOLDER, split, root, options)
    return SnliVeDataset(source, files, label_order=options.label_order)


def _open_captions(split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    source = _source("scenes-captions", layout.CAPTIONS_FOLDER, split, root, options)
    return CaptionDataset(source, layout.captions(split).name)


def _common_name(split: str, question: str) -> str:
    """Return what a question is called in all splits that ask it.

    An id holds the split, in the VCR format by its name and in the others by the first digit. Splits that the card
    compares hold the same items in the same order; the others are kept apart by what stands before.
    """
    if split not in layout.SPLIT_CODES:
        return question
    own = question.removeprefix(f"{split}-")
    if own == question:
        own = question.removeprefix(str(layout.SPLIT_CODES[split]))
    return f"{load_card('scenes').splits.get(split, {}).get('compare_with', split)} {own}"


_benchmark = partial(Benchmark, card=load_card("scenes"), common_name=_common_name)

VCR = _benchmark(name="scenes-vcr", tasks=("vcr-q2a", "vcr-qa2r"), splits=layout.TASK_SPLITS, open=_open_vcr)
VQA = _benchmark(name="scenes-vqa", tasks=("vqa",), splits=layout.TASK_SPLITS, open=_open_vqa)
SNLI_VE = _benchmark(name="scenes-snli-ve", tasks=("snli-ve",), splits=layout.TASK_SPLITS, open=_open_snli_ve)
CAPTIONS = _benchmark(name="scenes-captions", tasks=("captions",), splits=layout.CAPTION_SPLITS, open=_open_captions)
