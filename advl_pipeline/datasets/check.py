"""`run_check`: what of a dataset is there, what is missing, what is damaged, against its card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from advl_pipeline.datasets.cards import ROWS, Card, card_names, load_card, rows_card
from advl_pipeline.datasets.config import CheckConfig, SubsetConfig
from advl_pipeline.datasets.id_lists import read_pairs
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import IdList, nested_subset, write_id_list
from advl_pipeline.datasets.own.hub import hub_names
from advl_pipeline.datasets.own.source import open_own
from advl_pipeline.datasets.problems import Malformed, NothingUsable, Problem
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Candidate, Example, normalise_text
from advl_pipeline.datasets.registry import benchmark_of, dataset_names, open_dataset, splits_of
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, resolve_data_root
from advl_pipeline.datasets.snli_ve import STORED_ORDER
from advl_pipeline.datasets.tables import parse_object, scan_lines
from advl_pipeline.errors import AdvlError, ConfigError, DatasetError, suggest_names
from advl_pipeline.outputs import require_outputs

Status = Literal["ok", "differs", "missing", "malformed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """What was found of one split.

    `differs` means that everything reads, but counts or fields are not those of the card. `expected` holds the card's
    counts under the names of the attributes they belong to. `next_command` mends a split that is not to be opened.
    """

    split: str
    status: Status
    num_items: int = 0
    num_pictures: int = 0
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    expected: Mapping[str, int] = field(default_factory=dict)
    next_command: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One entry per split; `usable` says that some split is there and none is malformed."""

    name: str
    data_root: Path
    deep: bool
    splits: tuple[SplitCheck, ...]

    @property
    def usable(self) -> bool:
        statuses = {split.status for split in self.splits}
        return "malformed" not in statuses and bool(statuses & {"ok", "differs"})


def run_check(config: CheckConfig, *, progress: bool = False) -> CheckResult:
    """Check a dataset: annotations fully, pictures for being there, or decoded with `deep`.

    Raises:
        ConfigError: an unknown dataset or split.
    """
    known = splits_of(config.name, config.data_root)
    for split in config.split:
        if split not in known:
            raise ConfigError(f"{config.name} has no split {split!r}.", why=suggest_names(split, known))
    absent = _absent(config)
    return CheckResult(
        name=config.name,
        data_root=resolve_data_root(config.data_root),
        deep=config.deep,
        splits=tuple(
            absent(split) if absent else _check_split(config, split, progress) for split in config.split or known
        ),
    )


def run_subset(config: SubsetConfig) -> IdList:
    """Draw a low-shot subset and write its ids.

    Raises:
        ConfigError: the split holds fewer questions, or a file that is no such list lies there.
        DatasetError: the split is missing or malformed.
    """
    require_outputs(config)
    dataset = open_dataset(config.name, split=config.split, data_root=config.data_root)
    subset = IdList(
        dataset=dataset.identity_name,
        split=config.split,
        shots=config.shots,
        seed=config.seed,
        example_ids=nested_subset(dataset, config.shots, config.seed),
    )
    write_id_list(config.output, subset)
    return subset


def _absent(config: CheckConfig) -> Callable[[str], SplitCheck] | None:
    """Return what says of a split of a published set that it is not here and what would be fetched; None if it is."""
    if rows_card(config.name) is None:
        return None
    try:
        open_own(config.name, config.data_root)
    except DatasetMissing as error:
        found = error
        size = load_card(config.name).facts["size"]
        problem = Problem(file=found.where, line=0, why=found.why)
        return lambda split: SplitCheck(
            split=split,
            status="missing",
            problems=(problem,),
            notes=(f"not here: {found.why}; would be fetched: {size}",),
            expected=_expected(load_card(config.name).split(split)),
            next_command=found.next_command,
        )
    return None


def _expected(facts: Mapping[str, Any]) -> dict[str, int]:
    return {name: facts[key] for name, key in (("num_items", "items"), ("num_pictures", "pictures")) if key in facts}


def _check_split(config: CheckConfig, split: str, progress: bool) -> SplitCheck:
    facts = load_card(config.name).split(split) if config.name in card_names() else {}
    expected = _expected(facts)
    try:
        dataset = open_dataset(config.name, split=split, data_root=config.data_root, on_error="list")
    except DatasetError as error:
        listed = error.problems if isinstance(error, NothingUsable) else ()
        return SplitCheck(
            split=split,
            status="missing" if isinstance(error, DatasetMissing) else "malformed",
            problems=listed or (Problem(file=error.where, line=0, why=error.why or error.what),),
            expected=expected,
            next_command=error.next_command,
        )
    num_pictures, picture_problems = dataset.picture_problems(deep=config.deep, progress=progress)
    problems = [*dataset.skipped, *picture_problems]
    if config.deep and not problems:
        problems = [Problem(file=config.name, line=0, why=broken) for broken in broken_promises(dataset)]
    num_items = len(dataset.question_table().question_ids)
    found = {"num_items": num_items, "num_pictures": num_pictures}
    notes = [
        f"{name.removeprefix('num_')}: {found[name]:,} found, the card says {count:,}"
        for name, count in expected.items()
        if found[name] != count
    ]
    if dataset.tasks == ("snli-ve",):
        notes += _label_notes(dataset, facts.get("labels", {}))
    if dataset.tasks == ("vqa",) and "complementary_pairs" in facts:
        problems += _pair_problems(config, dataset, facts["complementary_pairs"])
    notes += _field_notes(config, facts)
    status: Status = "malformed" if problems else ("differs" if notes else "ok")
    return SplitCheck(
        split=split,
        status=status,
        num_items=num_items,
        num_pictures=num_pictures,
        problems=tuple(problems),
        notes=(*notes, *filter(None, [dataset.left_out])),
        expected=expected,
    )


def _label_notes(dataset: IndexedDataset, expected: Mapping[str, int]) -> list[str]:
    counts = Counter(dataset.question_table().cells.tolist())
    found = {name: counts[label] for label, name in enumerate(STORED_ORDER)}
    return [
        f"label {name}: {found[name]:,} found, the card says {count:,}"
        for name, count in expected.items()
        if found[name] != count
    ]


def _pair_problems(config: CheckConfig, dataset: IndexedDataset, name: str) -> list[Problem]:
    """Check the list of complementary pairs, which is optional."""
    path = resolve_data_root(config.data_root) / load_card(config.name).facts["folder"] / name
    if not path.is_file():
        return []
    try:
        pairs = read_pairs(path)
    except DatasetError as error:
        return [Problem(file=str(path), line=0, why=error.why)]
    known = np.array([int(question_id) for question_id in dataset.example_ids], dtype=np.int64)
    unknown = int((~np.isin(pairs, known)).any(axis=1).sum())
    if unknown:
        return [Problem(file=str(path), line=0, why=f"{unknown} pairs name a question that is not there")]
    return []


def _field_notes(config: CheckConfig, facts: Mapping[str, Any]) -> list[str]:
    """Compare the fields of a JSONL file's first line with the card's."""
    name = facts.get("annotations", "")
    if not name.endswith(".jsonl"):
        return []
    card = load_card(config.name)
    path = resolve_data_root(config.data_root) / card.facts["folder"] / name
    try:
        line = next(scan_lines(path))
        record = parse_object(line.data)
    except (StopIteration, Malformed):
        return []
    optional = set(card.facts.get("optional_fields", ()))
    if not facts.get("labelled", True):
        optional |= {"answer_label", "rationale_label"}
    missing = [field for field in card.facts["fields"] if field not in record and field not in optional]
    return [f"fields missing from the first line: {', '.join(missing)}"] if missing else []


MAX_EXAMPLES = 500
"""Examples that are looked at, spread over the split."""


def broken_promises(dataset: IndexedDataset) -> list[str]:
    """Return what a dataset does not keep of the following; nothing where it keeps all.

    - Ids are unique, and `position` finds each.
    - An example is the same whenever it is read.
    - Its picture and its texts are among the units, which are unique.
    - A label is a position among its candidates, or a class; a soft label holds classes, each once, with scores in
      (0, 1].
    - A tag lies in its text and names a box of its picture; context and question are beginnings of the text.
    - The table of questions holds every example once, and subsets of one seed are nested.

    Raises:
        DatasetError: a row or a picture is malformed.
    """
    return list(dict.fromkeys(_broken(dataset)))


def _broken(dataset: IndexedDataset) -> Iterator[str]:
    ids = list(dataset.example_ids)
    if len(ids) != len(dataset) or len(set(ids)) != len(ids):
        yield f"{len(dataset)} examples have {len(set(ids))} different ids"
        return
    images = [unit.unit_id for unit in dataset.image_units()]
    texts = [unit.unit_id for unit in dataset.text_units()]
    if len(set(images)) != len(images) or len(set(texts)) != len(texts):
        yield "a unit is listed twice"
    known_images, known_texts = set(images), set(texts)
    step = max(1, len(ids) // MAX_EXAMPLES)
    for index in range(0, len(ids), step):
        example = dataset[index]
        name = ids[index]
        if example.example_id != name or dataset.position(name) != index:
            yield f"example {index} is {example.example_id!r}, its id is listed as {name!r}"
        if _told(example) != _told(dataset[index]):
            yield f"example {name!r} is not the same when it is read again"
        if example.task not in dataset.tasks:
            yield f"example {name!r} is of task {example.task}, the split has {', '.join(dataset.tasks)}"
        if example.image.unit_id not in known_images:
            yield f"the picture of example {name!r} is no unit of the split"
        if not all(candidate.text_unit.unit_id in known_texts for candidate in example.candidates):
            yield f"a text of example {name!r} is no unit of the split"
        yield from _broken_labels(dataset, example)
        for candidate in example.candidates:
            yield from _broken_text(example, candidate)
    yield from _broken_subsets(dataset, ids)


def _told(example: Example) -> tuple[object, ...]:
    boxes = example.image.boxes_R4.tolist()
    image = (example.image.unit_id, example.image.path, example.image.width, example.image.height, boxes)
    return (example.example_id, image, example.candidates, example.label, example.soft_label, example.cluster)


def _broken_labels(dataset: IndexedDataset, example: Example) -> Iterator[str]:
    is_choice = example.task in MULTIPLE_CHOICE_TASKS
    if is_choice == (len(example.candidates) < 2):
        yield f"example {example.example_id!r} of task {example.task} has {len(example.candidates)} candidates"
    count = len(example.candidates) if is_choice else len(dataset.label_names(example.task))
    if example.label is not None and not 0 <= example.label < count:
        yield f"the label of example {example.example_id!r} is {example.label}, there are {count}"
    classes = [index for index, _ in example.soft_label]
    if len(set(classes)) != len(classes) or not all(0 <= index < count for index in classes):
        yield f"the soft label of example {example.example_id!r} names a class twice or one that there is not"
    if not all(0 < score <= 1 for _, score in example.soft_label):
        yield f"the soft label of example {example.example_id!r} has a score outside (0, 1]"


def _broken_text(example: Example, candidate: Candidate) -> Iterator[str]:
    text, name = candidate.text, example.example_id
    if not text or normalise_text(text) != text:
        yield f"a text of example {name!r} is empty or not in normal form"
    if not 0 <= candidate.question_length <= candidate.context_length <= len(text):
        yield f"context or question of example {name!r} is longer than its text"
    for tag in candidate.tags:
        if not (0 <= tag.start < tag.end <= len(text) and 0 <= tag.box < len(example.image.boxes_R4)):
            yield f"a tag of example {name!r} lies outside its text, or names a box that its picture does not have"


def _broken_subsets(dataset: IndexedDataset, ids: list[str]) -> Iterator[str]:
    table = dataset.question_table()
    if sorted(name for names in table.example_ids for name in names) != sorted(ids):
        yield "the table of questions does not hold every example once"
    total = len(table.question_ids)
    small, large = (set(nested_subset(dataset, size, seed=0)) for size in (max(1, total // 4), max(1, total // 2)))
    if not small <= large:
        yield "the smaller subset of a seed is no part of the larger one"


_TEXT_FIELDS = ("how_to_get", "scoring", "chance", "size", "licence", "homepage", "seen", "tried")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One dataset; `present` says that its folder exists, nothing about its content."""

    name: str
    title: str
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    present: bool


def list_datasets(data_root: Path | None) -> tuple[DatasetRow, ...]:
    """List all datasets that `open_dataset` takes."""
    root = resolve_data_root(data_root)
    return tuple(_row(name, root, data_root) for name in dataset_names())


def _row(name: str, root: Path, data_root: Path | None) -> DatasetRow:
    benchmark = benchmark_of(name)
    if rows_card(name) is not None:
        card = load_card(name)
        return DatasetRow(
            name=name,
            title=card.title,
            tasks=tuple(card.facts["tasks"]),
            splits=tuple(card.splits),
            present=is_here(card, root),
        )
    if benchmark is None:
        return _row_of_reader(name, data_root)
    return DatasetRow(
        name=name,
        title=benchmark.card.title,
        tasks=benchmark.tasks,
        splits=benchmark.splits,
        present=benchmark.is_in(root),
    )


def is_here(card: Card, root: Path) -> bool:
    """Tell whether a set of the hub is on this machine: its rows were read before, or its repositories are copied."""
    names = hub_names(card.facts["files"], root).values()
    return all(name.copy for name in names) or any(index_folder(root, root / card.name).glob("*.arrow"))


def _row_of_reader(name: str, data_root: Path | None) -> DatasetRow:
    """Describe what a reader of another package gives; one whose data are not there has no tasks and no splits."""
    try:
        index = open_own(name, data_root).index
    except AdvlError as error:
        return DatasetRow(name=name, title=error.what, tasks=(), splits=(), present=False)
    title = "rows that another package reads"
    return DatasetRow(name=name, title=title, tasks=index.tasks, splits=index.splits, present=True)


def card_of(name: str) -> Card:
    """Return the card of a name, or of the dataset of that name.

    Raises:
        ConfigError: there is no such dataset.
    """
    if name in card_names():
        return load_card(name)
    benchmark = benchmark_of(name)
    if benchmark is None:
        known = dict.fromkeys([*dataset_names(), *card_names()])
        raise ConfigError(f"There is no dataset {name!r}.", why=suggest_names(name, known))
    return benchmark.card


def card_text(card: Card) -> str:
    """Return a card for people."""
    parts = [f"{card.name}: {card.title}"]
    for name in _TEXT_FIELDS:
        if name in card.facts:
            text = str(card.facts[name]).strip()
            parts.append(f"{name.replace('_', ' ')}\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    if card.format == ROWS:
        named = hub_names(card.facts["files"], Path())
        parts.append("read from\n" + "\n".join(f"  {split or 'all splits'}: {name}" for split, name in named.items()))
    lines = []
    for split, facts in card.splits.items():
        counts = ", ".join(f"{facts[key]:,} {key}" for key in ("items", "pictures") if key in facts)
        lines.append(f"  {split:<20} {counts}" + (f"  ({facts['shift']})" if "shift" in facts else ""))
    if lines:
        parts.append("splits\n" + "\n".join(lines))
    return "\n\n".join(parts)
