"""Vocabulary of a corpus of photographs: a kind per class folder, with names and descriptions from a file.

The file has the form of `descriptions.toml`, one table per class folder, with `name`, `article` and `family` in each.
The file alone determines the kinds that captions never name, and those that labelled items never show. Containers,
which may hide a thing, are drawn: they are in every picture, and no question is about them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from advl_data.scenes.generator.photographs import class_folders
from advl_data.scenes.generator.vocabulary import (
    Container,
    Family,
    Kind,
    Vocabulary,
    load_vocabulary,
    plural_forms,
    read_descriptions,
    read_tables,
    unfit,
)

_OF_KINDS: Final = ("name", "article", "family")

_WITH_UNSEEN: Final = 5
_UNSEEN: Final = 2
"""A family of at least `_WITH_UNSEEN` kinds reserves its last `_UNSEEN` kinds for test-unseen."""

_WITH_UNNAMED: Final = 3
"""Minimum number of labelled kinds of a family with one kind that no caption names."""

_LEAST_FAMILIES: Final = 8
"""Minimum number of families: a group of scenes uses up to six in its questions, and others around them."""

_SIDES: Final = 2
"""Number of containers to divide the groups between."""


def load_photograph_vocabulary(folder: Path, descriptions: Path, *, unseen: bool) -> tuple[Vocabulary, str]:
    """Read the kinds of a folder of photographs; return them and the credits of the photographs.

    Args:
        folder: folder of class folders; those without a table are left out.
        descriptions: the file.
        unseen: whether to reserve kinds for test-unseen.

    Raises:
        DatasetError: the file cannot be used, a table has no class folder, a family has a single kind, or there are
            too few families to compose scenes from.
    """
    tables = read_tables(descriptions)
    attribution, of_families = tables.pop("attribution", ""), tables.pop("families", {})
    if not isinstance(attribution, str):
        raise unfit(descriptions, "attribution is no text")
    if missing := sorted(tables.keys() - class_folders(folder).keys()):
        raise unfit(descriptions, f"[{missing[0]}] has no class folder in {folder}")
    entries = {code: _entry(descriptions, code, table) for code, table in tables.items()}
    names = {code: entry["name"] for code, entry in entries.items()}
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise unfit(descriptions, f"{count} kinds are called {name!r}")
    families = _families(descriptions, Counter(entry["family"] for entry in entries.values()), of_families)
    drawn = load_vocabulary()
    containers = drawn.containers[:_SIDES]
    unsaid = {form for name in names.values() for form in plural_forms(name)}
    unsaid |= {word for family in families.values() for word in (family.hypernym, family.plural, family.group)}
    said = read_descriptions(
        descriptions,
        {
            code: {key: value for key, value in table.items() if key not in _OF_KINDS}
            for code, table in tables.items()
        },
        names,
        unsaid,
    )
    drawings = {kind.name: kind.code for kind in drawn.kinds}
    kinds = [
        Kind(
            code=code,
            drawing=drawings.get(entry["name"], ""),
            name=entry["name"],
            article=entry["article"],
            family=families[entry["family"]],
            labelled=True,
            named=True,
            **said[code],
        )
        for code, entry in entries.items()
    ]
    labelled, kept = _divided(kinds, unseen=unseen)
    vocabulary = Vocabulary(labelled=labelled, unseen=kept, containers=_hiding(containers, labelled, kept))
    _require_families(descriptions, vocabulary, labelled, "families", least=_LEAST_FAMILIES)
    if unseen:
        _require_families(descriptions, vocabulary, kept, f"families of {_WITH_UNSEEN} kinds, or --num-unseen 0")
    return vocabulary, attribution


def _require_families(
    path: Path, vocabulary: Vocabulary, kinds: Sequence[Kind], what: str, *, least: int = _SIDES * _SIDES
) -> None:
    """Refuse kinds that are too few to compose a group of scenes."""
    one_of_each = {kind.family: kind for kind in kinds}.values()
    sides = Counter(vocabulary.hiding_place(kind).code for kind in one_of_each)
    if len(sides) < _SIDES or min(sides.values()) < _SIDES or len(one_of_each) < least:
        raise unfit(
            path,
            f"it takes at least {least} {what}, {_SIDES} of them for each of {_SIDES} hiding places, whose groups "
            f"differ; there are {len(one_of_each)}",
        )


def _entry(path: Path, code: str, table: Any) -> dict[str, str]:
    if not isinstance(table, dict):
        raise unfit(path, f"{code} is no table")
    entry = {key: table.get(key) for key in _OF_KINDS}
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise unfit(path, f"[{code}] needs a {key}, such as {key} = {_EXAMPLES[key]!r}")
    return {key: str(value) for key, value in entry.items()}


_EXAMPLES: Final[Mapping[str, str]] = {"name": "crab", "article": "a", "family": "sea animal"}


def _families(path: Path, sizes: Mapping[str, int], tables: Any) -> dict[str, Family]:
    """Return the families by name; fields missing from the file follow from the name."""
    if not isinstance(tables, dict) or (tables and tables.keys() != sizes.keys()):
        raise unfit(path, "[families] describes all families of the kinds, or none")
    families = {}
    for name, size in sizes.items():
        if size == 1:
            raise unfit(path, f"family {name!r} has a single kind: questions ask for one of several")
        table = tables.get(name, {})
        if not isinstance(table, dict) or not table.keys() <= {"plural", "group", "overlaps"}:
            raise unfit(path, f"family {name!r} has something else than plural, group and overlaps")
        plural, overlaps = table.get("plural", f"{name}s"), table.get("overlaps", [])
        group = table.get("group", plural)
        if not isinstance(plural, str) or not isinstance(group, str) or not isinstance(overlaps, list):
            raise unfit(path, f"family {name!r}: plural and group are words, overlaps lists families")
        if unknown := [other for other in overlaps if other not in sizes]:
            raise unfit(path, f"family {name!r} overlaps with {unknown[0]!r}, which is no family here")
        families[name] = Family(
            subcategory=name, category="", hypernym=name, plural=plural, group=group, overlaps=tuple(overlaps)
        )
    return families


def _divided(kinds: Sequence[Kind], *, unseen: bool) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Return the kinds of labelled items and the unseen ones; the last kinds of a family are unnamed or unseen."""
    members: dict[str, list[Kind]] = defaultdict(list)
    for kind in kinds:
        members[kind.family.subcategory].append(kind)
    labelled, kept = [], []
    for family in members.values():
        if unseen and len(family) >= _WITH_UNSEEN:
            kept += [replace(kind, labelled=False) for kind in family[-_UNSEEN:]]
            family = family[:-_UNSEEN]
        unnamed = family[-1:] if len(family) >= _WITH_UNNAMED else []
        labelled += [replace(kind, named=kind not in unnamed) for kind in family]
    return tuple(labelled), tuple(kept)


def _hiding(
    containers: Sequence[Container], labelled: Sequence[Kind], unseen: Sequence[Kind]
) -> tuple[Container, ...]:
    """Divide the groups between the containers, so that both may hide about as many families."""
    families = [{kind.family for kind in pool} for pool in (unseen, labelled)]
    sides: list[list[str]] = [[] for _ in containers]

    def weight(groups: Sequence[str]) -> tuple[int, ...]:
        return tuple(sum(family.group in groups for family in of_pool) for of_pool in families)

    groups = sorted({family.group for of_pool in families for family in of_pool})
    for group in sorted(groups, key=lambda group: weight([group]), reverse=True):
        min(sides, key=weight).append(group)
    return tuple(
        replace(container, hides=tuple(side), resembles=()) for container, side in zip(containers, sides, strict=True)
    )
