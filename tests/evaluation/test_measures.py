"""Numbers that sets are known by: what cards say, held against what the authors' own scorers give on made-up answers.

`assets/metrics` holds items, predictions and the scores of those scorers; each file names the code that was run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.cards import Card, load_card, read_card
from advl_pipeline.datasets.measures import Facet, Measure
from advl_pipeline.datasets.own.card_rules import shaped
from advl_pipeline.datasets.own.columns import parse_item
from advl_pipeline.datasets.own.data import agreement_scores
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.rows import Row
from advl_pipeline.evaluation.answer_reading import BEYOND, read_option, read_ranked
from advl_pipeline.evaluation.items import score_ties
from advl_pipeline.evaluation.lettered import answer_worth
from advl_pipeline.evaluation.measures import Items, confusion, group_share, measured, yes_no_shares

ASSETS = Path(__file__).parents[1] / "assets" / "metrics"
NO_FACETS: Mapping[str, Sequence[str]] = {}


def fixture(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def rate(value: float | None) -> Any:
    """Return what a rate is compared with: the order of additions may differ."""
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)


def numbers(of: Card, judged: Items, split: str = "test") -> dict[str, float | None]:
    """Return the numbers of a card's measures."""
    used = [measure for measure in of.measures if not measure.splits or split in measure.splits]
    return {name: value for measure in used for name, value in measured(measure, judged).items()}


def judged(
    scores: Sequence[float], facets: Mapping[str, Sequence[str]] = NO_FACETS, **answers: Sequence[str]
) -> Items:
    return Items(score_n=np.array(scores, dtype=np.float64), facets=facets, **answers)


# POPE.


def pope_numbers(items: Sequence[Mapping[str, Any]]) -> Items:
    read = [("yes", "no")[read_option(item["prediction"], ("yes", "no"), "pope") or 0] for item in items]
    gold = ["no" if item["gold"] == "no" else "yes" for item in items]
    right = [float(given == label) for given, label in zip(read, gold, strict=True)]
    return judged(right, {"type": [item["category"] for item in items]}, right=gold, given=read)


def test_pope_is_as_its_authors_have_it() -> None:
    content = fixture("pope")
    items, expected = content["items"], content["expected"]
    whole = pope_numbers(items)
    assert dict(zip([item["id"] for item in items], whole.given, strict=True)) == expected["read_as"]
    ours = numbers(load_card("pope"), whole)
    assert ours["mean F1 of the three splits"] == rate(
        100 * np.mean([part["f1"] for part in expected["by_category"].values()])
    )
    for category, part in [(None, expected["all"]), *expected["by_category"].items()]:
        items_of = whole if category is None else whole.where("type", category)
        counts = confusion(items_of, "yes")
        assert (counts[True, True], counts[False, True]) == (part["TP"], part["FP"])
        assert (counts[False, False], counts[True, False]) == (part["TN"], part["FN"])
        assert items_of.score_n.mean() == rate(part["accuracy"])
        if category is None:
            published = {"positives": "yes_ratio"}
            for name, share in yes_no_shares(counts).items():
                assert share == rate(part[published.get(name, name)])
            continue
        for name, key in {
            "F1": "f1",
            "precision": "precision",
            "recall": "recall",
            "answered yes": "yes_ratio",
        }.items():
            assert ours[f"{name}, {category}"] == rate(100 * part[key])


def test_edge_cases_of_pope() -> None:
    content = fixture("pope")
    items, cases = content["items"], {case["name"]: case["outcome"] for case in content["edge_cases"]}
    all_no = pope_numbers([item | {"prediction": "no"} for item in items])
    assert cases['every prediction is "no"'] == {"error": "ZeroDivisionError"}
    shares = yes_no_shares(confusion(all_no, "yes"))
    assert (shares["precision"], shares["f1"]) == (None, None)
    certain = confusion(pope_numbers([item | {"prediction": "certainly"} for item in items]), "yes")
    outcome = cases['every prediction is "certainly"']
    assert (certain[True, True], certain[False, True]) == (outcome["TP"], outcome["FP"])
    shares = yes_no_shares(certain)
    assert (shares["f1"], shares["positives"]) == (rate(outcome["f1"]), rate(outcome["yes_ratio"]))
    only_no = pope_numbers([item for item in items if item["gold"] == "no"])
    assert cases["only the items whose gold is no"] == {"error": "ZeroDivisionError"}
    shares = yes_no_shares(confusion(only_no, "yes"))
    assert (shares["recall"], shares["precision"]) == (None, 0.0)
    assert yes_no_shares(confusion(judged([]), "yes"))["positives"] is None
    cut = confusion(pope_numbers(items[:-5]), "yes")
    outcome = cases["last five answer lines are missing"]
    assert (cut[True, True], cut[True, False]) == (outcome["TP"], outcome["FN"])
    assert yes_no_shares(cut)["f1"] == rate(outcome["f1"])


# NaturalBench.


def test_naturalbench_is_as_its_authors_have_it() -> None:
    content = fixture("naturalbench")
    items, expected = content["items"], content["expected"]
    read_as: dict[str, dict[str, int]] = {}
    scores: list[float] = []
    facets: dict[str, list[str]] = {"group": [], "question": [], "picture": []}
    for item in items:
        options = ("Yes", "No") if item["question_type"] == "yes_no" else ("a knit cap", "a helmet")
        for place, text in item["predictions"].items():
            read = read_option(text, options, "naturalbench")
            read_as.setdefault(item["index"], {})[place] = -1 if read is None else 1 - read
            scores.append(float(read == (0 if item["gold"][place] in ("Yes", "A") else 1)))
            question, _, picture = place.partition("_")
            facets["group"].append(item["index"])
            facets["question"].append(question)
            facets["picture"].append(picture)
    assert read_as == expected["read_as"]
    ours = numbers(load_card("naturalbench"), judged(scores, facets))
    theirs = {name.replace("_", "-"): rate(100 * value) for name, value in expected["all"].items()}
    assert ours == theirs
    for number, item in enumerate(items):
        group = judged(scores, facets).where("group", item["index"])
        of_group = expected["per_group"][item["index"]]
        assert numbers(load_card("naturalbench"), group) == {
            name.replace("_", "-"): rate(100 * value) for name, value in of_group.items()
        }, number


# What'sUp and SugarCrepe: captions with scores.


def examples(labels: Sequence[int]) -> list[Example]:
    """Return examples of which scoring reads the label alone."""
    return [
        Example(example_id=str(number), task="choice", image=None, candidates=(), label=label)  # type: ignore[arg-type]
        for number, label in enumerate(labels)
    ]


def facets_of(of: Card, records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    return {name: [facet.of(record) for record in records] for name, facet in of.facets.items()}


WHATSUP = {
    "controlled_a": "controlled-a", "controlled_b": "controlled-b", "coco_one": "coco-one", "coco_two": "coco-two",
    "vg_one": "vg-one", "vg_two": "vg-two",
}  # fmt: skip


@pytest.mark.parametrize("name", WHATSUP)
def test_whatsup_is_as_its_authors_have_it(name: str) -> None:
    content, of = fixture(f"whatsup_{name}"), load_card("whatsup")
    items = content["items"]
    facets = facets_of(of, items)
    cases = {case["name"]: case["outcome"] for case in content["edge_cases"]}
    alike = next(outcome for case, outcome in cases.items() if case.endswith(" 0.5"))
    for scores, expected in (([item["scores"] for item in items], content["expected"]), (None, alike)):
        given = np.array(scores if scores else np.full((len(items), len(items[0]["scores"])), 0.5), dtype=np.float64)
        # The order is another one than the authors': the right caption, their first, lies where a seed has put it.
        orders = [np.random.default_rng(number).permutation(given.shape[1]) for number in range(len(items))]
        shuffled = np.array([row[order] for row, order in zip(given, orders, strict=True)])
        labels = [order.tolist().index(0) for order in orders]
        chosen = shuffled.argmax(axis=1).tolist()
        worth = score_ties(examples(labels), chosen, shuffled, of.ties)
        ours = numbers(of, judged(worth, facets), WHATSUP[name])
        percent = 100 * float(np.mean(worth))
        assert percent == rate(expected.get("accuracy_percent", expected.get("individual_accuracy_percent")))
        for preposition, part in expected["by_preposition"].items():
            word = preposition.replace("_of", "").replace("in-", "")
            assert ours[f"accuracy, {word}"] == rate(100 * part["accuracy"])
            assert facets["preposition"].count(word) == part["count"]
        assert len(ours) - 2 * name.startswith("controlled") == len(expected["by_preposition"])
        if name.startswith("controlled"):
            assert ours["pairs"] == rate(expected["pair_accuracy_percent"])
            assert ours["sets of four"] == rate(expected["set_accuracy_percent"])


def sugarcrepe_rates(
    items: Sequence[Mapping[str, Any]], scores: Callable[[Mapping[str, Any]], tuple[float, float]]
) -> Any:
    given = np.array([scores(item["scores"]) for item in items], dtype=np.float64)
    # The second place is the right one, so that a tie whose first place counts would be wrong by chance.
    values = given[:, ::-1].copy()
    worth = score_ties(
        examples([1] * len(items)), values.argmax(axis=1).tolist(), values, load_card("sugarcrepe").ties
    )
    return {
        category: np.mean([value for value, item in zip(worth, items, strict=True) if item["category"] == category])
        for category in dict.fromkeys(item["category"] for item in items)
    }


def test_sugarcrepe_is_as_its_authors_have_it() -> None:
    content = fixture("sugarcrepe")
    items = content["items"]
    ours = sugarcrepe_rates(items, lambda scores: (scores["positive"], scores["negative"]))
    assert ours == {name: rate(value) for name, value in content["expected"]["by_category"].items()}
    exchanged = sugarcrepe_rates(items, lambda scores: (scores["negative"], scores["positive"]))
    cases = {case["name"]: case["outcome"] for case in content["edge_cases"]}
    assert exchanged == {name: rate(value) for name, value in cases["scores exchanged"].items()}
    assert set(content["expected"]["by_category"]) == {
        name.replace("-", "_") for name in load_card("sugarcrepe").files
    }, "all seven are parts of the card"


# Letters that are written.


def choice_scores(
    items: Sequence[Mapping[str, Any]], of: Card, *, none: str = ""
) -> tuple[list[float], list[int | None]]:
    read = [read_option(item["prediction"] or none, item["choices"], of.reads) for item in items]
    gold = [ascii_uppercase.index(item["answer"].strip("()")) for item in items]
    return [float(place == label) for place, label in zip(read, gold, strict=True)], read


def test_cv_bench_is_as_its_authors_have_it() -> None:
    content, of = fixture("cvbench"), load_card("cv-bench")
    items, expected = content["items"], content["expected"]
    scores, _ = choice_scores(items, of)
    assert [item["idx"] for item, score in zip(items, scores, strict=True) if score] == [
        name for name, hit in expected["hit"].items() if hit
    ]
    whole = judged(scores, facets_of(of, items) | {"type": [item["task"] for item in items]})
    ours = numbers(of, whole)
    assert ours["CV-Bench"] == rate(100 * expected["cv_bench_accuracy"])
    assert ours["2D"] == rate(100 * expected["accuracy_2d"])
    assert ours["accuracy, Omni3D"] == rate(100 * expected["accuracy_3d"])
    for source, tasks in expected["by_source_and_task"].items():
        assert ours[f"accuracy, {source}"] == rate(100 * expected[f"accuracy_{source.lower()}"])
        for task, part in tasks.items():
            here = whole.where("source", source).where("type", task)
            assert (len(here.score_n), here.score_n.mean()) == (part["total"], rate(part["accuracy"]))


def test_mmstar_is_as_its_authors_have_it() -> None:
    content, of = fixture("mmstar"), load_card("mmstar")
    items, expected = content["items"], content["expected"]
    scores, _ = choice_scores(items, of, none="none")
    assert {str(item["index"]): bool(score) for item, score in zip(items, scores, strict=True)} == {
        name: bool(hit) for name, hit in expected["hit"].items()
    }
    whole = judged(scores, facets_of(of, items) | {"type": [item["category"] for item in items]})
    ours = numbers(of, whole)
    assert ours["MMStar"] == rate(100 * expected["all"]["final score"])
    for name, value in expected["all"].items():
        category, is_part, part = name.partition("(")
        if is_part:
            assert ours[f"accuracy, {part.removesuffix(')')}"] == rate(100 * value)
        elif category != "final score":
            assert ours[f"of 250, {category}"] == rate(100 * value)


def test_scienceqa_is_as_its_authors_have_it() -> None:
    content, of = fixture("scienceqa"), load_card("scienceqa")
    items = [item for item in content["items"] if item["split"] == "test"]
    read = [read_option(item["prediction"] or "", item["choices"], of.reads) for item in items]
    texts = content["expected_from_text"]
    ours = {item["pid"]: -1 if place in (None, BEYOND) else place for item, place in zip(items, read, strict=True)}
    assert ours == texts["index"]
    for key, by_index in (("expected", True), ("expected_from_text", False)):
        expected = content[key]["unrounded"]
        chosen = [int(item["prediction_index"]) for item in items] if by_index else read
        scores = [float(place == item["answer"]) for place, item in zip(chosen, items, strict=True)]
        facets = facets_of(of, items) | {"type": [item["subject"] for item in items]}
        facets["pictured"] = ["yes" if item["image"] else "no" for item in items]
        whole = judged(scores, facets)
        numbers_of = numbers(of, whole)
        for subject in ("natural", "social", "language"):
            assert numbers_of[f"accuracy, {subject} science"] == rate(expected[f"acc_{subject}"])
        assert numbers_of["grades, 1-6"] == rate(expected["acc_grade_1_6"])
        assert numbers_of["grades, 7-12"] == rate(expected["acc_grade_7_12"])
        assert 100 * whole.where("pictured", "yes").score_n.mean() == rate(expected["acc_has_image"])
        assert 100 * whole.score_n.mean() == rate(expected["acc_average"])
        for topic in dict.fromkeys(facets["topic"]):
            assert numbers_of[f"topic, {topic}"] == rate(expected[f"acc_{topic}"])


def test_realworldqa_is_as_lmms_eval_has_it() -> None:
    content, of = fixture("realworldqa"), load_card("realworldqa-all")
    hits = {
        item["id"]: int(answer_worth(item["prediction"] or "", {item["answer"]: 1.0}, of.reads))
        for item in content["items"]
    }
    assert hits == content["expected"]["hit"]
    assert np.mean([*hits.values()]) == rate(content["expected"]["exact_match"])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("So. The answer is A. Done", "D"),
        ("I choose (C) over B, though", "B"),
        ("The option is C or so", "C"),
        ("My answer is no letter (B) or (A), none", "A"),
        ("An answer is C. The answer is B, not C, as seen", "C"),
        ("Maybe it is BAD or no", "D"),
        ("Bé", "B"),
        ("", None),
    ],
)
def test_any_letter_behind_a_phrase_counts_for_realworldqa(answer: str, letter: str | None) -> None:
    assert read_ranked(answer) == letter


# Answers in words.


def test_aokvqa_is_as_its_authors_have_it() -> None:
    content, of = fixture("aokvqa"), load_card("aokvqa-direct")
    rows = [
        Row({**item, "image": "a.png", "direct_answers": repr(item["direct_answers"])}, item["question_id"], "val")
        for item in content["items"]
    ]
    kept = {row.name: row.record for row in shaped(rows, of, dataset="aokvqa-direct") if row.record is not None}
    expected = content["expected"]["per_item_direct_answer_percent"]
    assert kept.keys() == expected.keys(), "difficult ones are left out"
    worth = {}
    for item in content["items"]:
        if (name := item["question_id"]) in kept:
            parsed = parse_item(kept[name], "answers", of)
            people = dict(zip(parsed.answers, parsed.counts, strict=True))
            worth[name] = 100 * answer_worth(item["direct_answer"] or "", agreement_scores(people), of.reads)
    assert worth == {name: rate(value) for name, value in expected.items()}
    assert np.mean([*worth.values()]) == rate(content["expected"]["direct_answer_percent"])
    exact = [
        100.0 * (item["multiple_choice"] == item["choices"][item["correct_choice_idx"]]) for item in content["items"]
    ]
    assert np.mean(exact) == rate(content["expected"]["multiple_choice_percent"])


def test_gqa_is_as_its_script_has_it() -> None:
    content, of = fixture("gqa"), load_card("gqa")
    items = [item for item in content["items"] if item["isBalanced"]]
    for key, form in (("expected", str), ("expected_after_llava_conversion", None)):
        expected = content[key]
        texts = [form(item["prediction"]) if form else item["prediction"].rstrip(".").lower() for item in items]
        scores = [
            answer_worth(text, {item["answer"]: 1.0}, of.reads) for text, item in zip(texts, items, strict=True)
        ]
        right = [item["answer"] for item in items]
        ours = numbers(of, judged(scores, facets_of(of, items), right=right, given=texts))
        assert 100 * np.mean(scores) == rate(expected["accuracy_percent"])
        assert ours["distribution"] == rate(100 * expected["distribution"])
        assert ours["accuracy, binary"] == rate(expected["binary_percent"])
        assert ours["accuracy, open"] == rate(expected["open_percent"])
        for facet, table in (("structural", "accuracyPerStructuralType"), ("semantic", "accuracyPerSemanticType")):
            theirs = {f"{facet}, {name}": rate(part["accuracy_percent"]) for name, part in expected[table].items()}
            assert {name: value for name, value in ours.items() if name.startswith(f"{facet},")} == theirs


# Properties.

WORTH = st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from("abc")), min_size=1, max_size=40)


@given(WORTH)
def test_groups_are_right_no_more_often_than_their_items(items: list[tuple[float, str]]) -> None:
    scores, keys = np.array([score for score, _ in items]), [key for _, key in items]
    share = group_share(scores, keys)
    assert share is not None
    by_group = [scores[[other == key for other in keys]].mean() for key in dict.fromkeys(keys)]
    assert 0 <= share <= np.mean(by_group)
    assert group_share(scores, range(len(items))) == pytest.approx(scores.mean()), "each a group of its own"
    whole = group_share(np.repeat(scores, 2), np.repeat(np.arange(len(items)), 2).tolist(), 2)
    assert whole == pytest.approx(scores.mean())


@given(WORTH)
def test_an_accuracy_is_the_weighted_mean_of_its_parts(items: list[tuple[float, str]]) -> None:
    keys = [key for _, key in items]
    whole = judged([score for score, _ in items], {"part": keys})
    parts = measured(Measure(name="x", by="part"), whole)
    total = sum((parts[f"x, {key}"] or 0) * keys.count(key) for key in set(keys)) / len(keys)
    assert measured(Measure(name="x"), whole)["x"] == pytest.approx(total)
    of_each = measured(Measure(name="x", by="part", mean_of=("each",)), whole)["x"]
    assert of_each == pytest.approx(np.mean([*parts.values()]))
    assert measured(Measure(name="x", denominator=100), whole)["x"] == pytest.approx(sum(whole.score_n))
    assert measured(Measure(name="x", by="part", mean_of=("a", "no such part")), whole) == {"x": None}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_f1_is_symmetric_in_right_and_given_answers(pairs: list[tuple[bool, bool]]) -> None:
    right, given_answers = ([("no", "yes")[pair[side]] for pair in pairs] for side in (0, 1))
    blank = [0.0] * len(pairs)
    there = yes_no_shares(confusion(judged(blank, right=right, given=given_answers), "yes"))
    back = yes_no_shares(confusion(judged(blank, right=given_answers, given=right), "yes"))
    assert (there["f1"], there["precision"], there["recall"]) == (back["f1"], back["recall"], back["precision"])


@given(st.text(max_size=40), st.sampled_from(("letter", "mmstar", "cv-bench", "scienceqa", "ranked", "naturalbench")))
def test_whatever_is_written_is_an_option_or_none(text: str, rule: Any) -> None:
    assert read_option(text, ("red", "green", "blue"), rule) in (None, BEYOND, 0, 1, 2)
    assert read_option(text, ("Yes", "No"), rule) in (None, 0, 1)
    assert read_option(text, ("Yes", "No"), "pope") in (0, 1)


def test_letters_of_ones_own_data_are_read_plainly() -> None:
    options = ("a red car", "a dog", "two", "none of them")
    for text, place in {
        "B": 1, "b": 1, "(C)": 2, "D.": 3, "The answer is C.": 2, "Answer: (B) a dog": 1, "B) a dog": 1,
        "It is C, I think": 2, "A dog": 1, "a dog.": 1, "I see a cat": None, "": None, "E": BEYOND, "B or C": None,
    }.items():  # fmt: skip
        assert read_option(text, options, "letter") == place, text


# What a card cannot say.


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('[[measures]]\nname = "x"\nby = "source"', "it needs the facet 'source', which [facets] does not give"),
        ('[[measures]]\nname = "x"\nof = "f1"', "f1 needs `positive`"),
        ('[[measures]]\nname = "x"\nof = "groups"', "groups need `keys`"),
        ('[[measures]]\nname = "x"\nmean_of = ["a"]', "`mean_of` needs `by`"),
        ('[[measures]]\nname = "x"\nsize = 2', "`size` and `keys` are of groups"),
        ('[[measures]]\nname = "x"\npositive = "yes"', "`positive` is of no accuracy"),
        ('[facets]\nx = { column = "x", pattern = "(" }', "missing )"),
        ('[facets]\nx = { column = "x", pattern = "x" }', "its pattern has no group"),
        ('[facets]\ngroup = { column = "x" }', "items have a facet of that name without a card"),
    ],
)
def test_a_measure_that_cannot_be_computed_is_refused_by_name(tmp_path: Path, lines: str, why: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'files = "mine.jsonl"\n{lines}\n')
    with pytest.raises(ConfigError) as caught:
        read_card(path)
    assert why in caught.value.why
    assert caught.value.where == str(path)


def test_a_facet_is_a_part_of_a_column() -> None:
    assert Facet(column="a.b").of({"a": {"b": 3}}) == "3"
    assert Facet(column="a", per=2).of({"a": 3}) == Facet(column="a", per=2).of({"a": 4}) == "1"
    assert Facet(column="a", pattern="on (.*) of", names={"top": "over"}).of({"a": ["it is on top of it"]}) == "over"
    assert Facet(column="a", pattern="(b)").of({"a": "c"}) == ""
    assert Facet(column="a").of({}) == ""
