"""Extract two teachers and train a student from their caches: python examples/extract_and_train.py FOLDER

The data are twenty generated pictures, and a run takes about a minute. The example shows the API calls; the data are
too few to show a gain. On a second run, finished steps are skipped and interrupted ones resume.
"""

import sys
from pathlib import Path

from PIL import Image

import advl_pipeline as advl

folder = Path(sys.argv[1])
colours = ("red", "green", "blue", "yellow")
rows = []
for number in range(20):
    colour, other = colours[number % 4], colours[(number + 1 + number // 4 % 3) % 4]
    rows.append(
        {
            "image": Image.new("RGB", (64, 48), colour),
            "question": f"Which colour has picture {number}?",
            "choices": [colour, other] if number % 2 else [other, colour],
            "label": colour,
            "split": "train" if number < 16 else "val",
        }
    )

cache = advl.extract(teacher="efficientnet-lite2", data=rows, output=folder / "cache", confidence_folds=2).path
trained = advl.finetune(
    data=rows,
    method="advl",
    cache=[cache],
    num_steps=4,
    adapt_steps=2,
    batch_size=4,
    confidence_folds=2,
    output=folder / "run",
)
print(advl.evaluate(trained.output, on="val", probe="none").sets["val"].metrics)

question = "Which colour has this picture?"
print(advl.load_run(trained.output).answer(Image.new("RGB", (64, 48), "red"), question, ["red", "blue"]).text)
