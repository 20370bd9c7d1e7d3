"""Facts of a run that its options require, and the command that repeats it.

An option without effect is refused if a user gives it, and left out of a printed command. A study passes its options
to all its methods, so a plain run in a study may have options that only other methods use.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from advl_pipeline.base.configuration import command_words, config_to_dict, unused_options
from advl_pipeline.datasets.registry import known_dataset
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.resolved import ResolvedMethod, resolve_method
from advl_pipeline.training.validation import may_stop


def finetune_command(config: FinetuneConfig) -> str:
    """Return the `advl finetune` command that repeats a run, without the options that have no effect in it."""
    known = known_dataset(config.dataset)
    val_decides = known is None or known.val_decides
    return command_of(config, facts_of_run(config, resolve_method(config), val_decides=val_decides))


def command_of(config: FinetuneConfig, facts: Mapping[str, str]) -> str:
    """Return the `advl finetune` command of a run with these facts (`facts_of_run`), as `finetune_command`."""
    idle = unused_options(config, facts)
    options = {name: value for name, value in config_to_dict(config).items() if name not in idle}
    return shlex.join(["advl", "finetune", *command_words(FinetuneConfig, options)])


def facts_of_run(config: FinetuneConfig, method: ResolvedMethod, *, val_decides: bool) -> dict[str, str]:
    """Return the facts that options of a run require, for `unused_options`; `facts_of_data` has those of its data.

    Args:
        config: as the user gave it.
        method: as `resolve_method` returns it for this configuration.
        val_decides: as `DatasetSpec.val_decides`.
    """
    distill, adapt, settings = config.distill, config.adapt, method.settings
    two_stages = method.num_adapt_steps > 0
    is_relational = distill.distance == "relational"
    holds_words = two_stages and (adapt.anchors or adapt.asks_itself)
    facts = (
        ("teachers", method.uses_teachers, "this method uses no teacher"),
        ("an adapt stage", two_stages, "this run has no adapt stage"),
        ("coordinates", not is_relational, "--distance relational projects nothing"),
        ("the text pathway", distill.pathway != "vision", "--pathway vision distils no text"),
        ("the vision pathway", distill.pathway != "text", "--pathway text distils no picture"),
        ("distillation", distill.distill_weight > 0 or two_stages, "--distill-weight 0 distils nothing"),
        ("weights", settings.weighting != "uniform", "all weights are 1"),
        ("ratio", settings.weighting == "ratio", "--weighting is not ratio"),
        ("confidence", config.confidence != "none", "--confidence none weighs nothing"),
        ("a probe", config.confidence == "probe", "--confidence fits no probe"),
        ("answers", settings.answer_weight > 0, "no answers are learned"),
        (
            "known words",
            holds_words or (method.uses_teachers and is_relational),
            "nothing here uses known words",
        ),
        (
            "early stopping",
            may_stop(config, val_decides=val_decides),
            "this run takes a fixed number of steps",
        ),
        ("pretrained weights", config.init is not None, "there are no pretrained weights (--init)"),
        ("low-rank updates", config.lora_rank != 0, "--lora-rank 0 makes no low-rank updates"),
    )
    return {name: "" if holds else why for name, holds, why in facts}
