"""Plain PyTorch, with landmarks and an anchor: python examples/loop_pytorch.py CACHE TEXTS [shuffled]"""

import copy
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import manual_seed, nn, optim, tensor

import advl_pipeline as advl

cache, file, *options = sys.argv[1:]
texts = sorted(set(Path(file).read_text(encoding="utf-8").splitlines()))
tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.train_from_iterator(map(str.lower, texts), trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
tokenizer.enable_padding()
known_words = dict.fromkeys(sorted(tokenizer.get_vocab())[::2], 100)  # As if pretraining had taught half of them.


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(tokenizer.get_vocab_size(), 48)
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(48, 4, 96, 0.0, batch_first=True) for _ in range(2)))
        self.head = nn.Linear(48, 2)

    def forward(self, ids):
        return self.head(self.layers(self.embedding(ids)).mean(1))


def words(model, layer, texts):  # The logits of some texts, and the states of their words.
    encoded = tokenizer.encode_batch([text.lower() for text in texts])
    logits, offsets = model(tensor([row.ids for row in encoded])), tensor([row.offsets for row in encoded])
    return logits, advl.HiddenStates(texts=texts, states_NLH=layer.states, offsets_NL2=offsets)


def states(model, layer):
    return (words(model, layer, batch)[1] for batch in batches)


batches = [texts[first::8] for first in range(8)]
manual_seed(0)
student = Student()
reference = copy.deepcopy(student).requires_grad_(False)
layer, layer_at_start = advl.LayerStates(student, "layers.1"), advl.LayerStates(reference, "layers.1")
given = {"known_words": known_words, "shuffle_teachers": bool(options)}
distil = advl.RelationalDistillation([cache], texts, lambda: states(reference, layer_at_start), **given)
print("before:", distil.readout(states(student, layer)))
optimiser = optim.AdamW(student.parameters(), lr=3e-3)
for epoch in range(6):
    for batch in batches:
        logits, hidden = words(student, layer, batch)
        task = nn.functional.cross_entropy(logits, tensor([len(text) % 2 for text in batch]))
        loss = task + distil(hidden, words(reference, layer_at_start, batch)[1]).total
        optimiser.zero_grad(), loss.backward(), optimiser.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
print("after:", distil.readout(states(student, layer)))
