"""Plain PyTorch: train a text encoder on a cached teacher. python examples/loop_pytorch.py CACHE TEXTS"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from advl_pipeline import CachedFeatures, FeatureCollator, distance, text_unit_id

if __name__ == "__main__":  # Spawned workers import this file.
    texts = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
    rows = [{"bytes": torch.tensor([*text.encode()[:64].ljust(64)])} for text in texts]
    data = CachedFeatures(sys.argv[1:2], "text", unit_ids=list(map(text_unit_id, texts)), rows=rows)
    options = {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True}
    loader = DataLoader(data, 32, shuffle=True, collate_fn=FeatureCollator(), **options)
    ((teacher, features),) = data[0]["teachers"].items()
    student = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(1024, len(features["global"])))
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for epoch in range(5):
        for batch in loader:
            loss = distance(student(batch["bytes"]), batch["teachers"][teacher]["global"], "cosine").mean()
            optimiser.zero_grad(), loss.backward(), optimiser.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
