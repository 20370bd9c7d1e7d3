"""Hugging Face's Trainer, with any task's loss. python examples/loop_trainer.py CACHE TEXTS [shuffled]"""

import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import advl_pipeline as advl

cache, file, *options = sys.argv[1:]
texts = sorted(set(Path(file).read_text(encoding="utf-8").splitlines()))
words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
transformers.set_seed(0)
sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
model = transformers.BertForSequenceClassification(config)

layer = advl.LayerStates(model, "bert.encoder.layer.1")
distil = advl.RelationalDistillation([cache], texts, shuffle_teachers=bool(options))


def collate(rows):
    texts = [row["text"] for row in rows]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_offsets_mapping=True)
    return {**batch, "labels": torch.tensor([len(text) % 2 for text in texts]), "texts": texts}


def states(batch):
    return advl.HiddenStates(texts=batch["texts"], states_NLH=layer.states, offsets_NL2=batch["offset_mapping"])


class Distilling(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **more):
        about = {name: inputs.pop(name) for name in ("texts", "offset_mapping")}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **more)
        loss = loss + distil(states(about)).total
        return (loss, outputs) if return_outputs else loss


def readout():
    batch = collate(rows[:256])
    model.eval()(batch["input_ids"].to(model.device))
    return distil.readout([states(batch)])


rows = [{"text": text} for text in texts]
print("before:", readout())
# By default the Trainer drops columns that forward() does not name.
arguments = {"remove_unused_columns": False, "report_to": "none", "max_steps": 40, "logging_steps": 10}
arguments |= {"learning_rate": 3e-3, "per_device_train_batch_size": 32, "save_strategy": "no"}
Distilling(model, transformers.TrainingArguments("trained", **arguments), collate, rows).train()
print("after:", readout())
