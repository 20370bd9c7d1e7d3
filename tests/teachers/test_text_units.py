"""The greedy cover of words by texts against a loop that looks at every text each time."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dataset_mirrors import snli_ve_record, write_lines
from tiny_extraction import TinyTextTower

from advl_pipeline.base.errors import DatasetError
from advl_pipeline.datasets.records import Candidate, TextUnit
from advl_pipeline.datasets.registry import find_dataset, open_splits
from advl_pipeline.datasets.subsets import Selected
from advl_pipeline.teachers.text_units import SelectingTextTower, cover, covering_texts


def cover_by_looking_at_all(words_of_texts: list[list[str]], share: float) -> list[int]:
    wanted = share * sum(len(words) for words in words_of_texts) - 1e-6
    left = [text for text, words in enumerate(words_of_texts) if words]
    times: Counter[str] = Counter()
    chosen: list[int] = []
    while sum(len(words_of_texts[text]) for text in chosen) < wanted:
        gains = {
            text: sum(2.0 ** -times[word] for word in words_of_texts[text]) / len(words_of_texts[text])
            for text in left
        }
        best = min(left, key=lambda text: (-gains[text], text))
        chosen.append(best)
        left.remove(best)
        times.update(words_of_texts[best])
    return chosen


@pytest.mark.parametrize(("share", "seed"), [(0.1, 0), (0.28, 1), (1.0, 1)])
def test_the_cover_is_greedy(share: float, seed: int) -> None:
    draw = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(12)]
    texts = [draw.choices(vocabulary, k=draw.randrange(0, 6)) for _ in range(40)]
    covering = cover(texts, share)
    assert covering == cover_by_looking_at_all(texts, share)
    assert sum(len(texts[text]) for text in covering) >= share * sum(map(len, texts)) - 1e-6


class Questions:
    """A dataset of one question a task; ids are the texts'."""

    def __init__(self, texts_of_tasks: dict[str, list[str]]) -> None:
        self.questions = list(texts_of_tasks.items())

    def __len__(self) -> int:
        return len(self.questions)

    def candidates_of(self, index: int) -> tuple[str, tuple[Candidate, ...]]:
        task, texts = self.questions[index]
        return task, tuple(Candidate(text_unit=TextUnit(unit_id=f"{task}: {text}", text=text)) for text in texts)


def dataset_of(texts_of_tasks: dict[str, list[str]]) -> Any:
    return Questions(texts_of_tasks)


def test_kept_are_the_words_with_a_meaning_of_the_chosen_texts() -> None:
    texts = ["the small heron", "the small heron.", "a red kite", "is the otter"]
    units = [TextUnit(unit_id=f"vcr-q2a: {text}", text=text) for text in texts]
    chosen = covering_texts(dataset_of({"vcr-q2a": texts}), 0.6)
    assert chosen == {units[0].unit_id, units[2].unit_id, units[3].unit_id}
    prepared = SelectingTextTower(TinyTextTower(), chosen, 0.6).prepare(units)
    kept = [
        [unit.text[start:end] for start, end in one.char_spans_M2] for unit, one in zip(units, prepared, strict=True)
    ]
    assert kept == [["small", "heron"], [], ["red", "kite"], ["otter"]]


def test_each_task_has_texts_of_its_own() -> None:
    """One that reads the answers alone would otherwise find no words that the rationales had covered before."""
    answers, rationales = ["a heron", "an otter"], ["the heron is above the otter", "the otter is small"]
    chosen = covering_texts(dataset_of({"vcr-qa2r": rationales, "vcr-q2a": answers}), 0.5)
    assert chosen == {"vcr-qa2r: the heron is above the otter", "vcr-q2a: a heron"}


def test_texts_are_chosen_without_a_look_at_the_pictures(tmp_path: Path) -> None:
    """A split of the hub would otherwise fetch all of them for a teacher of texts."""
    for split, numbers in (("train", range(8)), ("dev", range(8, 12))):
        write_lines(tmp_path / "snli-ve" / f"snli_ve_{split}.jsonl", map(snli_ve_record, numbers))
    whole, union = (
        open_splits(find_dataset("snli-ve"), split, data_root=tmp_path) for split in ("train", "train+val")
    )
    part = Selected(union, union.example_ids[6:9])
    assert [len(dataset.text_units()) for dataset in (whole, union, part)] == [8, 12, 3]
    for dataset in (whole, union, part):
        texts = {unit.unit_id for unit in dataset.text_units()}
        assert covering_texts(dataset, 1.0) == texts
    with pytest.raises(DatasetError, match="malformed"):
        whole.image_units()
