"""Two sets that people made, read from the files that the user downloaded: DAQUAR, and captions of Flickr8k.

Both are licensed for research, so nothing of them is in this package. The rows are those of your own data: DAQUAR
asks open questions, and captions become a choice among four.
"""

from __future__ import annotations

import csv
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from advl_pipeline.base.errors import DatasetError, advise
from advl_pipeline.base.locations import read_regular
from advl_pipeline.datasets.cards import Card
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.roots import DatasetMissing, require_there
from advl_pipeline.datasets.row_files import read_table
from advl_pipeline.datasets.rows import Row, RowSource

CAPTION_QUESTION: Final = "Which caption describes the photograph?"
NUM_CHOICES: Final = 4
NUM_NEAR: Final = 20
"""Captions of other photographs, nearest by shared words, of which near wrong choices are drawn."""

_PICTURE = re.compile(r"\bimage(\d+)\b")
_PAIRS = re.compile(r"qa\.(\d+)\.raw\.(train|test)\.txt")


@dataclass(frozen=True, kw_only=True)
class AskedPair:
    """A question of DAQUAR and its answer."""

    question: str
    answer: str
    picture: str


def daquar_rows(folder: Path, card: Card) -> RowSource:
    """Return the questions of DAQUAR.

    `qa.894.raw.train.txt` and `qa.894.raw.test.txt` (or of 37 classes), or `all_qa_pairs.txt` or `data.csv` with the
    lists of pictures, `train_images_list.txt` and `test_images_list.txt`. The split is the official one, by picture;
    a tenth of the pictures of train, drawn by a fixed seed, become val.

    Raises:
        DatasetMissing: the files are not there.
    """
    published = {
        match.groups(): path for path in folder.glob("qa.*.raw.*.txt") if (match := _PAIRS.fullmatch(path.name))
    }
    numbers = sorted({int(number) for number, _ in published}, reverse=True)
    parts = ("train", "test")
    complete = [number for number in numbers if {(str(number), part) for part in parts} <= published.keys()]
    lists = [folder / f"{split}_images_list.txt" for split in parts]
    pairs = [path for path in (folder / "all_qa_pairs.txt", folder / "data.csv") if path.is_file()]
    if complete:
        files = [published[str(complete[0]), part] for part in parts]
    elif pairs and all(path.is_file() for path in lists):
        files = [pairs[0], *lists]
    else:
        raise _missing(folder, card, "qa.894.raw.train.txt and qa.894.raw.test.txt")

    def rows() -> Iterator[Row]:
        asked = [(path, [*_asked(path)]) for path in files if path not in lists]
        if complete:
            train, test = (
                {pair.picture for _, pair in of_file if isinstance(pair, AskedPair)} for _, of_file in asked
            )
        else:
            train, test = ({*_text(path).split()} for path in lists)
        held_out = _drawn_tenth(train - test)
        split_of = dict.fromkeys(train, "train") | dict.fromkeys(held_out, "val") | dict.fromkeys(test, "test")
        for path, of_file in asked:
            for number, (line, pair) in enumerate(of_file, start=1):
                name = f"{path.stem}:{number}"
                if isinstance(pair, Malformed):
                    yield Row(pair, name=name, split="train", file=str(path), line=line)
                elif (split := split_of.get(pair.picture)) is not None:
                    record = {"image": f"{pair.picture}.png", "question": pair.question, "answer": pair.answer}
                    yield Row(record, name=name, split=split, file=str(path), line=line)

    return RowSource(
        rows=rows,
        pictures=_pictures(folder, ("images", "nyu_depth_images"), card),
        files=tuple(files),
        version="daquar 2",
        is_confined=True,
        card=card,
    )


def canonical_answer(text: str) -> str:
    """Return an answer with its words in alphabetical order, each once: an answer of DAQUAR is a set."""
    return ", ".join(sorted({word.strip() for word in text.split(",") if word.strip()}))


def caption_rows(folder: Path, card: Card) -> RowSource:
    """Return caption choice over photographs: each caption among three of other photographs of its split.

    `captions.txt` has rows of picture and caption, `Flickr8k.token.txt` lines such as `1.jpg#0<tab>A dog .`. 60, 20
    and 20 % of the photographs, drawn by a fixed seed, are train, val and test. Wrong captions are drawn at random;
    those of `test-near` share the most words with the right one.

    Raises:
        DatasetMissing: the files are not there.
    """
    named = (folder / "captions.txt", folder / "Flickr8k.token.txt")
    file = next((path for path in named if path.is_file()), None)
    if file is None:
        raise _missing(folder, card, "captions.txt or Flickr8k.token.txt")

    def rows() -> Iterator[Row]:
        captions: dict[str, list[tuple[int, str]]] = {}
        for line, picture, caption in _captions(file):
            captions.setdefault(picture, []).append((line, caption))
        drawn = random.Random(0)
        order = drawn.sample(sorted(captions), len(captions))
        ends = len(order) * 3 // 5, len(order) * 4 // 5
        parts = {"train": order[: ends[0]], "val": order[ends[0] : ends[1]], "test": order[ends[1] :]}
        parts["test-near"] = parts["test"]
        for split, pictures in parts.items():
            said = {picture: [caption for _, caption in captions[picture]] for picture in pictures}
            near = _Near(said) if split == "test-near" else None
            for picture in pictures:
                for line, caption in captions[picture]:
                    wrong = [] if near is None else near.wrong(picture, caption, drawn)
                    if len(wrong) < NUM_CHOICES - 1:
                        wrong = _at_random(said, picture, drawn)
                    choices = drawn.sample([caption, *wrong], NUM_CHOICES)
                    record = {
                        "image": picture,
                        "question": CAPTION_QUESTION,
                        "choices": choices,
                        "label": choices.index(caption),
                    }
                    yield Row(record, name=str(line), split=split, file=str(file), line=line)

    return RowSource(
        rows=rows,
        pictures=_pictures(folder, ("images", "Images", "Flicker8k_Dataset"), card),
        files=(file,),
        version="flickr-captions 1",
        is_confined=True,
        card=card,
    )


READERS: Mapping[str, Callable[[Path, Card], RowSource]] = {"daquar": daquar_rows, "flickr-captions": caption_rows}
"""`reader` of a card -> the reader of its folder."""


class _Near:
    """Captions of other photographs that share many words with one, rare words first."""

    def __init__(self, said: Mapping[str, Sequence[str]]) -> None:
        self._captions = [(picture, caption) for picture, captions in said.items() for caption in captions]
        self._with_word: dict[str, list[int]] = {}
        for place, (_, caption) in enumerate(self._captions):
            for word in _words(caption):
                self._with_word.setdefault(word, []).append(place)

    def wrong(self, picture: str, caption: str, drawn: random.Random) -> list[str]:
        """Return captions of three different photographs; fewer if no others share a word."""
        shares: dict[int, float] = {}
        for word in sorted(_words(caption)):
            for place in self._with_word[word]:
                if self._captions[place][0] != picture:
                    shares[place] = shares.get(place, 0.0) + 1 / len(self._with_word[word])
        nearest: dict[str, str] = {}
        for place in sorted(shares, key=lambda place: (-shares[place], place)):
            nearest.setdefault(*self._captions[place])
            if len(nearest) == NUM_NEAR:
                break
        pictures = drawn.sample(sorted(nearest), min(NUM_CHOICES - 1, len(nearest)))
        return [nearest[other] for other in pictures]


def _words(caption: str) -> set[str]:
    return set(re.findall(r"\w+", caption.casefold()))


def _at_random(said: Mapping[str, Sequence[str]], picture: str, drawn: random.Random) -> list[str]:
    others = drawn.sample([other for other in said if other != picture], NUM_CHOICES - 1)
    return [drawn.choice(said[other]) for other in others]


def _asked(path: Path) -> Iterator[tuple[int, AskedPair | Malformed]]:
    """Yield each pair of a file with its line: a question, then its answer; or rows of a CSV file."""
    if path.suffix == ".csv":
        for line, record in read_table(path):
            cells = record if isinstance(record, Mapping) else {}
            question, answer, picture = (cells.get(name) for name in ("question", "answer", "image_id"))
            if question and answer and picture:
                yield line, _pair(str(question), str(answer), str(picture))
            else:
                empty = Malformed("question, answer or image_id is empty")
                yield line, record if isinstance(record, Malformed) else empty
        return
    numbered = enumerate(map(str.strip, _text(path).splitlines()), start=1)
    lines = [(line, text) for line, text in numbered if text]
    for (line, question), (_, answer) in itertools.zip_longest(lines[::2], lines[1::2], fillvalue=(0, "")):
        match = _PICTURE.search(question)
        if match is None or not answer:
            yield line, Malformed(f"a question names its picture and is followed by its answer: {question!r}")
        else:
            yield line, _pair(question, answer, match.group())


def _pair(question: str, answer: str, picture: str) -> AskedPair:
    asked = question.replace(f" in the {picture}", "").replace(picture, "image")
    return AskedPair(question=asked, answer=canonical_answer(answer), picture=picture)


def _captions(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, picture and caption."""
    lines = _text(path).splitlines()
    if path.name == "captions.txt":
        try:
            for line, cells in enumerate(csv.reader(lines), start=1):
                if line > 1 and len(cells) == 2 and cells[1].strip():
                    yield line, cells[0], cells[1].strip()
        except csv.Error as error:
            raise DatasetError("A file of the data is not valid CSV.", where=str(path), why=str(error)) from None
        return
    for line, text in enumerate(lines, start=1):
        picture, mark, caption = text.partition("\t")
        if mark and caption.strip():
            yield line, picture.partition("#")[0], caption.strip()


def _drawn_tenth(pictures: Iterable[str]) -> list[str]:
    order = sorted(pictures, key=lambda name: (len(name), name))
    return random.Random(0).sample(order, len(order) // 10)


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError("A file of the data is no UTF-8 text.", where=str(path), why=str(error)) from None


def _pictures(folder: Path, names: Sequence[str], card: Card) -> Path:
    present = [folder / name for name in names if (folder / name).is_dir()]
    if not present:
        raise _missing(folder, card, f"a folder {names[0]}")
    return present[0]


def _missing(folder: Path, card: Card, wanted: str) -> DatasetMissing:
    require_there(folder, dataset=card.name)
    return DatasetMissing(
        "Files of the dataset are missing.",
        where=str(folder),
        why=f"it has no {wanted}",
        next_command=advise(["advl", "datasets", "card", card.name], note="what to download and where to put it"),
    )
