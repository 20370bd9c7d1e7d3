"""`run_check`: what of a dataset is there, what is missing, what is damaged, against its card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from advl_pipeline.datasets.cards import card_names, load_card, rows_card
from advl_pipeline.datasets.config import CheckConfig, SubsetConfig
from advl_pipeline.datasets.contract import broken_promises
from advl_pipeline.datasets.id_lists import read_pairs
from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.line_files import parse_object, scan_lines
from advl_pipeline.datasets.lowshot import IdList, nested_subset, write_id_list
from advl_pipeline.datasets.own.source import open_own
from advl_pipeline.datasets.problems import Malformed, NothingUsable, Problem
from advl_pipeline.datasets.registry import open_dataset, splits_of
from advl_pipeline.datasets.roots import DatasetMissing, resolve_data_root
from advl_pipeline.datasets.snli_ve import STORED_ORDER
from advl_pipeline.errors import ConfigError, DatasetError, suggest_names
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
