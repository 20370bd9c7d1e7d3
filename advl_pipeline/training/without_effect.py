"""Options of a run that would change nothing: given by a user they are refused, in a command that is told left out.

A study gives its options to all its methods, so that a plain run of one may hold what only others heed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from advl_pipeline.configuration import option_values, options_of
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import ResolvedMethod


@dataclass(frozen=True, kw_only=True)
class _Need:
    """What an option needs to change anything: whether it is there, and what is said where it is not."""

    is_met: Callable[[FinetuneConfig, ResolvedMethod], bool]
    why: str


_TEACHERS = _Need(is_met=lambda _, method: method.uses_teachers, why="this method hears no teacher")
_TWO_STEPS = _Need(is_met=lambda _, method: method.steps == "two", why="this run has no adapt step")
_RELATIONAL = _Need(
    is_met=lambda config, _: config.distill.distance == "relational", why="--distance is not relational"
)
_COORDINATES = _Need(
    is_met=lambda config, _: config.distill.distance != "relational", why="--distance relational projects nothing"
)
_TEXT = _Need(is_met=lambda config, _: config.distill.pathway != "vision", why="--pathway vision distils no text")
_VISION = _Need(is_met=lambda config, _: config.distill.pathway != "text", why="--pathway text distils no picture")
_SELECTED = _Need(is_met=lambda _, method: method.settings.selection != "all", why="all words are kept")
_ADAPTIVE = _Need(is_met=lambda _, method: method.settings.selection == "adaptive", why="--selection is not adaptive")
_WEIGHTED = _Need(is_met=lambda _, method: method.settings.weighting != "uniform", why="all weights are 1")
_STRENGTH = _Need(
    is_met=lambda config, method: config.distill.distill_weight > 0 or method.steps == "two",
    why="--distill-weight 0 distils nothing",
)
_RATIO = _Need(is_met=lambda _, method: method.settings.weighting == "ratio", why="--weighting is not ratio")
_ANSWERS = _Need(is_met=lambda _, method: method.settings.answer_weight > 0, why="no answers are learned")
_CONFIDENT = _Need(is_met=lambda config, _: config.confidence != "none", why="--confidence none weighs nothing")
_PROBED = _Need(is_met=lambda config, _: config.confidence == "probe", why="--confidence fits no probe")
_DRY = _Need(is_met=lambda config, _: config.forecast.dry_run, why="this is no --dry-run")
_INIT = _Need(is_met=lambda config, _: config.init is not None, why="there are no pretrained weights (--init)")
_UPDATES = _Need(is_met=lambda config, _: config.lora_rank != 0, why="--lora-rank 0 makes no low-rank updates")

_WORDS_HELD = _Need(
    is_met=lambda config, method: (
        (method.steps == "two" and (config.adapt.anchor_weight > 0 or config.adapt.answers_of == "student"))
        or (method.uses_teachers and config.distill.distance == "relational" and config.distill.landmarks == "known")
    ),
    why="nothing here asks which words are known",
)

_TEXTS_TAUGHT = (_TEACHERS, _TEXT)
_WEIGHS = (_TEACHERS, _RATIO, _CONFIDENT)

NEEDS: Mapping[str, tuple[_Need, ...]] = {
    **dict.fromkeys(
        "target_norm teacher_weight teacher_balance teacher_control distill_weight distill_decay pathway "
        "distance distill_layer weighting".split(),
        (_TEACHERS,),
    ),
    "landmarks": (_TEACHERS, _RELATIONAL),
    "student_temperature": (_TEACHERS, _RELATIONAL),
    "teacher_temperature": (_TEACHERS, _RELATIONAL),
    "known_words": (_WORDS_HELD,),
    "vision_target": (_TEACHERS, _VISION),
    "projector": (_TEACHERS, _COORDINATES, _VISION, _STRENGTH),
    "candidates": _TEXTS_TAUGHT,
    "selection": _TEXTS_TAUGHT,
    "selection_rho": (*_TEXTS_TAUGHT, _SELECTED),
    "selection_alpha": (*_TEXTS_TAUGHT, _ADAPTIVE),
    "confidence": (_TEACHERS, _RATIO),
    "confidence_folds": (*_WEIGHS, _PROBED),
    "confidence_check": _WEIGHS,
    "student_confidence": _WEIGHS,
    "weight_max": _WEIGHS,
    "weight_shuffle": (_TEACHERS, _WEIGHTED, _CONFIDENT),
    "answers_of": (_TWO_STEPS, _ANSWERS),
    **dict.fromkeys(
        "adapt_objective anchor_weight adapt_steps adapt_texts adapt_lr_scale adapt_on".split(), (_TWO_STEPS,)
    ),
    "step_ms": (_DRY,),
    "disk_mb_s": (_DRY,),
    "head_answers": (_INIT,),
    "fresh_heads": (_INIT,),
    "lora_rank": (_INIT,),
    "lora_alpha": (_INIT, _UPDATES),
    "lora_target": (_INIT, _UPDATES),
}
"""Option -> everything that it needs to have an effect."""

_OF_TASKS: Mapping[str, tuple[frozenset[str], str]] = {
    "text_style": (frozenset({"vcr-q2a", "vcr-qa2r"}), "the data are not in the format of VCR"),
    "label_order": (frozenset({"snli-ve"}), "the data are not in the format of SNLI-VE"),
    "answers": (frozenset({"vqa", "answers", "classes"}), "the data have neither open answers nor classes"),
    "head_answers": (frozenset({"vqa", "answers"}), "the data have no open answers"),
}
"""Option -> the tasks that heed it, and what is said of data without one."""


def without_effect(config: FinetuneConfig, method: ResolvedMethod, tasks: Collection[str] = ()) -> dict[str, str]:
    """Return the options that are not at their default and would change nothing: name -> why.

    Args:
        config: as a user gives it.
        method: what it decides.
        tasks: of the dataset; none to leave aside what depends on them.
    """
    found: dict[str, str] = {}
    options = options_of(FinetuneConfig)
    for name, value in option_values(config).items():
        if value == options[name].default:
            continue
        unmet = [need.why for need in NEEDS.get(name, ()) if not need.is_met(config, method)]
        heeding, why = _OF_TASKS.get(name, (frozenset(tasks), ""))
        if tasks and not heeding & set(tasks):
            unmet.append(why)
        if unmet:
            found[name] = unmet[0]
    return found
