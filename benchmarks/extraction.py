"""Extraction against the bare forward passes on the same batches, and against the loops that people write first.

Texts are encoded by the real `minilm-l6`. Beside a bare forward pass stand pictures of 500 x 375 and a network of the
size that teachers have, ViT-B/16; beside the loop, photos of 1280 x 720 and a fast network, EfficientNet-Lite0, where
decoding counts. Both networks have random weights.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from advl_pipeline.cache.ragged import place
from advl_pipeline.configuration import build_config
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, Task, TextUnit, image_unit_id, text_unit
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.encode import plan_batches
from advl_pipeline.extraction.run import extract
from advl_pipeline.teachers.image_tower import PixelImageTower
from advl_pipeline.teachers.interface import PreparedUnit, Teacher
from advl_pipeline.teachers.timm_family import TimmBackbone
from benchmarks.rows import Row, ratio_row

_BATCH_SIZE = 32
_SHARD_ROWS = 32768
_MEAN_WORDS = {"question": 7, "answer": 8, "rationale": 16}
_WORDS = (
    "why is person1 looking at the person2 because she wants to leave a party before it gets too late and he is "
    "worried about what will happen next in this small room with many old books on their shelves near window"
).split()


_NO_PICTURE = ImageUnit(
    unit_id="0" * 32, path=Path("absent.jpg"), width=1, height=1, boxes_R4=np.zeros((0, 4), np.float32)
)


class Inputs:
    """A dataset of inputs alone: texts in the order in which it lists them, repeated ones too, and pictures."""

    split, text_style = "train", "plain"
    tasks: tuple[Task, ...] = ("vcr-q2a", "vcr-qa2r")

    def __init__(self, name: str, listed: Sequence[TextUnit] = (), drawn: Sequence[ImageUnit] = ()) -> None:
        self.name = self.identity_name = name
        self.listed = listed
        self._unique = list({unit.unit_id: unit for unit in listed}.values())
        self._pictures = drawn

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, index: int) -> Example:
        """Return one text as an example, for the prior of words."""
        candidates = (Candidate(text_unit=self.listed[index]),)
        return Example(example_id=str(index), task="vqa", image=_NO_PICTURE, candidates=candidates, label=None)

    @property
    def example_ids(self) -> Sequence[str]:
        return []

    def label_names(self, task: Task) -> tuple[str, ...]:
        del task
        return ()

    def content_digest(self) -> str:
        return f"{self.name}-{len(self.listed)}-{len(self._pictures)}"

    def image_units(self) -> Sequence[ImageUnit]:
        return self._pictures

    def text_units(self) -> Sequence[TextUnit]:
        return self._unique


def vcr_like_texts(num_texts: int) -> list[TextUnit]:
    """Draw the eight candidates of VCR's two tasks, question by question, with lengths spread around VCR's means.

    Of ten questions, three occur again with the same four answers.
    """
    generator = np.random.default_rng(0)

    def sentence(part: str) -> str:
        length = int(np.clip(generator.gamma(5.0, _MEAN_WORDS[part] / 5.0), 2, 50))
        return " ".join(generator.choice(_WORDS, length).tolist())

    listed: list[TextUnit] = []
    while len(listed) < num_texts:
        question, right = sentence("question"), sentence("answer")
        answers = [right, *(sentence("answer") for _ in range(3))]
        answered = [text_unit(f"{question} {answer}") for answer in answers]
        listed += [*answered, *(text_unit(f"{question} {right} {sentence('rationale')}") for _ in range(4))]
        if generator.random() < 0.3:
            listed += answered
    return listed


def draw_photos(folder: Path, count: int, size: tuple[int, int]) -> list[ImageUnit]:
    """Write JPEG files of smooth shapes under noise, which take as long to decode as photos of their size."""
    folder.mkdir(parents=True, exist_ok=True)
    units = []
    for number in range(count):
        path = folder / f"{number}.jpg"
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        noise = generator.normal(0.0, 12.0, (size[1], size[0], 3))
        pixels = np.clip(np.asarray(coarse.resize(size)) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
        digest, boxes_R4 = hashlib.sha256(path.read_bytes()).digest(), np.zeros((0, 4), np.float32)
        unit_id = image_unit_id(digest, boxes_R4)
        units.append(ImageUnit(unit_id=unit_id, path=path, width=size[0], height=size[1], boxes_R4=boxes_R4))
    return units


def measure_extraction(folder: Path, quick: bool) -> list[Row]:
    """Measure all rows of this section."""
    from advl_pipeline.teachers.registry import open_teacher

    rounds = 2 if quick else 5
    of_texts = Inputs("texts", listed=vcr_like_texts(400 if quick else 2_400))
    minilm = open_teacher("minilm-l6")
    some = Inputs("pictures", drawn=draw_photos(folder / "pictures", 8 if quick else 96, (500, 375)))
    photos = Inputs("photos", drawn=draw_photos(folder / "photos", 32 if quick else 200, (1280, 720)))
    vit, lite = (_random_teacher(name) for name in ("vit_base_patch16_224", "tf_efficientnet_lite0"))

    def rates(teacher: Teacher, inputs: Inputs, **ways: Callable[[], None]) -> dict[str, list[float]]:
        ways = {**ways, "extract": lambda: _extract(teacher, inputs, folder / "extract")}
        return _rates(ways, len(inputs.listed) or len(inputs.image_units()), rounds)

    tower: Any = minilm.text
    on_texts = rates(
        minilm,
        of_texts,
        bare=_bare(tower, tower.prepare(of_texts.text_units())),
        loop=lambda: _loop_over_texts(tower, of_texts, folder / "loop"),
    )
    seen: Any = vit.image
    on_pictures = rates(vit, some, bare=_bare(seen, list(map(seen.prepare, some.image_units()))))
    on_photos = rates(lite, photos, loop=lambda: _loop_over_photos(photos, folder / "loop"))
    return [
        _row("texts: share of the bare forward passes", on_texts, "bare", 0.95),
        _row("texts: against the straightforward loop", on_texts, "loop", 2.5),
        _row("pictures: share of the bare forward passes", on_pictures, "bare", 0.95),
        _row("photos: against the straightforward loop", on_photos, "loop", 1.3),
    ]


def _row(name: str, rates: Mapping[str, list[float]], other: str, goal: float) -> Row:
    said = ", ".join(f"{way} {statistics.median(found):.1f}" for way, found in rates.items())
    detail = f"{said} per second, repeated ones counted"
    return ratio_row(f"extraction of {name}", rates["extract"], rates[other], goal=goal, detail=detail)


def _rates(ways: Mapping[str, Callable[[], None]], count: int, rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            begin = time.perf_counter()
            run()
            if number:  # The first round warms up.
                rates[way].append(count / (time.perf_counter() - begin))
    return rates


def _random_teacher(name: str) -> Teacher:
    import timm

    torch.manual_seed(0)
    backbone = TimmBackbone(
        timm.create_model(name).eval(), architecture=name, device=torch.device("cpu"), dtype=torch.float32
    )
    return Teacher(name=name, image=PixelImageTower(backbone, "grid", 12))


def _bare(tower: Any, prepared: Sequence[PreparedUnit]) -> Callable[[], None]:
    """The forward passes alone, on batches made ready before and composed as the extraction composes them."""
    lengths_N = np.array([item.num_tokens for item in prepared], np.int32)
    placement = place(lengths_N, shard_rows=_SHARD_ROWS)
    batches = [
        [prepared[unit] for unit in batch]
        for shard in range(placement.num_shards)
        for batch in plan_batches(placement.units_of(shard), lengths_N, batch_size=_BATCH_SIZE)
    ]

    def run() -> None:
        for batch in batches:
            tower.encode(batch)

    return run


def _extract(teacher: Teacher, inputs: Inputs, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    settings = {
        "teacher": "bench",
        "dataset": inputs.name,
        "output": target,
        "batch_size": _BATCH_SIZE,
        "shard_rows": _SHARD_ROWS,
        "confidence": False,
        "modality": "text" if inputs.listed else "image",
    }
    extract(build_config(ExtractConfig, settings), teacher, inputs)


@torch.inference_mode()
def _loop_over_texts(tower: Any, inputs: Inputs, target: Path) -> None:
    """What one writes first: every text in turn, padded to the longest of its batch, outputs saved batch by batch."""
    tokenizer, model = tower.pieces._tokenizer, tower.backbone._model
    _empty(target)
    for first in range(0, len(inputs.listed), _BATCH_SIZE):
        texts = [unit.text for unit in inputs.listed[first : first + _BATCH_SIZE]]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        states_BLD = model(**batch).last_hidden_state
        mask_BL1 = batch["attention_mask"][..., None]
        global_BD = (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        torch.save({"tokens": states_BLD, "global": global_BD}, target / f"{first}.pt")


@torch.inference_mode()
def _loop_over_photos(inputs: Inputs, target: Path) -> None:
    """What one writes first: decode, transform, forward and save in one line of work."""
    import timm
    from timm.data import create_transform, resolve_data_config

    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    _empty(target)
    units = inputs.image_units()
    for first in range(0, len(units), _BATCH_SIZE):
        opened = [Image.open(unit.path).convert("RGB") for unit in units[first : first + _BATCH_SIZE]]
        states = model.forward_features(torch.stack([transform(picture) for picture in opened]))
        pooled = model.forward_head(states, pre_logits=True)
        torch.save({"grid": states, "global": pooled}, target / f"{first}.pt")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
