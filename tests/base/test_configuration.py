"""Every number that a user may give has a range: declared once, shown by `--help`, and kept by every door."""

from __future__ import annotations

import dataclasses
import math
import typing
from pathlib import Path

import pytest
from aimed_outputs import configurations

from advl_data.scenes.config import ScenesConfig
from advl_pipeline.base.configuration import Configuration, Option, build_config, declared, option
from advl_pipeline.base.errors import ConfigError
from advl_pipeline.distillation.settings import DistillationOptions
from advl_pipeline.evaluation.config import EvaluateConfig


def is_number(hint: typing.Any) -> bool:
    return hint in (int, float) or any(is_number(item) for item in typing.get_args(hint))


def test_every_numeric_option_declares_its_range() -> None:
    for command, cls in configurations():
        numeric = {
            name: declaration.option.bounds
            for name, declaration in declared(cls).items()
            if is_number(declaration.hint)
        }
        assert all(numeric.values()), f"{command}: {numeric}"
        assert issubclass(cls, Configuration)


def test_a_configuration_made_in_python_keeps_the_ranges_too() -> None:
    with pytest.raises(ConfigError, match="--distill-weight must be at least 0"):
        DistillationOptions(distill_weight=-1.0)
    config = EvaluateConfig(run=Path("any"))
    with pytest.raises(ConfigError, match="--batch-size must be at least 1"):
        dataclasses.replace(config, batch_size=0)


def test_a_number_in_a_file_is_refused_with_the_files_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(ScenesConfig, {"num-unseen": 6}, where="corpus.toml")
    assert caught.value.where == "corpus.toml"
    assert "a multiple of 4" in caught.value.what


def test_ranges_hold_exactly_what_they_say() -> None:
    def allowed(**bounds: float) -> list[float]:
        ranged = Option(help="", **bounds)  # type: ignore[arg-type]
        return [value for value in (-math.inf, math.nan, 0.0, 0.5, 1.0, 4.0, math.inf) if ranged.allows(value)]

    assert allowed(above=0, below=1) == [0.5]
    assert allowed(minimum=0, maximum=1) == [0.0, 0.5, 1.0]
    assert allowed(multiple_of=4) == [0.0, 4.0]
    assert allowed() == [0.0, 0.5, 1.0, 4.0]


def test_every_item_of_a_repeated_option_is_checked() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Seeds(Configuration):
        seeds: tuple[int | None, ...] = option((), help="Seeds.", minimum=0)

    assert Seeds(seeds=(None, 3)).seeds == (None, 3)
    with pytest.raises(ConfigError, match="--seeds must be at least 0"):
        Seeds(seeds=(3, -1))
