"""What is there: datasets and their cards at a glance, and one of them checked against its card and the contract.

`advl datasets check NAME --deep` asks what every dataset promises; a test of a reader calls `broken_promises`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from advl_pipeline.datasets.cards import ROWS, Card, card_names, load_card, rows_card
from advl_pipeline.datasets.config import CheckConfig, SubsetConfig
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.lowshot import IdList, nested_subset, write_id_list
from advl_pipeline.datasets.own.hub import hub_names
from advl_pipeline.datasets.problems import NothingUsable, Problem
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, normalise_text
from advl_pipeline.datasets.registry import benchmark_of, dataset_names, open_dataset, splits_of, tasks_of
from advl_pipeline.datasets.roots import DatasetMissing, index_folder, resolve_data_root
from advl_pipeline.datasets.snli_ve import STORED_ORDER
from advl_pipeline.errors import AdvlError, ConfigError, DatasetError, suggest_names
from advl_pipeline.outputs import require_outputs

Status = Literal["ok", "differs", "missing", "malformed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """What was found of one split.

    `differs` means that everything reads, but counts are not those of the card. `expected` holds the card's
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
    return CheckResult(
        name=config.name,
        data_root=resolve_data_root(config.data_root),
        deep=config.deep,
        splits=tuple(_check_split(config, split, progress) for split in config.split or known),
    )


def _check_split(config: CheckConfig, split: str, progress: bool) -> SplitCheck:
    card = load_card(config.name) if config.name in card_names() else None
    facts = card.split(split) if card else {}
    expected = {f"num_{key}": facts[key] for key in ("items", "pictures") if key in facts}
    try:
        dataset = open_dataset(config.name, split=split, data_root=config.data_root, on_error="list")
    except DatasetError as error:
        is_missing, notes = isinstance(error, DatasetMissing), []
        problems = list(error.problems) if isinstance(error, NothingUsable) else []
        if is_missing and card and card.format == ROWS:
            notes = [f"not here: {error.why}; would be fetched: {card.facts['size']}"]
        return SplitCheck(
            split=split,
            status="missing" if is_missing else "malformed",
            problems=tuple(problems) or (Problem(file=error.where, line=0, why=error.why or error.what),),
            notes=tuple(notes),
            expected=expected,
            next_command=error.next_command,
        )
    num_pictures, picture_problems = dataset.picture_problems(deep=config.deep, progress=progress)
    problems = [*dataset.skipped, *picture_problems]
    if config.deep and not problems:
        problems = [Problem(file=config.name, line=0, why=broken) for broken in broken_promises(dataset)]
    table = dataset.question_table()
    num_items, in_cell = len(table.question_ids), Counter(table.cells.tolist())
    counts = {"items": (num_items, facts.get("items")), "pictures": (num_pictures, facts.get("pictures"))}
    if dataset.tasks == ("snli-ve",):
        for name, count in facts.get("labels", {}).items():
            counts[f"label {name}"] = (in_cell[STORED_ORDER.index(name)], count)
    notes = [
        f"{name}: {found:,} found, the card says {count:,}"
        for name, (found, count) in counts.items()
        if count not in (None, found)
    ]
    return SplitCheck(
        split=split,
        status="malformed" if problems else ("differs" if notes else "ok"),
        num_items=num_items,
        num_pictures=num_pictures,
        problems=tuple(problems),
        notes=(*notes, *filter(None, [dataset.left_out])),
        expected=expected,
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
    ids = list(dataset.example_ids)
    if len(ids) != len(dataset) or len(set(ids)) != len(ids):
        return [f"{len(dataset)} examples have {len(set(ids))} different ids"]
    broken = []
    units = [unit.unit_id for unit in dataset.image_units()]
    units += [unit.unit_id for unit in dataset.text_units()]
    if len(set(units)) != len(units):
        broken.append("a unit is listed twice")
    known = frozenset(units)
    for index in range(0, len(ids), max(1, len(ids) // MAX_EXAMPLES)):
        broken += _broken_in(dataset, index, known)
    table = dataset.question_table()
    if sorted(chain.from_iterable(table.example_ids)) != sorted(ids):
        broken.append("the table of questions does not hold every example once")
    sizes = (max(1, len(table.question_ids) // part) for part in (4, 2))
    small, large = (set(nested_subset(dataset, size, seed=0)) for size in sizes)
    if not small <= large:
        broken.append("the smaller subset of a seed is no part of the larger one")
    return list(dict.fromkeys(broken))


def _broken_in(dataset: IndexedDataset, index: int, units: Collection[str]) -> Iterator[str]:
    """Yield what one example does not keep."""
    example, again, name = dataset[index], dataset[index], dataset.example_ids[index]
    if example.example_id != name or dataset.position(name) != index:
        yield f"example {index} is {example.example_id!r}, its id is listed as {name!r}"
    # A picture is read once, and its boxes are an array: records that hold them are not compared as a whole.
    if replace(again, image=example.image) != example or again.image.unit_id != example.image.unit_id:
        yield f"example {name!r} is not the same when it is read again"
    if example.task not in dataset.tasks:
        yield f"example {name!r} is of task {example.task}, the split has {', '.join(dataset.tasks)}"
    if example.image.unit_id not in units:
        yield f"the picture of example {name!r} is no unit of the split"
    is_choice = example.task in MULTIPLE_CHOICE_TASKS
    if is_choice == (len(example.candidates) < 2):
        yield f"example {name!r} of task {example.task} has {len(example.candidates)} candidates"
    count = len(example.candidates) if is_choice else len(dataset.label_names(example.task))
    if example.label is not None and not 0 <= example.label < count:
        yield f"the label of example {name!r} is {example.label}, there are {count}"
    classes = [place for place, _ in example.soft_label]
    if len(set(classes)) != len(classes) or not all(0 <= place < count for place in classes):
        yield f"the soft label of example {name!r} names a class twice or one that there is not"
    if not all(0 < score <= 1 for _, score in example.soft_label):
        yield f"the soft label of example {name!r} has a score outside (0, 1]"
    for candidate in example.candidates:
        text, num_boxes = candidate.text, len(example.image.boxes_R4)
        if candidate.text_unit.unit_id not in units:
            yield f"a text of example {name!r} is no unit of the split"
        if not text or normalise_text(text) != text:
            yield f"a text of example {name!r} is empty or not in normal form"
        if not 0 <= candidate.question_length <= candidate.context_length <= len(text):
            yield f"context or question of example {name!r} is longer than its text"
        if not all(0 <= tag.start < tag.end <= len(text) and 0 <= tag.box < num_boxes for tag in candidate.tags):
            yield f"a tag of example {name!r} lies outside its text, or names a box that its picture does not have"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRow:
    """One dataset; `present` says that its folder exists, nothing about its content."""

    name: str
    title: str
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    present: bool


def list_datasets(data_root: Path | None) -> tuple[DatasetRow, ...]:
    """List all datasets that `open_dataset` takes; one whose reader finds no data has no tasks and no splits."""
    root, rows = resolve_data_root(data_root), []
    for name in dataset_names():
        benchmark, is_rows = benchmark_of(name), rows_card(name) is not None
        title, is_present = "rows that another package reads", True
        try:
            tasks, splits = tasks_of(name, data_root), splits_of(name, data_root)
        except AdvlError as error:
            title, tasks, splits, is_present = error.what, (), (), False
        if benchmark:
            title, is_present = benchmark.card.title, (root / benchmark.card.facts["folder"]).is_dir()
        elif is_rows:
            title, is_present = load_card(name).title, _is_here(load_card(name), root)
        rows.append(DatasetRow(name=name, title=title, tasks=tasks, splits=splits, present=is_present))
    return tuple(rows)


def _is_here(card: Card, root: Path) -> bool:
    """Tell whether a set of the hub is on this machine: its rows were read before, or its repositories are copied."""
    names = hub_names(card.facts["files"], root).values()
    return all(name.copy for name in names) or any(index_folder(root, root / card.name).glob("*.arrow"))


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
    for name in ("how_to_get", "scoring", "chance", "size", "licence", "homepage", "seen", "tried"):
        if name in card.facts:
            lines = str(card.facts[name]).strip().splitlines()
            parts.append("\n".join([name.replace("_", " "), *(f"  {line}" for line in lines)]))
    if card.format == ROWS:
        named = hub_names(card.facts["files"], Path())
        parts.append("read from\n" + "\n".join(f"  {split or 'all splits'}: {name}" for split, name in named.items()))
    lines = []
    for split, facts in card.splits.items():
        counts = ", ".join(f"{facts[key]:,} {key}" for key in ("items", "pictures") if key in facts)
        lines.append(f"  {split:<20} {counts}" + (f"  ({facts['shift']})" if "shift" in facts else ""))
    return "\n\n".join([*parts, *(["\n".join(["splits", *lines])] if lines else [])])
