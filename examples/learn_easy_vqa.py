"""Train and evaluate on easy-vqa (`pip install easy-vqa`: 5,000 drawn pictures, 48,248 questions, 13 answers).

python examples/learn_easy_vqa.py FOLDER [PICTURES [EPOCHS]]

The script writes FOLDER/easy-vqa.jsonl with PICTURES train pictures (default: all 4,000), every tenth of them as val.
It trains the default student for at most EPOCHS epochs (default: 3) and evaluates it on the official test set.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import easy_vqa

import advl_pipeline as advl

folder = Path(sys.argv[1])
num_train = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
epochs = float(sys.argv[3]) if len(sys.argv) > 3 else 3.0
began = time.perf_counter()
folder.mkdir(parents=True, exist_ok=True)
sources = {
    "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths(), num_train),
    "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths(), num_train // 4),
}
with (folder / "easy-vqa.jsonl").open("w", encoding="utf-8") as file:
    for source, (questions, paths, limit) in sources.items():
        (folder / source).mkdir(exist_ok=True)
        for question, answer, number in zip(*questions, strict=True):
            if number < limit:
                image = f"{source}/{number}.png"
                shutil.copyfile(paths[number], folder / image)
                split = "val" if source == "train" and number % 10 == 9 else source
                row = {"image": image, "question": question, "answer": answer, "split": split}
                file.write(json.dumps(row) + "\n")

data = folder / "easy-vqa.jsonl"
run = advl.finetune(data=data, method="plain", epochs=epochs, output=folder / "run").output
scores = advl.evaluate(run, on="test", probe="none").sets["test"]
print(f"{scores.num_examples} questions of test, {time.perf_counter() - began:.0f} s in all")
print(scores.metrics)
