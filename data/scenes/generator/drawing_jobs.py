"""Draw pictures into the corpus folder, in worker processes; a job carries all that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.artwork import Style
from advl_data.scenes.generator.draws import Draws
from advl_data.scenes.generator.render import Box, draw_scene
from advl_data.scenes.generator.scene import Scene

_SCENES_PER_JOB: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingJob:
    """Scenes to draw for the splits that show them alike.

    `plan_split` names the draws of looks; `splits` name the files. Caption scenes have one file each, task scenes one
    that the three formats share.
    """

    folder: Path
    splits: tuple[str, ...]
    plan_split: str
    styles: tuple[Style, ...]
    seed: int
    captions: bool
    scenes: tuple[Scene, ...]


def split_jobs(job: DrawingJob) -> Iterator[DrawingJob]:
    """Cut a job into jobs of some of its scenes each."""
    for start in range(0, len(job.scenes), _SCENES_PER_JOB):
        yield replace(job, scenes=job.scenes[start : start + _SCENES_PER_JOB])


def run_job(job: DrawingJob) -> list[tuple[int, tuple[Box, ...]]]:
    """Draw the scenes of a job and write their pictures; return scene numbers with boxes."""
    done: list[tuple[int, tuple[Box, ...]]] = []
    for scene in job.scenes:
        drawing = draw_scene(scene.things, job.styles, Draws(job.seed, job.plan_split, "drawing", scene.number))
        first, *others = (
            path for split in job.splits for path in picture_paths(split, scene.number, captions=job.captions)
        )
        path = job.folder / first
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawing.jpeg)
        for other in others:
            _link(path, job.folder / other)
        done.append((scene.number, drawing.boxes))
    return done


def picture_paths(split: str, scene: int, *, captions: bool) -> tuple[Path, ...]:
    """Return the names of a scene's picture in every format that shows it, relative to the corpus folder."""
    if captions:
        return (Path(paths.CAPTIONS_FOLDER, paths.caption_image(split, scene)),)
    number = paths.picture_number(split, scene)
    return (
        Path(paths.VCR_FOLDER, paths.VCR_IMAGES, paths.vcr_image(split, scene)),
        Path(paths.VQA_FOLDER, paths.vqa_image(split, number)),
        Path(paths.SNLI_VE_FOLDER, paths.snli_ve_image(str(number))),
    )


def _link(source: Path, target: Path) -> None:
    """Make the same file appear under another name; file systems without hard links get a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
