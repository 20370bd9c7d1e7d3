"""Write two sets that people made as `.jsonl`: DAQUAR, and caption choice over photographs of Flickr8k.

python examples/real_photographs.py daquar FOLDER OUTPUT     # all_qa_pairs.txt, two lists of pictures, images/
python examples/real_photographs.py captions FOLDER OUTPUT   # captions.txt, images/

DAQUAR (Malinowski and Fritz 2014): its own split, by picture; a tenth of the train pictures become val. An answer of
several words is one answer. Captions: 60, 20 and 20 % of the photographs, drawn by a fixed seed. Each caption makes
one question, "Which caption describes the photograph?", with three captions of other photographs of its split.
"""

import csv
import json
import os
import random
import re
import sys
from pathlib import Path


def daquar(folder):
    """Yield (split, row) of DAQUAR; each question is followed by its answer."""
    lines = (folder / "all_qa_pairs.txt").read_text(encoding="utf-8").splitlines()
    train, test = (
        (folder / f"{split}_images_list.txt").read_text(encoding="utf-8").split() for split in ("train", "test")
    )
    split_of = dict.fromkeys(test, "test") | dict.fromkeys(train, "train")
    split_of |= dict.fromkeys(random.Random(0).sample(train, len(train) // 10), "val")
    for asked, answer in zip(lines[::2], lines[1::2], strict=True):
        image = re.search(r"image\d+", asked).group()
        question = asked.replace(f" in the {image}", "").replace(image, "image")
        yield split_of[image], {"image": f"{image}.png", "question": question, "answer": answer.strip()}


def captions(folder):
    """Yield (split, row) of caption choice."""
    with (folder / "captions.txt").open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    of_picture: dict[str, list[str]] = {image: [] for image, _ in lines}
    for image, caption in lines:
        of_picture[image].append(caption.strip())
    drawn, number = random.Random(0), len(of_picture)
    pictures = drawn.sample(sorted(of_picture), number)
    ends = {"train": pictures[: number * 3 // 5], "val": pictures[number * 3 // 5 : number * 4 // 5]}
    for split, images in {**ends, "test": pictures[number * 4 // 5 :]}.items():
        for image in images:
            for caption in of_picture[image]:
                others = drawn.sample([other for other in images if other != image], 3)
                choices = [caption, *(drawn.choice(of_picture[other]) for other in others)]
                drawn.shuffle(choices)
                row = {"image": image, "question": "Which caption describes the photograph?", "choices": choices}
                yield split, row | {"label": choices.index(caption)}


if __name__ == "__main__":
    name, source, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    output.mkdir(parents=True)
    written: dict[str, list[str]] = {}
    for split, row in {"daquar": daquar, "captions": captions}[name](source):
        written.setdefault(split, []).append(json.dumps(row | {"image": f"images/{row['image']}"}))
    (output / "images").mkdir()
    for path in (source / "images").iterdir():
        os.link(path, output / "images" / path.name)
    for split, rows in written.items():
        (output / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{split}: {len(rows)} questions")
