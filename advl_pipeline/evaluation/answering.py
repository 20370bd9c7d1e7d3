"""Ask a finished run one question about one picture, from Python."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from advl_pipeline.atomic import write_bytes
from advl_pipeline.compute import AUTO, ComputeConfig, resolved
from advl_pipeline.datasets.own.columns import compose
from advl_pipeline.datasets.pictures import picture_size
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Example, ImageUnit, Task, head_name, picture_unit_id
from advl_pipeline.errors import ConfigError, DatasetError
from advl_pipeline.evaluation.items import first_maximum
from advl_pipeline.evaluation.predict import FinishedRun, load_run
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_config, read_json
from advl_pipeline.training.given import open_region_caches
from advl_pipeline.training.student_inputs import regions_of_run, use_region_caches

Picture = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a run answers: the text, and the logit of every answer that it could choose from."""

    text: str
    logits: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class AnsweringRun:
    """A finished run that answers questions.

    `answers` are the classes or open answers that it knows; none where it chooses. `finished` is its student.
    """

    path: Path
    task: Task
    answers: tuple[str, ...]
    finished: FinishedRun

    def answer(self, picture: Picture, question: str, choices: Sequence[str] = ()) -> Answer:
        """Answer one question about one picture.

        Args:
            picture: its file, its bytes, or an image of Pillow.
            question: or the text that is to be judged, of a run that learned classes.
            choices: to choose from, of a run that learned to choose; other runs answer from `answers`.

        Raises:
            ConfigError: choices are missing, or given to a run that takes none.
            DatasetError: the picture cannot be read.
        """
        chooses = self.task in MULTIPLE_CHOICE_TASKS
        if chooses and len(set(choices)) < 2:
            raise ConfigError(
                "The run chooses among choices, and there are not two different ones.",
                where=str(self.path),
                why=f"got {list(choices)}",
                next_command="give two choices or more: answer(picture, question, choices)",
            )
        if choices and not chooses:
            raise ConfigError(
                "The run answers with the classes that it learned, not with choices.",
                where=str(self.path),
                why=f"it knows {', '.join(self.answers[:5])}{', ...' if len(self.answers) > 5 else ''}",
                next_command="leave out choices: answer(picture, question)",
            )
        candidates = [compose([question], choice, 0) for choice in choices] or [compose([], question, 0)]
        with tempfile.TemporaryDirectory() as folder:
            example = Example(
                example_id="question",
                task=self.task,
                image=_unit(picture, Path(folder)),
                candidates=tuple(candidates),
                label=None,
            )
            ((logits,),) = self.finished.scores([example], batch_size=1)
        texts = tuple(choices) or self.answers
        chosen = int(first_maximum(logits[None], [question])[0])
        return Answer(text=texts[chosen], logits=dict(zip(texts, logits.tolist(), strict=True)))


def open_run(path: Path, *, device: str = AUTO) -> AnsweringRun:
    """Load a finished run to ask it questions.

    Args:
        path: its folder.
        device: where it computes, such as cpu or cuda:0.

    Raises:
        ConfigError: the folder holds no run, or one that learned tasks of several heads.
        WeightsUnavailable: the run is not finished.
    """
    finished = load_run(path, resolved(ComputeConfig(device=device, num_workers=1)))
    trained_on = read_config(path)
    splits = [(str(trained_on["dataset"]), str(trained_on["split"]))]
    use_region_caches(finished.student, open_region_caches(regions_of_run(trained_on), splits))
    finished.student.cut_texts()
    heads = read_json(path / names.HEADS)
    if len(heads) != 1:
        raise ConfigError(
            "The run learned several tasks, so it is not plain which of them a question is of.",
            where=str(path),
            why=", ".join(sorted(heads)),
            next_command="score it with `evaluate`, or train a run of one task",
        )
    ((name, facts),) = heads.items()
    # Tasks that choose share a head, whichever of them the run learned.
    task: Task = "choice" if name == head_name("choice") else facts["task"]
    return AnsweringRun(path=path, task=task, answers=finished.label_names[name], finished=finished)


def _unit(picture: Picture, folder: Path) -> ImageUnit:
    """Return a picture without boxes; one in memory is written into the folder first."""
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, "PNG")
        picture = file.getvalue()
    if isinstance(picture, bytes):
        path = folder / "picture"
        write_bytes(path, picture)
    else:
        path = Path(picture)
    try:
        width, height = picture_size(path, str(path))
    except Malformed as error:
        raise DatasetError(
            "The picture cannot be read.", where=str(path), why=str(error), next_command="give another picture"
        ) from None
    return ImageUnit(
        unit_id=picture_unit_id(path),
        path=path,
        width=width,
        height=height,
        boxes_R4=np.zeros((0, 4), dtype=np.float32),
    )
