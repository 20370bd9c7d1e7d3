"""TRL's SFTTrainer on a SmolVLM (`pip install trl`): python examples/loop_trl.py CACHE ROWS MODEL [shuffled]

ROWS are lines of JSON with `image`, `question` and `answer`. Words follow the teacher in a pass of the text alone.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

import advl_pipeline as advl

cache, file, folder, *options = sys.argv[1:]
rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
texts = sorted({f"{row['question']} {row['answer']}" for row in rows})
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

layer = advl.LayerStates(model, "model.text_model.layers.1")
distil = advl.RelationalDistillation([cache], texts, shuffle_teachers=bool(options))


def words(texts):
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    offsets = tokens.pop("offset_mapping")
    model.model.text_model(input_ids=tokens["input_ids"].to(model.device), use_cache=False)
    return advl.HiddenStates(texts=texts, states_NLH=layer.states, offsets_NL2=offsets)


def conversation(row):
    asked = [{"type": "image", "path": row["image"]}, {"type": "text", "text": row["question"]}]
    said = [{"type": "text", "text": row["answer"]}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def collate(rows):
    messages = [row["messages"] for row in rows]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "processor_kwargs": {"padding": True}}
    batch = processor.apply_chat_template(messages, **options)
    ignored = (batch["input_ids"] == model.config.image_token_id) | (batch["attention_mask"] == 0)
    texts = [f"{asked['content'][1]['text']} {said['content'][0]['text']}" for asked, said in messages]
    return {**batch, "labels": batch["input_ids"].masked_fill(ignored, -100), "texts": texts}


class Distilling(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **more):
        texts = inputs.pop("texts")
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **more)
        loss = loss + distil(words(texts)).total
        return (loss, outputs) if return_outputs else loss


print("before:", distil.readout([words(texts[:256])]))
arguments = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "report_to": "none"}
arguments |= {"max_steps": 30, "logging_steps": 5, "learning_rate": 3e-3, "save_strategy": "no", "bf16": False}
data = Dataset.from_list([conversation(row) for row in rows])
Distilling(model, SFTConfig("trained", **arguments), collate, data, processing_class=processor).train()
print("after:", distil.readout([words(texts[:256])]))
