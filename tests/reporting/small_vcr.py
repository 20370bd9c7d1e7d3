"""A few items in VCR's own layout, with drawn pictures, named as the synthetic runs name them."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

WORDS = ["sit", "run", "wait", "sing"]


def write_vcr(root: Path, *, num_items: int, hostile: str = "") -> None:
    """Write root/vcr/val.jsonl and its pictures; `hostile` is put into the words of every question."""
    folder = root / "vcr"
    images = folder / "vcr1images" / "movie"
    images.mkdir(parents=True)
    lines = []
    for index in range(num_items):
        name = f"movie/{index}@0"
        picture = Image.new("RGB", (400, 200), (236, 240, 243))
        draw = ImageDraw.Draw(picture)
        draw.ellipse((40, 50, 140, 150), fill=(90, 140 + index % 100, 200))
        draw.rectangle((240, 60, 340, 160), fill=(220, 150, 60 + index % 100))
        picture.save(folder / "vcr1images" / f"{name}.jpg")
        metadata = {
            "names": ["person", "dog"],
            "boxes": [[40, 50, 140, 150, 1.0], [240, 60, 340, 160, 1.0]],
            "segms": [[], []],
            "width": 400,
            "height": 200,
        }
        (folder / "vcr1images" / f"{name}.json").write_text(json.dumps(metadata), encoding="utf-8")
        choices = [[[0], "wants", "to", word, "."] for word in WORDS]
        lines.append(
            {
                "movie": "movie", "objects": ["person", "dog"], "interesting_scores": [0],
                "answer_likelihood": "likely", "img_fn": f"{name}.jpg", "metadata_fn": f"{name}.json",
                "question": ["Why", "does", [0], "look", "at", [1], *([hostile] if hostile else []), "?"],
                "answer_choices": choices, "answer_label": 0, "rationale_choices": choices, "rationale_label": 0,
                "answer_orig": "", "question_orig": "", "rationale_orig": "", "answer_match_iter": [0, 1, 2, 3],
                "answer_sources": [0, 1, 2, 3], "rationale_match_iter": [0, 1, 2, 3],
                "rationale_sources": [0, 1, 2, 3], "img_id": f"val-{index}", "question_number": 0,
                "annot_id": f"val-{index}", "match_fold": "val-0", "match_index": index,
            }
        )  # fmt: skip
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
