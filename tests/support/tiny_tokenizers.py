"""Tokenizers of a few hundred pieces, of each kind that encoders use, saved as their library saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "why is person_1 pointing at the wine glass? because it's half empty.",
    "a naive dog runs over the green field, holding an umbrella near the left tree!",
    "two people sit in a cafe and read the news; nobody is watching the café's door.",
] * 4

SPECIALS = {
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "bytes": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    "unigram": ["<pad>", "</s>", "<unk>"],
    "clip": ["<|startoftext|>", "<|endoftext|>"],
}


ROLES = {
    "wordpiece": ("pad", "unk", "cls", "sep", "mask"),
    "bytes": ("bos", "pad", "eos", "unk", "mask"),
    "unigram": ("pad", "eos", "unk"),
    "clip": ("bos", "eos"),
}
"""What the special tokens are for, in their order."""

FRAMES = {
    "wordpiece": "[CLS] $A [SEP]",
    "bytes": "<s> $A </s>",
    "unigram": "$A </s>",
    "clip": "<|startoftext|> $A <|endoftext|>",
}


def build_tokenizer(kind: str, folder: Path) -> Any:
    """Train a tokenizer of a few hundred pieces and save it into `folder`."""
    specials = {"special_tokens": SPECIALS[kind]}
    if kind == "wordpiece":
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, **specials)
    elif kind == "bytes":
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, **specials)
    elif kind == "unigram":
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **specials)
    else:
        core = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
        core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", **specials)
    core.train_from_iterator(TEXTS, trainer)
    used = [token for token in FRAMES[kind].split() if token != "$A"]
    core.post_processor = processors.TemplateProcessing(
        single=FRAMES[kind], special_tokens=[(token, core.token_to_id(token)) for token in used]
    )
    names = {f"{role}_token": token for role, token in zip(ROLES[kind], SPECIALS[kind], strict=True)}
    names.setdefault("pad_token", SPECIALS[kind][-1])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=1_000_000, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer
