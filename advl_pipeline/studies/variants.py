"""Named variants of a method: the controls and ablations of docs/method.md, each a base method with other options.

Every variant shares subset, seeds, optimiser steps and evaluation with all others of its study; only what its
entry states differs. The shipped ones are in `variants.toml`; a study file can define more under `[variants.NAME]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from advl_pipeline.configuration import build_config, option, options_of, read_toml
from advl_pipeline.errors import ConfigError, suggest_names
from advl_pipeline.training.config import FinetuneConfig

Role = Literal["baseline", "method", "control", "ablation"]
PARTS = frozenset({"vision pathway", "language pathway", "token selection", "confidence weighting", "two steps"})
"""The parts that make up the method, each of which claim C5 is about."""
SET_BY_THE_STUDY = frozenset(
    {"dataset", "output", "cache", "data_root", "shots", "ids", "seed", "student", "init", "task"}
)
"""Options of a run that a study's grid decides, which no variant may set."""

TEACHERLESS = frozenset({"plain", "plain-two-step"})
"""Base methods that read no cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A row of a study: a base method and what is changed about it."""

    method: str = option(help="Base method of `advl finetune`.")
    role: Role = option("method", help="How the report treats it.")
    label: str = option("", help="Name in tables and figures.")
    note: str = option("", help="What the variant is there to show.")
    baseline: str | None = option(None, help="Variant it is compared with, in place of the study's baseline.")
    part: str = option("", help="Of an ablation: the part of the method that is left out.")
    teachers: tuple[str, ...] | None = option(None, help="Teachers in place of the setting's.")
    teacher_prefix: str = option("", help="Put before every teacher's name, such as 'random:'.")
    teacher_suffix: str = option("", help="Put after every teacher's name, such as '@1'.")
    training: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Fields of `FinetuneConfig` that this variant sets."""

    @property
    def uses_teachers(self) -> bool:
        return self.method not in TEACHERLESS


def variant_table(name: str, table: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Sort the flat keys of a variant in a file into those of `Variant` and those of `FinetuneConfig`.

    Raises:
        ConfigError: a key of neither.
    """
    own = {item.name for item in fields(Variant)} - {"training"}
    training = {*options_of(FinetuneConfig)} - SET_BY_THE_STUDY
    found: dict[str, Any] = {"training": {}, "label": name}
    for key, value in table.items():
        field_name = key.replace("-", "_")
        if field_name not in own | training:
            raise ConfigError(f"Unknown key {key!r}.", where=where, why=suggest_names(field_name, own | training))
        (found if field_name in own else found["training"])[field_name] = value
    return found


def _shipped() -> dict[str, Variant]:
    path = Path(str(resources.files("advl_pipeline.studies").joinpath("variants.toml")))
    return {
        name: build_config(Variant, variant_table(name, table, where=f"{path} [{name}]"))
        for name, table in read_toml(path).items()
    }


SHIPPED: Mapping[str, Variant] = MappingProxyType(_shipped())


def find_variant(name: str, own: Mapping[str, Variant], *, where: str) -> Variant:
    """Return the variant of that name, a study's own before the shipped ones.

    Raises:
        ConfigError: there is none.
    """
    variant = own.get(name) or SHIPPED.get(name)
    if variant is None:
        raise ConfigError(
            f"Unknown method {name!r}.",
            where=where,
            why=suggest_names(name, {*own, *SHIPPED}),
            next_command=f"define it in the study file under [variants.{name}]",
        )
    return variant
