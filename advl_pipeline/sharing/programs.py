"""A student with its head as one program for torch alone: no class of ours or of anybody is needed to run it.

`program.pt2` holds the operations, `model.safetensors` the weights, `load.py` reads both.

Shapes: N sequences, L text tokens, R visual tokens; every input has one picture per sequence (B = N).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.func import functional_call

from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, ObjectTag, Task, text_unit
from advl_pipeline.errors import ConfigError
from advl_pipeline.students.interface import Student, StudentBatch

PROGRAM_FILE = "program.pt2"
LOADER_FILE = "load.py"

LARGEST_DIFFERENCE = 1e-4
"""Of logits, between a student and its program, in float32."""

PREPARED = frozenset({"token_ids_NL", "types_NL", "token_mask_NL", "visual_mask_NR", "pixels_B3SS"})
"""What `prepare` of `load.py` makes of a picture and texts, for a student that reads no more than these."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentProgram:
    """The traced student. `inputs` are the tensors of a batch that it reads, with their types and shapes in words.

    `legend` says what they hold, a sentence an item.
    """

    program: ExportedProgram
    weights: Mapping[str, torch.Tensor]
    inputs: Mapping[str, str]
    legend: tuple[str, ...]


class Scores(nn.Module):
    """Computes the class logits of a batch, by a student with its head."""

    def __init__(self, student: Student, head: nn.Module) -> None:
        super().__init__()
        self.student, self.head = student, head

    def forward(self, batch: StudentBatch) -> torch.Tensor:
        return self.student.encode(batch).class_logits(self.head)


class _Program(nn.Module):
    """Scores as a function of weights and tensors alone."""

    def __init__(self, scores: Scores, batch: StudentBatch) -> None:
        super().__init__()
        # In a list, so that weights are inputs of the program and not part of it.
        self._parts = [(scores, batch)]

    def forward(self, weights: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> Any:
        scores, batch = self._parts[0]
        return functional_call(scores, weights, (dataclasses.replace(batch, **cast(dict[str, Any], tensors)),))


def trace_student(student: Student, head: nn.Module, task: Task) -> StudentProgram:
    """Trace a student and its head over a batch of made-up examples; it computes in float32.

    Raises:
        ConfigError: torch cannot trace it, or what it traced computes something else.
    """
    scores = Scores(student, head).eval().float()
    with tempfile.TemporaryDirectory() as folder:
        batch = student.collate(made_up_examples(Path(folder), task))
    inputs = {name: getattr(batch, name) for name in fields_read(scores, batch)}
    weights = {name: value.detach() for name, value in sorted(scores.state_dict().items())}
    shapes = (
        {name: dict.fromkeys(range(value.ndim), Dim.STATIC) for name, value in weights.items()},
        {name: dict.fromkeys(range(value.ndim), Dim.AUTO) for name, value in inputs.items()},
    )
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Program(scores, batch), (weights, inputs), dynamic_shapes=shapes, strict=False
            )
            difference = float((program.module()(weights, inputs) - scores(batch)).abs().max())
    except Exception as error:  # torch raises whatever the traced code met.
        raise ConfigError(
            f"{student.name} cannot be traced into a program.", why=str(error).partition("\n")[0][:300]
        ) from error
    if not difference < LARGEST_DIFFERENCE:
        raise ConfigError(
            f"The program of {student.name} does not compute what the student does.",
            why=f"logits differ by {difference:.1g} on made-up examples",
        )
    # They hold the weights a second time.
    program.example_inputs = None
    return StudentProgram(
        program=program,
        weights=weights,
        inputs={name: _shape_in_words(name, value) for name, value in inputs.items()},
        legend=legend_of(batch, inputs),
    )


def legend_of(batch: StudentBatch, inputs: Iterable[str]) -> tuple[str, ...]:
    """Return the sentences of the docstrings of a batch that name one of the inputs."""
    docstrings = [inspect.cleandoc(base.__dict__.get("__doc__") or "") for base in reversed(type(batch).__mro__[:-1])]
    sentences = [" ".join(sentence.split()) for text in docstrings for sentence in re.split(r"(?<=\.)\s+", text)]
    return tuple(sentence for sentence in sentences if any(f"`{name}`" in sentence for name in inputs))


def fields_read(scores: Scores, batch: StudentBatch) -> list[str]:
    """Return the tensors of a batch that a forward pass reads."""
    tensors = [item.name for item in dataclasses.fields(batch) if isinstance(getattr(batch, item.name), torch.Tensor)]
    read: set[str] = set()

    class Watched(type(batch)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    watched = Watched(**{item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)})
    read.clear()
    with torch.inference_mode():
        scores(watched)
    return [name for name in tensors if name in read]


def _shape_in_words(name: str, value: torch.Tensor) -> str:
    """Return type and shape of an input from the legend at the end of its name, such as `_NL` or `_BR7`."""
    legend = re.search(r"_([A-Z0-9a-z]+)$", name)
    letters = list(legend[1]) if legend and len(legend[1]) == value.ndim else ["N", *"?" * (value.ndim - 1)]
    sizes = [
        "N" if letter in "BN" else letter if letter in "LRA?" else str(size)
        for letter, size in zip(letters, value.shape, strict=True)
    ]
    return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def made_up_examples(folder: Path, task: Task) -> list[Example]:
    """Return three examples of one candidate each, over pictures that are drawn into a folder."""
    examples = []
    for number in range(3):
        path = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        question, answer = "what is person1 doing?", " ".join(["near dog2", *["again"] * number])
        image = ImageUnit(
            unit_id=f"made-up-{number}",
            path=path,
            width=64,
            height=48,
            boxes_R4=np.array([[4, 4, 30, 40], [20, 10, 60, 44], [1, 2, 20, 30]], dtype=np.float32),
            box_labels=("person", "dog", "person"),
        )
        candidate = Candidate(
            text_unit=text_unit(f"{question} {answer}"),
            context_length=len(question),
            tags=(
                ObjectTag(start=8, end=15, box=0),
                ObjectTag(start=len(question) + 6, end=len(question) + 10, box=1),
            ),
        )
        examples.append(Example(example_id=str(number), task=task, image=image, candidates=(candidate,), label=None))
    return examples
