"""easy-vqa (`pip install easy-vqa`: 5,000 drawn pictures, 48,248 questions, 13 answers) as data of one's own.

python examples/convert_easy_vqa.py FOLDER [PICTURES]   writes FOLDER/easy-vqa.jsonl, with that many pictures of train
"""

import json
import shutil
import sys
from pathlib import Path

import easy_vqa

folder, num_train = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4000
questions = {"train": easy_vqa.get_train_questions(), "test": easy_vqa.get_test_questions()}
paths = {"train": easy_vqa.get_train_image_paths(), "test": easy_vqa.get_test_image_paths()}
limits = {"train": num_train, "test": num_train // 4}
folder.mkdir(parents=True, exist_ok=True)
with (folder / "easy-vqa.jsonl").open("w") as file:
    for split, (texts, answers, image_ids) in questions.items():
        (folder / split).mkdir(exist_ok=True)
        for text, answer, image_id in zip(texts, answers, image_ids, strict=True):
            image = f"{split}/{image_id}.png"
            if image_id < limits[split]:
                shutil.copyfile(paths[split][image_id], folder / image)
                row = {"image": image, "question": text, "answer": answer, "split": split, "stratum": text.split()[0]}
                file.write(json.dumps(row) + "\n")
