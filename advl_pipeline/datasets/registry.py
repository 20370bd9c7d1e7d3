"""Datasets by name: the official benchmarks as their cards describe them, the built-in corpus, data of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from advl_pipeline.datasets.captions import CaptionDataset
from advl_pipeline.datasets.cards import CARD_NAMES, JOIN, load_card
from advl_pipeline.datasets.id_lists import read_pair_ids, vqa_part
from advl_pipeline.datasets.indexed import IndexedDataset, Source
from advl_pipeline.datasets.joined import UnionOfSplits
from advl_pipeline.datasets.own.dataset import class_names
from advl_pipeline.datasets.own.source import is_rows, open_own, plugin_entry_points
from advl_pipeline.datasets.problems import OnError
from advl_pipeline.datasets.records import Task
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, resolve_data_root
from advl_pipeline.datasets.scenes import layout
from advl_pipeline.datasets.snli_ve import LABEL_ORDERS, LabelOrder, SnliVeDataset, SnliVeFiles
from advl_pipeline.datasets.vcr import Conditioning, VcrDataset, VcrFiles
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.datasets.vqa import VqaDataset, VqaFiles, vocabulary_of
from advl_pipeline.datasets.vqa_answers import MIN_OCCURRENCES, read_vocabulary
from advl_pipeline.errors import ConfigError, suggest_names

TASKS: Mapping[str, tuple[Task, ...]] = {
    "scenes-vcr": ("vcr-q2a", "vcr-qa2r"),
    "scenes-vqa": ("vqa",),
    "scenes-snli-ve": ("snli-ve",),
    "scenes-captions": ("captions",),
    "vcr": ("vcr-q2a", "vcr-qa2r"),
    "vqa-v2": ("vqa",),
    "vqa-cp-v2": ("vqa",),
    "vqa-vs": ("vqa",),
    "snli-ve": ("snli-ve",),
}
"""Name of a dataset that ADVL knows -> the tasks it is opened for unless fewer are asked for."""

SCENES_PREFIX = "scenes-"

AnswerList = Literal["train", "published"]
"""From whose annotations the answer vocabulary of VQA is built: of train alone, so that no other split has a say in
training, or of the splits that the published models count (`answer_lists` of the card)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How a dataset is read.

    `text_style` words VCR's object tags (`vcr_text`); None for the dataset's default. `conditioning` is the answers
    that VCR rationales are given; None for the right one where it is known. `label_order` orders the classes of
    SNLI-VE. `answers` is an answer vocabulary for VQA, or the classes or answers of one's own data, or a file with
    them; None to build the one that `answer_list` names. `on_error` says whether malformed items and unreadable
    pictures fail or are left out and listed in `skipped`.
    """

    tasks: tuple[Task, ...] = ()
    text_style: TextStyle | None = None
    conditioning: Conditioning | None = None
    label_order: LabelOrder = "uniter"
    answers: Path | tuple[str, ...] | None = None
    answer_list: AnswerList = "train"
    on_error: OnError = "fail"


def dataset_names() -> tuple[str, ...]:
    """Names that `open_dataset` takes, beside those that say where data of one's own lies (`names.py`)."""
    return tuple(sorted({*TASKS, *plugin_entry_points()}))


def tasks_of(name: str, data_root: Path | None = None) -> tuple[Task, ...]:
    """Tasks of a dataset.

    Raises:
        ConfigError: there is no such dataset. DatasetError: data of one's own that cannot be read.
    """
    _require_name(name)
    return TASKS[name] if name in TASKS else open_own(name, data_root).index.tasks


def splits_of(name: str, data_root: Path | None = None) -> tuple[str, ...]:
    """Splits of a dataset.

    Raises:
        ConfigError: there is no such dataset. DatasetError: data of one's own that cannot be read.
    """
    _require_name(name)
    if name not in TASKS:
        return open_own(name, data_root).index.splits
    if name == "scenes-captions":
        return layout.CAPTION_SPLITS
    if name.startswith(SCENES_PREFIX):
        return layout.TASK_SPLITS
    return tuple(load_card(name).splits)


def vqa_mode_of(name: str) -> Literal["2021", "2017", "vqa-vs"]:
    """Return the evaluator that a VQA dataset is scored by: its card's, else the official one of 2021."""
    if name not in CARD_NAMES:
        return "2021"
    mode: Literal["2021", "2017", "vqa-vs"] = load_card(name).facts.get("vqa_mode", "2021")
    return mode


def open_dataset(
    name: str,
    *,
    split: str,
    data_root: Path | None = None,
    tasks: Sequence[str] = (),
    text_style: TextStyle | None = None,
    conditioning: Conditioning | None = None,
    label_order: LabelOrder = "uniter",
    answers: Path | tuple[str, ...] | None = None,
    answer_list: AnswerList = "train",
    on_error: OnError = "fail",
) -> IndexedDataset:
    """Open one split of a dataset.

    Args:
        name: see `dataset_names`.
        split: see `splits_of`.
        data_root: folder of the datasets; None for `$ADVL_DATA`, else `datasets/`. Of one's own data: the folder of
            the pictures; None for that of the file.
        tasks: restrict to these; all tasks of the dataset by default.
        text_style, conditioning, label_order, answers, answer_list, on_error: see `ReadOptions`.

    Raises:
        ConfigError: an unknown name, split, task or option.
        DatasetError: a file is missing or malformed.
    """
    _require_name(name)
    own = None if name in TASKS else open_own(name, data_root)
    options = ReadOptions(
        tasks=_tasks_of(name, own.index.tasks if own else TASKS[name], tasks),
        text_style=_one_of("text style", text_style, get_args(TextStyle)),
        conditioning=_one_of("conditioning", conditioning, get_args(Conditioning)),
        label_order=_one_of("label order", label_order, tuple(LABEL_ORDERS)) or "uniter",
        answers=answers,
        answer_list=_one_of("answer list", answer_list, get_args(AnswerList)),
        on_error=on_error,
    )
    _check_answer_list(name, options)
    splits = own.index.splits if own else splits_of(name)
    _require_split(name, split, splits)
    if own:
        return own.open(split, tasks=options.tasks, classes=options.answers, on_error=options.on_error)
    root = resolve_data_root(data_root)
    if name.startswith(SCENES_PREFIX):
        return _open_scenes(name, split, root, options)
    return _OPENERS[load_card(name).format](name, split, root, options)


def open_splits(name: str, *, split: str, **options: Any) -> IndexedDataset | UnionOfSplits:
    """Open a split, or several that are joined by +, such as train+val: all that a run is trained on.

    Args:
        name: see `dataset_names`.
        split: of the dataset, or names of several.
        options: as `open_dataset` takes them.

    Raises:
        ConfigError, DatasetError: as `open_dataset`, or splits that hold the same items.
    """
    names = split.split(JOIN)
    if len(names) == 1:
        return open_dataset(name, split=split, **options)
    counted = load_card(name).facts.get("answer_lists", {}) if name in CARD_NAMES else {}
    if counted.get("published") == names and options.get("answers") is None:
        # A run that trains on all that the published models count knows all of their answers.
        options = {**options, "answer_list": "published"}
    if name not in TASKS and options.get("answers") is None:
        options = {**options, "answers": _shared_classes(name, names, options.get("data_root"))}
    return UnionOfSplits([open_dataset(name, split=part, **options) for part in names])


def _shared_classes(name: str, splits: Sequence[str], data_root: Path | None) -> tuple[str, ...]:
    """Return the classes of splits of one's own data: each alone might have others, and so number them otherwise."""
    _require_name(name)
    own = open_own(name, data_root)
    for split in splits:
        _require_split(name, split, own.index.splits)
    return class_names(own.index, own.rows.card, splits)


def _open_scenes(name: str, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    corpus = root / layout.FOLDER
    if not corpus.is_dir():
        raise DatasetMissing(
            "The built-in corpus has not been built.",
            where=str(corpus),
            next_command="advl datasets build scenes",
        )

    def source(folder: str, pictures: str = ".", of: str = split) -> Source:
        home = corpus / folder
        return Source(
            dataset=name,
            split=of,
            folder=home,
            pictures=home / pictures,
            index=index_folder(root, home),
            on_error=options.on_error,
        )

    if name == "scenes-vcr":
        return VcrDataset(
            source(layout.VCR_FOLDER, layout.VCR_IMAGES),
            VcrFiles(annotations=layout.vcr_annotations(split).name, labelled=True),
            tasks=options.tasks,
            text_style=options.text_style or "indexed",
            conditioning=options.conditioning,
        )
    if name == "scenes-vqa":

        def files(of: str) -> VqaFiles:
            return VqaFiles(
                questions=layout.vqa_questions(of).name,
                annotations=layout.vqa_annotations(of).name,
                subtype=layout.vqa_subtype(of),
                boxes=layout.boxes(layout.VQA_FOLDER, of).name,
            )

        train = [(source(layout.VQA_FOLDER, of="train"), files("train"), None)]
        # Answers of the corpus carry no annotation noise: every one that training knows is a class.
        vocabulary = _vocabulary(options.answers, lambda: vocabulary_of(train, min_occurrences=1))
        return VqaDataset(source(layout.VQA_FOLDER), files(split), vocabulary=vocabulary)
    if name == "scenes-snli-ve":
        snli_files = SnliVeFiles(
            annotations=layout.snli_ve_annotations(split).name,
            images=layout.FLICKR_IMAGES,
            boxes=layout.boxes(layout.SNLI_VE_FOLDER, split).name,
        )
        return SnliVeDataset(source(layout.SNLI_VE_FOLDER), snli_files, label_order=options.label_order)
    return CaptionDataset(source(layout.CAPTIONS_FOLDER), layout.captions(split).name)


def _source(name: str, split: str, root: Path, options: ReadOptions) -> Source:
    facts = load_card(name).facts
    folder = root / facts["folder"]
    if not folder.is_dir():
        raise DatasetMissing(
            f"The dataset {name} is not there.",
            where=str(folder),
            why="the folder does not exist; the data root is $ADVL_DATA, or datasets/",
            next_command=f"advl datasets card {name}   (what to download and where to put it)",
        )
    return Source(
        dataset=name,
        split=split,
        folder=folder,
        pictures=root / facts["pictures_folder"],
        index=index_folder(root, folder),
        on_error=options.on_error,
    )


def _open_vcr(name: str, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    card = load_card(name)
    facts = card.split(split)
    return VcrDataset(
        _source(name, split, root, options),
        VcrFiles(annotations=facts["annotations"], labelled=facts["labelled"]),
        tasks=options.tasks,
        text_style=options.text_style or card.facts["text_style"],
        conditioning=options.conditioning,
    )


def _open_vqa(name: str, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    card = load_card(name)
    source = _source(name, split, root, options)

    def counted(of: str) -> tuple[Source, VqaFiles, frozenset[int] | None]:
        facts, home = card.split(of), _source(name, of, root, options)
        return home, _vqa_files(facts), vqa_part(home, _vqa_files(facts), facts)

    splits = card.facts["answer_lists"][options.answer_list]
    vocabulary = _vocabulary(
        options.answers, lambda: vocabulary_of(list(map(counted, splits)), min_occurrences=MIN_OCCURRENCES)
    )
    facts = card.split(split)
    part = vqa_part(source, _vqa_files(facts), facts)
    return VqaDataset(source, _vqa_files(facts), vocabulary=vocabulary, keep=part)


def _open_snli_ve(name: str, split: str, root: Path, options: ReadOptions) -> IndexedDataset:
    facts = load_card(name).split(split)
    source = _source(name, split, root, options)
    keep = read_pair_ids(source, facts["ids"]) if "ids" in facts else None
    files = SnliVeFiles(annotations=facts["annotations"])
    return SnliVeDataset(source, files, label_order=options.label_order, keep=keep)


def _vqa_files(facts: Mapping[str, Any]) -> VqaFiles:
    return VqaFiles(questions=facts["questions"], annotations=facts.get("annotations"), subtype=facts.get("subtype"))


def _vocabulary(
    answers: Path | tuple[str, ...] | None, build: Callable[[], tuple[str, ...]]
) -> Callable[[], tuple[str, ...]]:
    if answers is None:
        return build
    return lambda: read_vocabulary(answers) if isinstance(answers, Path) else answers


def _check_answer_list(name: str, options: ReadOptions) -> None:
    """Refuse a published list where there is none, and two lists at once.

    Raises:
        ConfigError: as said.
    """
    if options.answer_list == "train":
        return
    if name not in TASKS or name.startswith(SCENES_PREFIX) or load_card(name).format != "vqa":
        raise ConfigError(
            f"{name} has no published answer list.",
            where="--answer-list",
            why="only VQA v2 and its reshuffles have one",
            next_command="leave out --answer-list",
        )
    if options.answers is not None:
        raise ConfigError(
            "Two answer lists are asked for.",
            why="--answers gives a list, and --answer-list published builds another",
            next_command="give one of --answers and --answer-list",
        )


_OPENERS: Mapping[str, Callable[[str, str, Path, ReadOptions], IndexedDataset]] = {
    "vcr": _open_vcr,
    "vqa": _open_vqa,
    "snli-ve": _open_snli_ve,
}


def _require_name(name: str) -> None:
    if name not in TASKS and not is_rows(name):
        raise ConfigError(
            f"There is no dataset {name!r}.",
            why=suggest_names(name, dataset_names()),
            next_command="advl datasets list   (known names; your own data: docs/adding-a-dataset.md)",
        )


def _require_split(name: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise ConfigError(f"{name} has no split {split!r}.", why=suggest_names(split, known))


def _tasks_of(name: str, known: Sequence[Task], wanted: Sequence[str]) -> tuple[Task, ...]:
    for task in wanted:
        if task not in known:
            raise ConfigError(f"{name} has no task {task!r}.", why=suggest_names(task, known))
    return tuple(task for task in known if not wanted or task in wanted)


def _one_of(what: str, value: Any, known: Sequence[str]) -> Any:
    if value is not None and value not in known:
        raise ConfigError(f"There is no {what} {value!r}.", why=suggest_names(str(value), known))
    return value
