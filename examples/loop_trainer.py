"""Hugging Face's Trainer: a mixin adds the teacher to any task's loss. python examples/loop_trainer.py CACHE TEXTS"""

import sys
from pathlib import Path

from torch import nn, tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from advl_pipeline import CachedFeatures, FeatureCollator, distance, text_unit_id


class FollowsTeacher:
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        ((_, features),) = inputs.pop("teachers").items()
        loss, outputs = super().compute_loss(model, {**inputs, "output_hidden_states": True}, True, **options)
        ours = model.projection(outputs.hidden_states[-1].mean(1))
        loss = loss + 0.3 * distance(ours, features["global"], "cosine").mean()
        return (loss, outputs) if return_outputs else loss


texts = Path(sys.argv[2]).read_text(encoding="utf-8").splitlines()
rows = [{"input_ids": tensor([*text.encode()[:64].ljust(64)]), "labels": int(len(text) > 40)} for text in texts]
data = CachedFeatures(sys.argv[1:2], "text", unit_ids=list(map(text_unit_id, texts)), rows=rows)
model = BertForSequenceClassification(BertConfig(vocab_size=256, hidden_size=48, num_hidden_layers=2))
model.projection = nn.Linear(48, len(next(iter(data[0]["teachers"].values()))["global"]))
# By default the Trainer drops columns that forward() does not name, the teachers' features included.
arguments = TrainingArguments("trained", remove_unused_columns=False, report_to="none", max_steps=20, logging_steps=5)
type("Distiller", (FollowsTeacher, Trainer), {})(model, arguments, FeatureCollator(), data).train()
