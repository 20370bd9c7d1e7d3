"""Lightning (`pip install pytorch-lightning`): python examples/loop_lightning.py CACHE TEXTS [shuffled]"""

import sys
from pathlib import Path

import pytorch_lightning as lightning
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn, optim, tensor, utils

import advl_pipeline as advl

cache, file, *options = sys.argv[1:]
texts = sorted(set(Path(file).read_text(encoding="utf-8").splitlines()))
tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
tokenizer.enable_padding()


class Student(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True)
        self.embedding = nn.Embedding(tokenizer.get_vocab_size(), 48)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(48, 2)
        self.layer = advl.LayerStates(self, "encoder.layers.1")
        self.distil = advl.RelationalDistillation([cache], texts, shuffle_teachers=bool(options))

    def forward(self, batch):
        encoded = tokenizer.encode_batch(batch)
        ids = tensor([encoding.ids for encoding in encoded], device=self.device)
        return self.head(self.encoder(self.embedding(ids)).mean(1)), encoded

    def states(self, batch, encoded):
        offsets = tensor([encoding.offsets for encoding in encoded])
        return advl.HiddenStates(texts=batch, states_NLH=self.layer.states, offsets_NL2=offsets)

    def training_step(self, batch, _):
        logits, encoded = self(batch)
        labels = tensor([len(text) % 2 for text in batch], device=self.device)
        loss = nn.functional.cross_entropy(logits, labels) + self.distil(self.states(batch, encoded)).total
        print(f"step {self.global_step}: loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=3e-3)

    def readout(self):
        _, encoded = self.train()(texts[:256])
        return self.distil.readout([self.states(texts[:256], encoded)])


lightning.seed_everything(0)
student = Student()
print("before:", student.readout())
batches: utils.data.DataLoader[str] = utils.data.DataLoader(texts, 32, shuffle=True, collate_fn=list)
lightning.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False).fit(student, batches)
print("after:", student.readout())
