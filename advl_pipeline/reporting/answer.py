"""What a report opens with: one sentence on what a method answers, beside its baseline and its controls."""

from __future__ import annotations

from dataclasses import dataclass

from advl_pipeline.evaluation.items import JOINT_METRICS
from advl_pipeline.reporting import wording
from advl_pipeline.studies.claims import is_teacher_control
from advl_pipeline.studies.config import Setting
from advl_pipeline.studies.result import Place, Standing, StudyResult

_ASKED = {
    "qa2r": "rationales",
    "rationale": "rationales",
    "q2ar": "questions with their rationales",
    "joint": "questions with their rationales",
    "snli_ve": "hypotheses",
    "classes": "items",
}
"""What is answered, where that is no question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One number beside the sentence: what it is, the number, and what else must be known of it."""

    label: str
    value: str
    note: str

    def __str__(self) -> str:
        return f"{self.label}: {self.value} {self.note}".rstrip(".")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer of one setting: the place that it is about, a sentence, and the numbers that it rests on."""

    place: Place
    sentence: str
    facts: tuple[Fact, ...]

    def __str__(self) -> str:
        return f"{self.sentence} ({'; '.join(map(str, self.facts))})"


def answers(result: StudyResult) -> tuple[Answer, ...]:
    """Return the answer of each setting where the focus method has met its baseline or stands alone."""
    found = (_answer(result, setting) for setting in result.study.settings)
    return tuple(answer for answer in found if answer is not None)


def nothing_yet(result: StudyResult) -> str:
    """Say what a report without an answer waits for."""
    focus, baseline = (
        wording.method_label(result.study, name) for name in (result.study.focus, result.study.baseline)
    )
    return f"Nothing is told yet: no seed of {focus} and of {baseline} has finished the same size."


def _answer(result: StudyResult, setting: Setting) -> Answer | None:
    """Answer by the metric of the whole task, on the first test set, at the smallest size that was finished."""
    study = result.study
    metric = next((name for name in JOINT_METRICS.values() if name in setting.metrics), setting.metrics[0])
    places = [
        place
        for place in sorted(result.places(), key=lambda place: place.rank)
        if (place.setting, place.metric, place.test_set) == (setting.name, metric, setting.reference)
        and result.standing(place, study.focus)
        and (len(study.methods) == 1 or result.contrast(place, study.focus, study.baseline))
    ]
    if not places:
        return None
    place = places[0]
    focus = result.standing(place, study.focus)
    assert focus is not None
    others = [item for item in result.standings if item.place == place and item.method != study.focus]
    things = _ASKED.get(metric, "questions")
    told = f"{wording.method_label(study, study.focus)} answers {focus.accuracy.mean:.0f} of 100 {things} rightly"
    told += "".join(f", {_beside(result, item)}" for item in others if item.method == study.baseline)
    controls = [item for item in others if study.variant(item.method).role == "control"]
    told += "".join(f"{';' if not number else ','} {_beside(result, item)}" for number, item in enumerate(controls))
    where = f"On {setting.name}, " if len(study.settings) > 1 else ""
    facts = [*_gains(result, place, focus), *_trivial(result, place), _basis(result, place, focus)]
    return Answer(place=place, sentence=f"{where}{told}.", facts=tuple(facts))


def _beside(result: StudyResult, item: Standing) -> str:
    """Name a method as a sentence does, with its number."""
    study, number = result.study, f"{item.accuracy.mean:.0f}"
    variant = study.variant(item.method)
    if not is_teacher_control(study, item.method):
        return f"{wording.method_label(study, item.method)} {number}"
    return f"with {'random' if variant.teacher_prefix else 'shuffled'} teachers {number}"


def _gains(result: StudyResult, place: Place, focus: Standing) -> list[Fact]:
    """Say what the focus method gains over its baseline, and over the best control where that is another."""
    study, best = result.study, result.best_control(place)
    facts = []
    for other in dict.fromkeys([study.baseline, *([best.method] if best else [])]):
        contrast = result.contrast(place, study.focus, other)
        if contrast is None:
            continue
        compared, name = contrast.comparison, wording.method_label(study, other)
        tests = ", ".join(
            f"p {wording.p_value(p)} over {what}"
            for p, what in ((contrast.seed_p_adjusted, "seeds"), (contrast.item_p_adjusted, "items"))
            if p is not None
        )
        open_ = " This is not told from no gain." if compared.joint_interval.contains(0.0) else ""
        facts.append(
            Fact(
                label=f"over the best control, {name}" if best and other == best.method else f"over {name}",
                value=wording.signed(compared.effect.points),
                note=f"points {wording.interval(compared.joint_interval)}, {tests}.{open_}",
            )
        )
    return facts


def _trivial(result: StudyResult, place: Place) -> list[Fact]:
    """Say what is right without a student; of a single run, also what the student answers most."""
    known = result.trivial_of(place)
    if not known:
        return []
    majority, given = f"{known['majority']:.0f}", known.get("given")
    note = f"of 100 are right without a student; an answer at random {known['chance']:.0f}."
    facts = [Fact(label=f"always {wording.quoted(known['answer'])}", value=majority, note=note)]
    if len(result.cells) == 1 and given is not None:
        answer = wording.quoted(known["given_answer"])
        facts.append(
            Fact(label="its commonest answer", value=f"{given:.0f}", note=f"times of 100 it answers {answer}.")
        )
    return facts


def _basis(result: StudyResult, place: Place, focus: Standing) -> Fact:
    """Say what the numbers rest on."""
    few = len(focus.seeds) < result.study.min_seeds and len(result.cells) > 1
    note = (
        f"labelled questions; {wording.seeds(len(focus.seeds))}, scored on {focus.num_items:,} of {place.test_set}."
    )
    if few and not result.of_runs:
        note += f" A claim rests on at least {wording.seeds(result.study.min_seeds)}."
    return Fact(label="learned from", value=f"{place.size:,}", note=note)
