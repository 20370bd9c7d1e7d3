"""The report: valid and self-contained, its numbers those of the study, its texts never markup."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from page_reader import Element, drawings, is_beside, read_page
from synthetic_runs import NUM_ITEMS, TINY, TRIVIAL, made_up_result, run_trial

from advl_pipeline.base.errors import ConfigError, StorageError
from advl_pipeline.evaluation.statistics import summarise
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.figures import SCHEMES, accuracy_figure, gain_figure, looks
from advl_pipeline.reporting.page import page_of
from advl_pipeline.reporting.report import ReportConfig, ReportFormat, run_report
from advl_pipeline.reporting.tables import (
    FRAME_COLUMNS,
    as_csv,
    as_items,
    as_json,
    as_markdown,
    as_text,
    readout_tables,
)
from advl_pipeline.runs.evaluations import Interval
from advl_pipeline.studies.claims import judge_claims
from advl_pipeline.studies.gather import gather_study
from advl_pipeline.studies.result import StudyResult

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>&amp;{{ 7*7 }}"


@pytest.fixture(scope="module")
def page(page_text: str) -> Element:
    return read_page(page_text)


def contrast(colour: str, paper: str) -> float:
    """Return the contrast of two colours as WCAG defines it."""

    def luminance(text: str) -> float:
        parts = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, (colour, paper)))
    return (high + 0.05) / (low + 0.05)


def test_figures_are_drawn_in_the_colours_of_both_pages(page: Element) -> None:
    for scheme, name in {"light": "img src", "dark": "source srcset"}.items():
        colours = SCHEMES[scheme]
        assert all(contrast(colours[text], colours["paper"]) >= 4.5 for text in ("ink", "soft"))
        assert all(contrast(colours[line], colours["paper"]) >= 3 for line in colours if line.startswith("c"))
        drawn = [
            {
                colour
                for tag in everything.everything()
                for colour in re.findall(r"#[0-9a-f]{6}\b", tag.attributes.get("style", ""))
            }
            for everything in drawings(page, name)
        ]
        assert len(drawn) > 3
        assert set().union(*drawn) <= {*colours.values()}


def test_ids_are_unique_and_references_meet_them(page: Element) -> None:
    elements = page.everything()
    ids = [element.attributes["id"] for element in elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z][\w.-]*", name) for name in ids)
    for element in elements:
        for name in element.attributes.get("aria-labelledby", "").split():
            assert name in ids
        if element.tag == "a":
            assert element.attributes["href"].removeprefix("#") in ids


def test_every_picture_has_a_text_alternative(page: Element) -> None:
    pictures = page.find("svg")
    assert len(pictures) > 5
    for picture in pictures:
        if picture.attributes.get("aria-hidden") == "true":
            continue
        assert picture.attributes["role"] == "img"
        title = picture.find("title")[0]
        assert title.attributes["id"] in picture.attributes["aria-labelledby"].split()
        assert title.text
    for figure in page.find("figure"):
        assert figure.find("figcaption")[0].text
        assert all(": " in image.attributes["alt"] for image in figure.find("img"))


def test_regions_that_scroll_are_named_and_in_reach_of_a_keyboard(page: Element) -> None:
    regions = [*page.find("div", class_="scroll"), *page.find("pre")]
    assert len(regions) > 10
    for region in regions:
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["aria-label"]
    assert page.find("body")[0].children[0].attributes == {"class": "skip", "href": "#answer"}


def test_nothing_is_loaded_from_anywhere(page: Element, page_text: str) -> None:
    assert "url(" not in page_text
    assert "@import" not in page_text
    for element in page.everything():
        for name, value in element.attributes.items():
            if name in {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}:
                assert value.startswith(("#", "data:")), (element.tag, value[:60])
            assert name != "style"
            assert not name.startswith("on")
    policy = page.find("meta", **{"http-equiv": "Content-Security-Policy"})[0].attributes["content"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_every_figure_names_existing_run_folders(page: Element, vcr: tuple[StudyResult, Path]) -> None:
    figures = page.find("figure")
    assert len(figures) == 3
    for figure in figures:
        runs = [code.text for code in figure.find("p", class_="runs")[0].find("code")]
        assert runs
        assert all((vcr[0].outer / run / "result.json").exists() for run in runs)


def test_sections_come_in_order_with_the_answer_first_and_claims_late(page: Element) -> None:
    headings = [section.attributes["id"] for section in page.find("main")[0].find("section")]
    assert headings == [
        "answer", "table", "shots", "shift", "vision", "examples", "words", "readout", "claims", "cost", "repeat",
    ]  # fmt: skip


def test_the_page_opens_with_the_answer_beside_the_best_control(page: Element, vcr: tuple[StudyResult, Path]) -> None:
    result = vcr[0]
    section = page.find("section", id="answer")[0]
    place = next(item for item in result.numbers.places() if (item.test_set, item.shots) == ("val", "100"))
    percent = {found.method: found.estimate.mean for found in result.numbers.accuracies if found.place == place}
    assert section.find("p", class_="lead")[0].text == (
        f"ADVL answers {percent['advl']:.0f} of 100 questions correctly and plain {percent['plain']:.0f}. "
        f"The same student with shuffled teachers: {percent['advl-shuffled']:.0f}."
    )
    best = result.best_control(place)
    assert best is not None
    assert best.method == max(("plain", "advl-shuffled"), key=percent.__getitem__)
    gain = result.numbers.gain(place, "advl", best.method)
    assert gain is not None
    tiles = {
        tile.find("dt")[0].text: [item.text for item in tile.find("dd")]
        for tile in section.find("div")
        if tile.find("dt")
    }
    (value, note) = tiles[wording.over(result.study, best.method)]
    assert value == wording.signed(gain.estimate.mean)
    assert wording.interval(gain.compared.joint_interval) in note
    assert tiles["always “choice 3”"][0] == "28"
    # Every method stands in the figure, on every test set.
    (figure,) = section.find("figure")
    rows = [[cell.text for cell in row.find("td")] for row in figure.find("tbody")[0].find("tr")]
    assert len(rows) == 8
    assert ["val", "ADVL", wording.percent(percent["advl"])] in [row[:3] for row in rows]
    for picture in drawings(figure):
        assert {"chance", "majority", "ADVL", "plain"} <= {text.text for text in picture.find("text")}


def test_verdicts_on_the_page_are_those_of_the_claims(page: Element, vcr: tuple[StudyResult, Path]) -> None:
    shown = page.find("article", class_="verdict")
    verdicts = judge_claims(vcr[0])
    # No full data was run and no part was left out, so nothing is claimed of them.
    assert [verdict.claim for verdict in verdicts] == ["C2", "C3", "C4"]
    assert len(shown) == 3
    for article, verdict in zip(shown, verdicts, strict=True):
        assert article.find("p", class_="badge")[0].text == verdict.outcome
        assert article.find("span", class_="claim")[0].text == verdict.claim
        assert [p.text for p in article.find("p", class_="test-name")] == [test.sentence for test in verdict.tests]
        for numbers, test in zip(article.find("p", class_="numbers"), verdict.tests, strict=True):
            assert wording.signed(test.mean) in numbers.text
            assert wording.interval(test.interval) in numbers.text


def test_the_readout_stands_behind_the_table_with_its_controls(page: Element, vcr: tuple[StudyResult, Path]) -> None:
    section = page.find("section", id="readout")[0]
    assert section.find("h2")[0].text == "Does the student place words as the teacher does?"
    (table,) = section.find("table")
    columns = [cell.text for cell in table.find("thead")[0].find("th")]
    assert columns == ["method", "shots", "regions, efficientnet-lite0", "words, minilm-l6", "runs"]
    chance, *rows = table.find("tbody")[0].find("tr")
    assert [cell.text for cell in chance.find("td")] == ["", "25.0", "25.0", ""]
    shown = [[row.find("th")[0].text, *(cell.text for cell in row.find("td"))] for row in rows]
    assert shown == [
        [label, shots, f"30.0 → {after} ± 1.0", f"30.0 → {after} ± 1.0", "3"]
        for shots in ("100", "400")
        for label, after in (("ADVL", "71.0"), ("ADVL, shuffled teacher", "31.0"))
    ]
    assert ["control" in row.attributes["class"].split() for row in rows] == [False, True] * 2
    text, markdown = as_text(vcr[0]), as_markdown(vcr[0])
    for told in (text, markdown):
        assert "Does the student place words as the teacher does?" in told
        assert told.index("accuracy in percent") < told.index("30.0 → 31.0 ± 1.0")
    assert "| 100 | ADVL, shuffled teacher | 30.0 → 31.0 ± 1.0 | 30.0 → 31.0 ± 1.0 | 3 |" in markdown


def test_a_random_teacher_is_read_beside_itself_and_its_row_says_so(tmp_path: Path) -> None:
    methods = '["plain", "advl", "advl-random-1"]'
    result = run_trial(tmp_path, num_seeds=1, methods=methods, shots="[100]", test_sets='["test"]')
    (table,) = readout_tables(result)
    assert table.grid() == [
        ["shots", "method", "regions, efficientnet-lite0", "words, minilm-l6", "runs"],
        ["", "chance", "25.0", "25.0", ""],
        ["100", "ADVL", "30.0 → 70.0", "30.0 → 70.0", "1"],
        ["100", "ADVL, random teacher 1 (compared with that random teacher)", "30.0 → 70.0", "30.0 → 70.0", "1"],
    ]


def test_the_table_repeats_the_gathered_numbers(page: Element, vcr: tuple[StudyResult, Path]) -> None:
    result = vcr[0]
    table = page.find("table", class_="main")[0]
    sets = [cell.text for cell in table.find("thead")[0].find("th")][1:]
    assert sets == ["val", "test-shift"]
    shots, seen = "", 0
    for row in table.find("tbody")[0].find("tr"):
        heading = row.find("th")[0].text
        if "trivial" in row.attributes["class"].split():
            told = {"majority answer": "27.5 (choice 3)", "chance": "25.0"}[heading]
            assert [cell.text for cell in row.find("td")] == [told, told]
            continue
        if "size" in row.attributes["class"].split():
            shots = heading.split()[0]
            continue
        label = heading.removesuffix(" control")
        method = next(name for name in result.study.methods if result.study.variant(name).label == label)
        assert ("control" in row.attributes["class"].split()) == (method == "advl-shuffled")
        for name, cell in zip(sets, row.find("td"), strict=True):
            place = next(item for item in result.numbers.places() if (item.test_set, item.shots) == (name, shots))
            accuracy = result.numbers.accuracy(place, method)
            assert accuracy is not None
            percent = wording.spread(accuracy.estimate.mean, accuracy.estimate.deviation)
            assert cell.find("span", class_="accuracy")[0].text == percent
            if gain := result.numbers.gain(place, method, "plain"):
                shown = cell.find("span", class_="gain")[0]
                assert shown.find("b")[0].text == wording.signed(gain.estimate.mean)
                assert wording.interval(gain.compared.joint_interval) in shown.text
                assert wording.p_value(gain.p_seed_holm) in cell.find("span", class_="p")[0].text
            seen += 1
    assert seen == len(result.numbers.accuracies) == 16


def test_figure_tables_repeat_the_numbers_that_are_drawn(page: Element, vcr: tuple[StudyResult, Path]) -> None:
    figure = page.find("figure", id="accuracy-0-q2a")[0]
    rows = [[cell.text for cell in row.find("td")] for row in figure.find("tbody")[0].find("tr")]
    expected = {
        (
            row.place.test_set,
            vcr[0].study.variant(row.method).label,
            row.place.shots,
            wording.percent(row.estimate.mean),
        )
        for row in vcr[0].numbers.accuracies
    }
    assert {tuple(row[:4]) for row in rows} == expected


def test_an_accuracy_is_never_drawn_beyond_what_it_can_be() -> None:
    """The t-interval of two seeds may reach below 0 and above 100."""
    result = made_up_result({"seeds": [0, 1]})
    first, *others = result.numbers.accuracies
    wide = replace(first, estimate=replace(first.estimate, interval=Interval(low=-80.0, high=190.0)))
    result = replace(result, numbers=replace(result.numbers, accuracies=(wide, *others)))
    figure = accuracy_figure(result, looks(result.study), setting=result.study.settings[0].name, metric="q2a")
    assert figure is not None
    drawn = drawings(read_page(figure.panels[0][1]))[0]
    ticks = [float(tick.text) for tick in drawn.find("text") if is_beside(tick)]
    assert (min(ticks), max(ticks)) == (0.0, 100.0)
    assert figure.rows[0][-1] == "[-80.0, 190.0]"


def test_examples_show_both_answers(page: Element) -> None:
    examples = page.find("section", id="examples")[0].find("article", class_="example")
    assert len(examples) == 6
    assert sum("won" in item.attributes["class"].split() for item in examples) == 3
    for example in examples:
        assert example.find("image")[0].attributes["href"].startswith("data:image/jpeg;base64,")
        tags = [tag.text for tag in example.find("span", class_="tag")]
        assert sorted(tags) == ["ADVL", "plain", "right answer"]
        right = next(item for item in example.find("li") if "right" in item.attributes["class"].split())
        winner = "ADVL" if "won" in example.attributes["class"].split() else "plain"
        assert winner in right.text
        context = example.find("p", class_="context")[0].text
        assert "<b>&" in context
        # Boxes are called what the texts call them.
        labels = [label.text for label in example.find("text", class_="box-label")]
        assert len(labels) == 2
        assert all(label in context for label in labels)


def test_training_examples_show_the_selected_words(page: Element) -> None:
    examples = page.find("section", id="words")[0].find("article", class_="example")
    assert len(examples) == 6
    for example in examples:
        assert [mark.text for mark in example.find("mark")] == ["Why"]
        assert [tag.text for tag in example.find("span", class_="tag")] == ["right answer"]


def test_what_a_student_without_pictures_lacks_does_not_set_the_scale_of_the_gains() -> None:
    methods = ["plain", "plain-no-picture", "advl"]
    result = made_up_result({"seeds": [0], "methods": methods, "test_sets": ["test"]})
    look, (setting,) = looks(result.study), result.study.settings
    accuracy, gain = (
        draw(result, look, setting=setting.name, metric="q2a") for draw in (accuracy_figure, gain_figure)
    )
    assert accuracy is not None
    assert gain is not None
    assert {row[1] for row in accuracy.rows} == {"plain", "plain, no picture", "ADVL"}
    assert {row[1] for row in gain.rows} == {"ADVL"}
    assert "The student that sees no picture is in the table." in gain.caption


def test_texts_of_users_never_become_markup() -> None:
    mine = {"mine": {"method": "advl", "label": HOSTILE, "note": HOSTILE}}
    result = made_up_result(
        {
            "title": HOSTILE,
            "question": HOSTILE,
            "seeds": [0],
            "shots": [100],
            "variants": mine,
            "methods": ["plain", "advl", "mine"],
            "settings": [{"name": HOSTILE}],
        }
    )
    page = read_page(page_of(result, data_root=None, num_examples=0))
    assert len(page.find("script")) == 1
    assert all(image.attributes["src"].startswith("data:image/svg+xml;") for image in page.find("img"))
    assert not [drawing for drawing in drawings(page) if drawing.find("script") or drawing.find("img")]
    assert "alert" not in page.find("script")[0].text
    assert page.find("h1")[0].text == HOSTILE
    # Of one size there is no figure over sizes, and without a readout none is shown.
    assert not {"shots", "readout"} & {section.attributes["id"] for section in page.find("section")}
    assert "<script>" not in as_markdown(result)


def test_an_unfinished_study_reports_what_is_there(tmp_path: Path) -> None:
    result = run_trial(tmp_path, **TINY)
    runs = [result.outer / run.run for run in result.runs]
    shutil.rmtree(runs.pop())
    partial = gather_study(result.folder)
    page = read_page(page_of(partial, data_root=tmp_path / "nowhere"))
    assert "1 of 4 runs are not finished" in page.text
    assert "cannot be shown" in page.find("section", id="examples")[0].text
    written = as_markdown(partial)
    assert "1 of 4 runs are not finished" in written
    assert ", 1 seed" in written
    for run in runs:
        shutil.rmtree(run)
    page = read_page(page_of(gather_study(result.folder), data_root=None))
    assert not page.find("table", class_="main")
    assert {badge.text for badge in page.find("p", class_="badge")} == {"undecided at this size"}
    assert page.find("p", class_="lead")[0].text.startswith("There is no answer yet")


def test_every_setting_and_metric_has_figures_and_a_row_says_what_its_change_is_against() -> None:
    two = [{"name": "a b", "tasks": ["vcr-q2a", "vcr-qa2r"]}, {"name": "a-b", "teachers": ["minilm-l6"]}]
    own = {"mine": {"method": "advl", "label": "a|b<c>", "baseline": "naive-kd"}}
    methods = ["plain", "naive-kd", "advl", "mine"]
    raw = {"settings": two, "variants": own, "methods": methods, "shots": [100, 1600, "full"]}
    result = made_up_result(raw | {"seeds": [0], "test_sets": ["test"]})
    text = page_of(result, data_root=None, num_examples=0)
    page = read_page(text)
    assert len(page.find("table", class_="main")) == 4
    captions = [item.find("b")[0].text for item in page.find("figcaption")]
    assert {"Gain over plain: a b.", "Gain over plain: a-b."} <= set(captions)
    assert "a|b&lt;c&gt; (against naive KD)" in text
    assert r"a\|b&lt;c> (against naive KD)" in as_markdown(result)
    figure = gain_figure(result, looks(result.study), setting="a-b", metric="q2a")
    assert figure is not None
    assert {row[2] for row in figure.rows} == {"100", "1600", "full"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.signed(-0.03), "0.0"),
        (wording.signed(-0.06), "−0.1"),
        (wording.p_value(0.9996), "1"),
        (wording.p_value(0.9994), ".999"),
        (wording.spread(*summarise([-0.2, -0.4])[:2], wording.signed), "−0.3 ± 0.1"),
        (wording.spread(*summarise([-0.01])[:2], wording.signed), "0.0"),
    ],
)
def test_numbers_are_written_alike_everywhere(written: str, expected: str) -> None:
    assert written == expected


def test_csv_json_and_markdown_hold_the_same_numbers(vcr: tuple[StudyResult, Path]) -> None:
    result = vcr[0]
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    document, markdown = json.loads(as_json(result)), as_markdown(result)
    assert tuple(rows[0]) == FRAME_COLUMNS
    for row, record in zip(rows, document["table"], strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in record.items()}
    means = {
        (*(row[name] for name in ("metric", "test_set", "shots", "method", "against", "quantity")),): row["value"]
        for row in document["table"]
        if row["statistic"] == "mean"
    }
    for accuracy in result.numbers.accuracies:
        place, method, estimate = accuracy.place, accuracy.method, accuracy.estimate
        here = place.metric, place.test_set, place.shots
        assert means[*here, method, None, "accuracy"] == estimate.mean
        assert means[*here, "chance", None, "accuracy"] == TRIVIAL.chance
        gain = result.numbers.gain(place, method, "plain")
        assert means.get((*here, method, "plain", "gain")) == (gain and gain.estimate.mean)
        assert wording.spread(estimate.mean, estimate.deviation) in markdown
    assert [item["outcome"] for item in document["verdicts"]] == [item.outcome for item in judge_claims(result)]


def test_the_tidy_table_holds_the_score_of_every_item(vcr: tuple[StudyResult, Path]) -> None:
    result = vcr[0]
    frame = pd.read_csv(io.StringIO(as_items(result)), keep_default_na=False)
    assert set(frame["condition"]) == {"", "swapped"}
    shown = frame[frame["condition"] == ""]
    assert len(shown) == len(result.runs) * 2 * NUM_ITEMS
    for accuracy in result.numbers.accuracies:
        place = accuracy.place
        wanted = {"method": accuracy.method, "test_set": place.test_set, "shots": int(place.shots)}
        rows = shown[(shown[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        assert 100 * rows["score"].mean() == pytest.approx(accuracy.estimate.mean)
        assert set(rows["run"]) == set(accuracy.runs)


def test_a_report_takes_the_place_of_a_report_and_of_nothing_else(tmp_path: Path) -> None:
    folder = run_trial(tmp_path, num_seeds=1, **TINY).folder
    pages = []
    written = tmp_path / "page"
    for form in (*get_args(ReportFormat), "html"):
        run_report(ReportConfig(run=(folder,), to=form, output=written))
        pages += [written.read_text(encoding="utf-8")] if form == "html" else []
    assert pages[0] == pages[1]
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html>\n<html lang='en'>mine", encoding="utf-8")
    for output in (mine, folder / "study.json", folder / "mine.html"):
        with pytest.raises(ConfigError, match=r"did not write|inside a study"):
            run_report(ReportConfig(run=(folder,), to="csv", output=output))
    run_report(ReportConfig(run=(folder,), to="csv", output=mine, replace=True))
    assert mine.read_text(encoding="utf-8").startswith("setting,")


def test_bad_folders_are_named(tmp_path: Path, vcr: tuple[StudyResult, Path]) -> None:
    with pytest.raises(ConfigError, match="nothing to report on"):
        run_report(ReportConfig(run=(tmp_path,)))
    with pytest.raises(ConfigError, match="by itself"):
        run_report(ReportConfig(run=(vcr[0].folder, tmp_path)))
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        run_report(ReportConfig(run=(vcr[0].folder,), to="csv", output=blocked / "report.csv"))


def test_methods_have_one_order_in_all_panels(page: Element) -> None:
    (figure,) = page.find("section", id="answer")[0].find("figure")
    names = {"plain", "naive KD", "ADVL", "ADVL, shuffled teacher"}
    orders = [[text.text for text in drawing.find("text") if text.text in names] for drawing in drawings(figure)]
    assert len(orders) == 2
    assert orders[0] == orders[1]
    # Drawn from below.
    assert orders[0][-1] == "plain"
