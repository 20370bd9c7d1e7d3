"""Score a probe on the vectors of the default student's frozen towers: what a student has to beat.

python examples/own_probe.py DATA [SPLIT [SHOTS [SEED]]]    DATA: a folder of .jsonl, or one with a column `split`

Rows with `choices`: two linear maps, cosine and softmax. Rows with `answer`: an MLP over both vectors, exact match.
"""

import json
import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import advl_pipeline as advl


def read(data, split, shots=0):
    """Return the vectors of pictures and of texts (one for each choice), and the labels or answers."""
    path = data / f"{split}.jsonl" if data.is_dir() else data
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("split", split) == split]
    rows = random.sample(rows, shots) if shots else rows
    image, text = (
        advl.open_cache(advl.extract(teacher=name, data=data, split=split, confidence=False).path)
        for name in ("efficientnet-lite0", "minilm-l6")
    )
    shown = image.image.global_features([advl.picture_unit_id(path.parent / row["image"]) for row in rows])
    said = [[advl.text_unit_id(row["question"], choice) for choice in row.get("choices", [""])] for row in rows]
    said = [torch.tensor(text.text.global_features(ids)) for ids in said]
    vectors = [torch.tensor(shown)[:, None].float(), torch.stack(said).float()]
    right = [row["label"] if "choices" in row else row["answer"] for row in rows]
    return *(functional.layer_norm(each, each.shape[2:]) for each in vectors), right


class Probe(nn.Module):
    def __init__(self, shown, said, num_answers):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(size, 256) for size in (shown, said))
        layers = nn.Linear(shown + said, 512), nn.GELU(), nn.LayerNorm(512), nn.Dropout(0.3)
        self.answers = nn.Sequential(nn.Dropout(0.3), *layers, nn.Linear(512, num_answers)) if num_answers else None

    def forward(self, shown, said):
        if self.answers is not None:
            return self.answers(torch.cat([shown, said], dim=-1)[:, 0])
        return 10 * functional.cosine_similarity(self.maps[0](shown), self.maps[1](said), dim=-1)


def main(data, split="test", shots="0", seed="0"):
    random.seed(int(seed)), torch.manual_seed(int(seed))
    shown, said, right = read(Path(data), "train", int(shots))
    answers = {} if isinstance(right[0], int) else {answer: place for place, answer in enumerate(sorted(set(right)))}
    label = torch.tensor([answers.get(each, each) for each in right])
    probe, num_steps = Probe(shown.shape[2], said.shape[2], len(answers)), max(300, 12 * len(right) // 64)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / num_steps)
    for _ in range(num_steps):
        batch = torch.randint(len(right), (64,))
        optimiser.zero_grad()
        functional.cross_entropy(probe(shown[batch], said[batch]), label[batch]).backward()
        optimiser.step()
        rate.step()
    shown, said, right = read(Path(data), split)
    with torch.no_grad():
        found = probe.eval()(shown, said).argmax(1).tolist()
    names = {place: answer for answer, place in answers.items()}
    score = sum(names.get(place, place) == answer for place, answer in zip(found, right, strict=True)) / len(right)
    print(f"{100 * score:.1f} % of {len(right)} questions of {split}, after {num_steps} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
