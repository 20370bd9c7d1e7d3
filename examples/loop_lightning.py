"""Lightning (`pip install pytorch-lightning`): python examples/loop_lightning.py CACHE TEXTS"""

import sys
from pathlib import Path

import pytorch_lightning as lightning
from torch import nn, optim, tensor, utils

from advl_pipeline import CachedFeatures, FeatureCollator, distance, text_unit_id


class Student(lightning.LightningModule):
    def training_step(self, part, _):
        loss = distance(self.encoder(part["bytes"]), next(iter(part["teachers"].values()))["global"], "cosine").mean()
        print(f"step {self.global_step}: loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=3e-3)


texts = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
rows = [{"bytes": tensor([*text.encode()[:64].ljust(64)])} for text in texts]
data = CachedFeatures(sys.argv[1:2], "text", unit_ids=list(map(text_unit_id, texts)), rows=rows)
student, width = Student(), len(next(iter(data[0]["teachers"].values()))["global"])
student.encoder = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(1024, width))
batches = utils.data.DataLoader(data, 32, shuffle=True, collate_fn=FeatureCollator())
lightning.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False).fit(student, batches)
