"""Train on NLVR (Suhr et al. 2017): is a crowd worker's sentence true of a drawn picture? Evaluate on its dev set.

git clone https://github.com/lil-lab/nlvr NLVR
python examples/learn_nlvr.py NLVR/nlvr FOLDER [EPOCHS]

The public repository lacks the train sentences. This script trains on the two public test sets instead, with all
sentences about a tenth of their pictures as val, and uses dev as the test set. Each example has six drawings, with
its boxes in different orders, and each drawing counts, as in the authors' evaluation.
"""

import json
import sys
import time
from pathlib import Path

import advl_pipeline as advl

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
epochs = float(sys.argv[3]) if len(sys.argv) > 3 else None
began = time.perf_counter()
folder.mkdir(parents=True, exist_ok=True)
with (folder / "nlvr.jsonl").open("w", encoding="utf-8") as file:
    for name in ("test", "hidden", "dev"):
        pictures = {path.stem: path.relative_to(source) for path in (source / name / "images").rglob("*.png")}
        for line in (source / name / f"{name}.json").read_text(encoding="utf-8").splitlines():
            example = json.loads(line)
            # Four sentences describe pictures that were shown together; keep them in one split.
            is_val = int(example["identifier"].split("-")[0]) % 10 == 9
            split = "test" if name == "dev" else "val" if is_val else "train"
            for order in range(6):
                image = str(pictures[f"{name}-{example['identifier']}-{order}"])
                row = {"image": image, "text": example["sentence"], "label": example["label"], "split": split}
                file.write(json.dumps(row) + "\n")

data = folder / "nlvr.jsonl"
run = advl.finetune(data=data, data_root=source, method="plain", epochs=epochs, output=folder / "run").output
scores = advl.evaluate(run, on="test", probe="none").sets["test"]
print(f"{scores.num_examples} drawings of dev, {time.perf_counter() - began:.0f} s in all")
print(scores.metrics)
