"""The opening of a report: one sentence on a method's accuracy, with its baseline and its controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from advl_pipeline.datasets.records import JOINT_METRICS, TASKS
from advl_pipeline.reporting import wording
from advl_pipeline.studies.claims import is_teacher_control
from advl_pipeline.studies.config import StudyConfig
from advl_pipeline.studies.numbers import Accuracy
from advl_pipeline.studies.result import StudyResult
from advl_pipeline.studies.table import Place

_ASKED = {facts.metric: facts.items for facts in TASKS.values()} | {
    joint.metric: "questions with their rationales" for joint in JOINT_METRICS
}
"""The word for an item, by metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer for one setting: its place, a sentence, and the numbers behind it.

    Each fact has a label, a value, and a note that qualifies it.
    """

    place: Place
    sentence: str
    facts: tuple[dict[str, str], ...]

    def __str__(self) -> str:
        facts = (f"{fact['label']}: {fact['value']} {fact['note']}".rstrip(".") for fact in self.facts)
        return f"{self.sentence} ({'; '.join(facts)})"


def answers(result: StudyResult) -> tuple[Answer, ...]:
    """Return the answer for each setting in which the focus method was compared with its baseline or is the only one.

    It uses the metric of the complete task, the first test set, and the smallest finished size.
    """
    study, numbers, per_place = result.study, result.numbers, []
    for setting in study.settings:
        metric = next((both.metric for both in JOINT_METRICS if both.metric in setting.metrics), setting.metrics[0])
        places = [
            place
            for place in sorted(numbers.places(), key=lambda place: place.rank)
            if place[:3] == (setting.name, metric, setting.reference)
            and numbers.accuracy(place, study.focus)
            and (len(study.methods) == 1 or numbers.gain(place, study.focus, study.baseline))
        ]
        if not places:
            continue
        place = places[0]
        by_method = {row.method: row for row in numbers.accuracies if row.place == place}
        focus, baseline = by_method.pop(study.focus), by_method.get(study.baseline)
        controls = [row for row in by_method.values() if study.variant(row.method).role == "control"]
        name, things = wording.method_label(study, study.focus), _ASKED.get(metric, "questions")
        sentence = f"{name} answers {focus.estimate.mean:.0f} of 100 {things} correctly"
        trivial = result.trivial_of(place)
        if trivial is not None and trivial.prior is not None and focus.estimate.mean <= trivial.prior:
            without_picture = f"the training answers to the same {things} do without a picture ({trivial.prior:.0f})"
            sentence += f", no more than {without_picture},"
        if baseline is not None:
            sentence += f" and {wording.method_label(study, baseline.method)} {baseline.estimate.mean:.0f}"
        others = (f"{_control(study, control.method)}: {control.estimate.mean:.0f}" for control in controls)
        sentence = ". ".join([sentence.removesuffix(","), *others])
        where = f"On {setting.name}, " if len(study.settings) > 1 else ""
        facts = tuple(_facts(result, focus))
        per_place.append(Answer(place=place, sentence=f"{where}{sentence}.", facts=facts))
    return tuple(per_place)


def nothing_yet(result: StudyResult) -> str:
    """Say what is missing in a report without an answer."""
    study = result.study
    if result.of_runs:
        return "The table has the scores of each run. A study (advl study) compares runs made alike."
    focus, baseline = (wording.method_label(study, name) for name in (study.focus, study.baseline))
    return f"There is no answer yet: no seed of {focus} and of {baseline} has finished the same size."


def _control(study: StudyConfig, method: str) -> str:
    """Return the name of a control for the start of a sentence."""
    if not is_teacher_control(study, method):
        return f"The control “{wording.method_label(study, method)}”"
    kind = "random" if study.variant(method).teacher_prefix else "shuffled"
    return f"The same student with {kind} teachers"


def _facts(result: StudyResult, focus: Accuracy) -> Iterator[dict[str, str]]:
    """Yield the gain of the focus method, the accuracy without a student, and the runs behind the numbers."""
    study, place = result.study, focus.place
    best = result.best_control(place)
    for other in dict.fromkeys([study.baseline, *([best.method] if best else [])]):
        if (gain := result.numbers.gain(place, study.focus, other)) is None:
            continue
        p_values = {"seeds": gain.p_seed_holm, "items": gain.p_item_holm}
        tests = ", ".join(f"p {wording.p_value(p)} over {what}" for what, p in p_values.items() if p is not None)
        interval = gain.compared.joint_interval
        open_ = " This may be no gain at all." if interval.contains(0.0) else ""
        yield {
            "label": wording.over(study, other),
            "value": wording.signed(gain.estimate.mean),
            "note": f"points {wording.interval(interval)}, {tests}.{open_}",
        }
    if known := result.trivial_of(place):
        note = f"of 100 are right without a student; an answer at random is right {known.chance:.0f} times."
        yield {"label": f"always “{known.answer}”", "value": f"{known.majority:.0f}", "note": note}
        if known.prior is not None:
            note = (
                f"of 100 are right without a picture, by the commonest training answer to the same words; "
                f"{known.prior_known:.0f} % of the test set's are in training."
            )
            yield {"label": "prior of the question", "value": f"{known.prior:.0f}", "note": note}
        if len(result.runs) == 1 and known.given is not None:
            note = f"times of 100 it answers “{known.given_answer}”."
            yield {"label": "its commonest answer", "value": f"{known.given:.0f}", "note": note}
    count = len(focus.estimate.by_seed)
    note = f"labelled questions; {wording.seeds(count)}, scored on {focus.num_items:,} of {place.test_set}."
    if count < study.min_seeds and len(result.runs) > 1 and not result.of_runs:
        note += f" A claim rests on at least {wording.seeds(study.min_seeds)}."
    yield {"label": "learned from", "value": f"{place.size:,}", "note": note}
