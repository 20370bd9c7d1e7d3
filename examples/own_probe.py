"""Score a probe on the vectors of the default student's frozen towers: what a student has to beat.

python examples/own_probe.py DATA [SPLIT [SHOTS [SEED]]]    DATA: a folder of .jsonl, or one with a column `split`

Rows with `choices`: two linear maps, the best match. Rows with `answer`: both vectors and their match, exact match.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

import advl_pipeline as advl


def read(data, split, shots=0):
    """Return the vectors of texts (one for each choice) and of pictures, and the labels or answers."""
    path = data / f"{split}.jsonl" if data.is_dir() else data
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("split", split) == split]
    rows = random.sample(rows, shots) if shots else rows
    image, text = (
        advl.open_cache(advl.extract(teacher=name, data=data, split=split, confidence=False).path)
        for name in ("efficientnet-lite0", "minilm-l6")
    )
    shown = image.image.global_features([advl.picture_unit_id(path.parent / row["image"]) for row in rows])
    texts = [[advl.text_unit_id(row["question"], choice) for choice in row.get("choices", [""])] for row in rows]
    said = np.stack([text.text.global_features(ids) for ids in texts])
    return said, shown, [row["label"] if "choices" in row else row["answer"] for row in rows]


def main(data, split="test", shots="0", seed="0"):
    random.seed(int(seed))
    said, shown, right = read(Path(data), "train", int(shots))
    answers = [] if isinstance(right[0], int) else sorted(set(right))
    labels = [answers.index(each) if answers else each for each in right]
    probe = advl.MatchProbe.fit(said, shown, labels, num_classes=len(answers))
    said, shown, right = read(Path(data), split)
    best = probe.scores(said, shown).argmax(axis=1).tolist()
    score = sum((answers[place] if answers else place) == each for place, each in zip(best, right, strict=True))
    print(f"{100 * score / len(right):.1f} % of {len(right)} questions of {split}")


if __name__ == "__main__":
    main(*sys.argv[1:])
