"""Options that do not go together are refused before anything is written, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.base.errors import AdvlError, ConfigError, IdentityMismatch, WeightsUnavailable
from advl_pipeline.training import run as run_module

PLAIN: dict[str, Any] = {"method": "plain", "cache": ()}
RECORD: dict[str, Any] = {"known_words": "the record of the corpus' words"}
"""A record of words as pretraining leaves one, in place of its path."""
BRIDGE, ANSWERS = {"confidence": "bridge"}, {"answer_weight": 1.0}
TEXT_ALONE = {"pathway": "text", "selection": "prior", "adapt_objective": "distil-only"}
HIDDEN = {"hide_picture": True, **TEXT_ALONE}
OWN_ANSWERS = {"method": "plain-two-step", "cache": (), "adapt_objective": "distil-only", "answers_of": "student"}
FIELD = {"method": "naive-kd", "pathway": "vision", "distance": "cosine", "distill_layer": "fused"}
RECIPE = {"optimiser": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0, "loss": "softmax-choice"}
ADVERSARIAL = {"recipe": {**RECIPE, "adversarial": {"text_learning_rate": 1e-3}}}
OTHER = "scenes-vcr/train-shift"
TEXT, MISSING = "the cache of the text teacher", Path("missing")

REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"cache": ()}, ("needs a teacher cache",)),
    ({"cache": (Path(__file__).parent,)}, ("no cache",)),
    ({"cache": (TEXT, TEXT)}, ("same teacher",)),
    ({"student": "uniter-tny"}, ("uniter-tny",)),
    ({"task": ("vcr-q2b",)}, ("vcr-q2b",)),
    ({"recipe": str(MISSING)}, ("missing",)),
    ({"student_option": ("num_layer=3",)}, ("num_layer",)),
    ({"weight_shuffle": True, "accumulate": 4}, ("at least two examples in a micro-batch",)),
    ({"log_with": "neptune"}, ("no tracker 'neptune'",)),
    ({**PLAIN, "student_option": ("num_layers",)}, ("KEY=VALUE", "'num_layers'")),
    *(
        ({**asked, **changes}, ("bridge", "leave out --"))
        for asked in (BRIDGE, ANSWERS)
        for changes in (
            {},
            {**RECORD, "distance": "mse"},
            {**RECORD, "pathway": "vision"},
        )
    ),
    ({**ANSWERS, "stages": "one"}, ("no adapt stage",)),
    ({**ANSWERS, "method": "plain-two-step", "cache": ()}, ("plain-two-step has no teacher",)),
    ({**ANSWERS, "hide_picture": True, "pathway": "text", "selection": "prior"}, ("names what the picture shows",)),
    (OWN_ANSWERS, ("no bridge", "--answers-of student")),
    ({"teacher_control": "own-tokens", "pathway": "text"}, ("none is distilled", "--pathway text")),
    ({"teacher_control": "own-tokens", "cache": (TEXT,)}, ("no cache is of a vision teacher",)),
    ({"teacher_control": "shuffle-cells"}, ("permutes the patches of a grid",)),
    ({"teacher_control": "shuffle-cells", "cache": (TEXT,)}, ("no teacher has a grid of several patches",)),
    ({"teacher_control": "shuffle-cells", "cache": (TEXT,), "vision_target": "image"}, ("no loss reads",)),
    ({"hide_picture": True, "method": "plain-two-step"}, ("--hide-picture excludes", "contrast", "--stages one")),
    (
        {**HIDDEN, "adapt_objective": "contrastive"},
        ("--hide-picture excludes", "contrast", "--adapt-objective distil-only"),
    ),
    ({**HIDDEN, "pathway": "vision"}, ("--hide-picture excludes", "visual states", "--pathway text")),
    ({"hide_picture": True, "method": "naive-kd"}, ("--hide-picture excludes", "visual states", "--pathway text")),
    ({**HIDDEN, "selection": "adaptive"}, ("--hide-picture excludes", "words", "--selection prior")),
    ({**HIDDEN, "confidence": "zero-shot"}, ("--hide-picture excludes", "weighs", "--confidence probe")),
    ({"hide_picture": True}, ("--hide-picture excludes", "add --pathway text --selection prior,")),
    *(
        ({"adapt_on": on}, ("each named once", on[-1] if on else "nothing"))
        for on in ((), ("inputs", "subset"), (OTHER, OTHER), ("everything",), ("inputs", "train-shift"))
    ),
    ({"adapt_on": ("inputs", "scenes-snli-ve/train")}, ("another kind",)),
    ({"adapt_on": ("inputs", OTHER)}, ("has no cache of them", "--dataset scenes-vcr --split train-shift")),
    ({**PLAIN, "student": "vilt-tiny", **ADVERSARIAL}, ("takes no adversarial",)),
    ({**PLAIN, "student": "lxmert-tiny", "gradient_checkpointing": True}, ("layers that can be recomputed",)),
    (
        {"student": "smolvlm-tiny", "vision_target": "patches"},
        ("no features of patches to distil", "the dataset's boxes"),
    ),
    ({"student": "smolvlm-tiny", "student_option": ("align_layer=4",)}, ("has no layer 4",)),
    (
        {
            **PLAIN,
            "student": "smolvlm-tiny",
            "dataset": "scenes-vqa",
            "task": (),
            "recipe": {**RECIPE, "loss": "soft-target-bce"},
        },
        ("answers in words", "--recipe FILE.toml with the line loss = 'answer-lm'"),
    ),
]


OTHERWISE: list[tuple[dict[str, Any], tuple[str, ...], type[AdvlError]]] = [
    ({"split": "val"}, ("another dataset", "split", "advl extract"), IdentityMismatch),
    ({**PLAIN, "init": MISSING}, ("missing",), WeightsUnavailable),
    ({"student": "uniter-tiny", "tokenizer": str(MISSING)}, ("missing",), WeightsUnavailable),
]


@pytest.mark.parametrize(
    ("changes", "phrases", "kind"),
    [*((*row, ConfigError) for row in REFUSED), *OTHERWISE],
    ids=lambda value: str(value)[:60],
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, Any],
    phrases: tuple[str, ...],
    kind: type[AdvlError],
    small_corpus: Any,
    known: Path,
    tmp_path: Path,
) -> None:
    there = {RECORD["known_words"]: known, TEXT: small_corpus.caches[0]}
    given = {name: there.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    if "cache" in given:
        given["cache"] = tuple(there.get(cache, cache) for cache in given["cache"])
    with pytest.raises(kind) as refused:
        small_corpus.run(tmp_path / "run", **given)
    for words in phrases:
        assert words in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_batches_that_cannot_be_filled_are_refused_before_teachers_are_opened(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run_module, "open_teaching")
    with pytest.raises(ConfigError, match="cannot be counted in tokens") as refused:
        small_corpus.run(
            tmp_path / "run",
            student="scenes-smolvlm",
            batch_size=None,
            recipe={"batch_unit": "tokens", "batch_size": 99},
        )
    assert "--batch-size" in refused.value.next_command
    assert not (tmp_path / "run").exists()
