"""Configuration of `advl teachers check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from advl_pipeline.configuration import Configuration, option
from advl_pipeline.teachers.options import ComputeDtype, ImageTokenKind


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckTeacherConfig(Configuration):
    """A teacher to open and to try on a few made-up units."""

    name: str = option(help="Teacher to check.")
    weights: Path | None = option(None, help="Local weights of the teacher instead of the known source.")
    device: str = option("cpu", help="Where the teacher computes, such as cpu or cuda:0.")
    image_tokens: ImageTokenKind = option("boxes", help="Token features of a picture.")
    compute_dtype: ComputeDtype = option("fp32", help="What the teacher computes in.")
