"""Write the annotation files of a split, in every format, once its pictures are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from advl_data.scenes.generator import paths
from advl_data.scenes.generator.caption_items import caption_items
from advl_data.scenes.generator.drawing_jobs import picture_paths
from advl_data.scenes.generator.placing import PICTURE_SIDE
from advl_data.scenes.generator.render import Box
from advl_data.scenes.generator.scene import Group, Scene
from advl_data.scenes.generator.snli_ve_items import snli_ve_items
from advl_data.scenes.generator.splits import TaskSplit
from advl_data.scenes.generator.vcr_items import metadata, vcr_items
from advl_data.scenes.generator.voice import Voice
from advl_data.scenes.generator.vqa_items import header, vqa_items

Boxes = Mapping[int, tuple[Box, ...]]
"""Scene number -> box of every thing."""


def write_task_split(
    folder: Path, seed: int, split: TaskSplit, groups: Sequence[Group], boxes: Boxes
) -> dict[str, dict[str, int]]:
    """Write a split's files of all three task formats but the pictures; return counts by "<format>/<split>"."""
    for scene, scene_boxes in boxes.items():
        path = folder / paths.VCR_FOLDER / paths.VCR_IMAGES / paths.vcr_metadata(split.name, scene)
        path.write_text(json.dumps(metadata(scene_boxes, width=PICTURE_SIDE, height=PICTURE_SIDE)), encoding="utf-8")
    names = {scene: picture_paths(split.name, scene, captions=False) for scene in boxes}
    for position, home in ((1, paths.VQA_FOLDER), (2, paths.SNLI_VE_FOLDER)):
        _write_lines(
            folder / paths.boxes(home, split.name),
            (
                {
                    "image": str(PurePosixPath(names[scene][position]).relative_to(home)),
                    "width": PICTURE_SIDE,
                    "height": PICTURE_SIDE,
                    "boxes": scene_boxes,
                }
                for scene, scene_boxes in boxes.items()
            ),
        )
    voice = Voice(seed=seed, plan_split=split.plan, split=split.name, phrasing=split.phrasing)
    num_vcr = _write_lines(folder / paths.vcr_annotations(split.name), vcr_items(groups, voice))
    num_snli_ve = _write_lines(folder / paths.snli_ve_annotations(split.name), snli_ve_items(groups, voice))
    questions, annotations = vqa_items(groups, voice)
    _write_json(
        folder / paths.vqa_questions(split.name), header(split.name, questions=True) | {"questions": questions}
    )
    _write_json(
        folder / paths.vqa_annotations(split.name),
        header(split.name, questions=False) | {"annotations": annotations},
    )
    items = {
        paths.VCR_FOLDER: num_vcr,
        paths.VQA_FOLDER: len(questions),
        paths.SNLI_VE_FOLDER: num_snli_ve,
    }
    return {f"{home}/{split.name}": {"images": len(boxes), "items": count} for home, count in items.items()}


def write_captions(
    folder: Path, seed: int, name: str, scenes: Sequence[Scene], boxes: Boxes
) -> dict[str, dict[str, int]]:
    """Write a caption split's file; return its counts by "captions/<split>"."""
    count = _write_lines(
        folder / paths.captions(name),
        (line for scene in scenes for line in caption_items(scene, boxes[scene.number], seed=seed, split=name)),
    )
    return {f"{paths.CAPTIONS_FOLDER}/{name}": {"images": len(scenes), "items": count}}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return len(texts)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
