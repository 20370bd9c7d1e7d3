"""accelerate, on any device and any number of processes: accelerate launch examples/loop_accelerate.py CACHE TEXTS"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from advl_pipeline import CachedFeatures, FeatureCollator, distance, text_unit_id

accelerator = Accelerator(cpu=not torch.cuda.is_available())
texts = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
rows = [{"bytes": torch.tensor([*text.encode()[:64].ljust(64)])} for text in texts]
data = CachedFeatures(sys.argv[1:2], "text", unit_ids=list(map(text_unit_id, texts)), rows=rows)
((teacher, features),) = data[0]["teachers"].items()
model = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(1024, len(features["global"])))
loader = DataLoader(data, 32, shuffle=True, collate_fn=FeatureCollator())
student, optimiser, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3), loader)
for epoch in range(5):
    for batch in loader:
        loss = distance(student(batch["bytes"]), batch["teachers"][teacher]["global"], "cosine").mean()
        optimiser.zero_grad(), accelerator.backward(loss), optimiser.step()
    accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
