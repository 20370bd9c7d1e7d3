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


def build_tokenizer(kind: str, folder: Path) -> Any:
    """Train a tokenizer of a few hundred pieces and save it into `folder`."""
    specials = SPECIALS[kind]
    if kind == "wordpiece":
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials)
        names = {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        }
        frame = ("[CLS] $A [SEP]", ["[CLS]", "[SEP]"])
    elif kind == "bytes":
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        names = {
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "mask_token": "<mask>",
        }
        frame = ("<s> $A </s>", ["<s>", "</s>"])
    elif kind == "unigram":
        core = Tokenizer(models.Unigram())
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>")
        names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
        frame = ("$A </s>", ["</s>"])
    else:
        core = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
        core.normalizer = normalizers.Lowercase()
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, end_of_word_suffix="</w>")
        names = {"pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
        frame = ("<|startoftext|> $A <|endoftext|>", specials)
    core.train_from_iterator(TEXTS, trainer)
    template, used = frame
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, core.token_to_id(token)) for token in used]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=1_000_000, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer
