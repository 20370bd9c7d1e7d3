"""Tokenizers as published in hub repositories: their files, by the kinds that encoders use.

Training a tokenizer is not deterministic, so each is created once.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

Files = dict[str, bytes]

CORPUS = [
    "Which colour has picture 3? red green blue yellow white dark.",
    "The picture is red, isn't it? A dog runs over the green field near the left tree, holding an umbrella!",
    "Why is person_1 pointing at the wine glass? Because it's half empty, and nobody is watching the café's door.",
] * 4


def as_json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode()


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
"""Characters that represent bytes."""


def merges_of(*words: str, end: str = "") -> list[tuple[str, str]]:
    """Return BPE merges that build some words letter by letter, each with an end-of-word mark."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left, *others = [*word[:-1], word[-1] + end]
        for letter in others:
            merges[left, letter] = None
            left += letter
    return list(merges)


def byte_level() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of byte-level BPE, RoBERTa's special tokens first."""
    merges = merges_of("\u0120the", "\u0120red", "\u0120picture", "\u0120dog", "Which")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS, *("".join(pair) for pair in merges)]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def byte_core(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], marks: Iterable[str | AddedToken]
) -> Tokenizer:
    """Return a byte-level BPE tokenizer with special tokens."""
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(marks))
    return core


def merges_file(merges: list[tuple[str, str]]) -> bytes:
    return "\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode()


def fast(core: Tokenizer) -> Files:
    return {"tokenizer.json": core.to_str(pretty=True).encode()}


def configured(core: Tokenizer, roles: Mapping[str, Any], **settings: Any) -> Files:
    """Return a tokenizer's files with its settings and the roles of its special tokens."""
    described = {"tokenizer_config.json": {**roles, **settings}, "special_tokens_map.json": roles}
    return fast(core) | {name: as_json(content) for name, content in described.items()}


@functools.cache
def roberta_tokenizer() -> Files:
    vocabulary, merges = byte_level()
    vocabulary["<mask>"] = len(vocabulary)
    mask = AddedToken("<mask>", lstrip=True, special=True)
    core = byte_core(vocabulary, merges, ["<s>", "<pad>", "</s>", "<unk>", mask])
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return fast(core) | {
        "vocab.json": as_json(vocabulary),
        "merges.txt": merges_file(merges),
        "tokenizer_config.json": as_json({"model_max_length": 512}),
    }


@functools.cache
def modernbert_tokenizer() -> Files:
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    core = byte_core(*byte_level(), names)
    core.normalizer = normalizers.NFC()
    frame = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    roles = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), names, strict=True))
    kind, inputs = "PreTrainedTokenizerFast", ["input_ids", "attention_mask"]
    return configured(core, roles, model_input_names=inputs, model_max_length=8192, tokenizer_class=kind)


@functools.cache
def wordpiece_tokenizer(*, has_json: bool = True) -> Files:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names, show_progress=False)
    )
    frame = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    vocabulary = sorted(core.get_vocab().items(), key=lambda entry: entry[1])
    files = {
        "vocab.txt": "".join(f"{token}\n" for token, _ in vocabulary).encode(),
        "tokenizer_config.json": as_json({"do_lower_case": True, "model_max_length": 512}),
    }
    return files | (fast(core) if has_json else {})


@functools.cache
def clip_tokenizer() -> Files:
    merges = merges_of("the", "red", "picture", "dog", "which", end="</w>")
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    start, end = len(pieces) - 2, len(pieces) - 1
    marks = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<|endoftext|>", fuse_unk=False, **marks))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    words = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", end), ("<|startoftext|>", start), trim_offsets=False, add_prefix_space=False
    )
    core.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    roles = {
        "unk_token": {"content": "<|endoftext|>", **flags},
        "bos_token": {"content": "<|startoftext|>", **flags},
        "eos_token": {"content": "<|endoftext|>", **flags},
        "pad_token": "<|endoftext|>",
    }
    typed = {
        role: {**token, "__type": "AddedToken"} if isinstance(token, dict) else token for role, token in roles.items()
    }
    settings = {"add_prefix_space": False, "errors": "replace", "do_lower_case": True, "model_max_length": 77}
    settings |= {"special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer"}
    return fast(core) | {
        "vocab.json": as_json(vocabulary),
        "merges.txt": merges_file(merges),
        "tokenizer_config.json": as_json({**typed, "name_or_path": "openai/clip-vit-base-patch32", **settings}),
        "special_tokens_map.json": as_json(roles),
    }


@functools.cache
def gemma_tokenizer(*, frame: str, max_length: int) -> Files:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*names, *(f"<0x{number:02X}>" for number in range(256)), "\u2581"]
    words += sorted({letter for text in CORPUS for letter in text if letter != " "})
    words += ["th", "the", "\u2581the", "re", "red"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("r", "e"), ("re", "d")]
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [(name, vocabulary[name]) for name in ("<bos>", "<eos>") if name in frame]
    core.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    roles = {f"{name[1:-1]}_token": name for name in names}
    adds = {"add_bos_token": "<bos>" in frame, "add_eos_token": "<eos>" in frame}
    kind = {"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}
    return configured(core, roles, clean_up_tokenization_spaces=False, model_max_length=max_length, **adds, **kind)


siglip_tokenizer = functools.partial(gemma_tokenizer, frame="$A <eos>", max_length=64)


def unigram(special: list[str], unknown: str) -> list[tuple[str, float]]:
    """Return pieces and scores, special tokens first."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token=unknown, show_progress=False),
    )
    return [(piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"]]


def sentencepiece_model(pieces: list[tuple[str, float]], *, unknown: str, control: Iterable[str]) -> bytes:
    """Return a SentencePiece model file: a protocol buffer as defined in sentencepiece_model.proto."""

    def number(field: int, value: int) -> bytes:
        return _varint(field << 3) + _varint(value)

    def text(field: int, value: bytes) -> bytes:
        return _varint(field << 3 | 2) + _varint(len(value)) + value

    content = b""
    for piece, score in pieces:
        kind = 2 if piece == unknown else 3 if piece in control else 1
        content += text(1, text(1, piece.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))
    unknown_id = [piece for piece, _ in pieces].index(unknown)
    content += text(2, number(3, 1) + number(40, unknown_id) + text(45, unknown.encode()))
    return content + text(3, text(1, b"nmt_nfkc") + number(3, 1))


def _varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


@functools.cache
def t5_tokenizer() -> Files:
    pieces = unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    core = Tokenizer(models.Unigram(pieces, unk_id=2))
    core.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    extra = [f"<extra_id_{number}>" for number in range(100)]
    core.add_special_tokens(["</s>", "<unk>", "<pad>", *extra])
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    roles: dict[str, Any] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    roles["additional_special_tokens"] = extra
    model = sentencepiece_model(pieces, unknown="<unk>", control=("<pad>", "</s>"))
    settings = {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    return configured(core, roles, **settings) | {"spiece.model": model}


@functools.cache
def xlm_roberta_tokenizer() -> Files:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = unigram(special, "<unk>")
    core = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    core.add_special_tokens([*special, AddedToken("<mask>", lstrip=True, special=True)])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    roles = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    roles |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    model = sentencepiece_model(pieces[1:], unknown="<unk>", control=("<pad>", "</s>"))
    settings = {"model_max_length": 512, "tokenizer_class": "XLMRobertaTokenizer"}
    return configured(core, roles, **settings) | {"sentencepiece.bpe.model": model}


@functools.cache
def deberta_tokenizer() -> Files:
    pieces = unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[UNK]")
    return {
        "spm.model": sentencepiece_model(pieces, unknown="[UNK]", control=("[PAD]", "[CLS]", "[SEP]")),
        "tokenizer_config.json": as_json({"do_lower_case": False, "vocab_type": "spm"}),
    }


def vocabulary_size(tokenizer: Files) -> int:
    return int(Tokenizer.from_str(tokenizer["tokenizer.json"].decode()).get_vocab_size())


KINDS: Mapping[str, tuple[Callable[[], Files], Mapping[str, str]]] = {
    "wordpiece": (
        wordpiece_tokenizer,
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    ),
    "bytes": (roberta_tokenizer, {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}),
    "unigram": (t5_tokenizer, {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}),
    "clip": (clip_tokenizer, {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<|endoftext|>"}),
}
"""Kind of tokenizer -> its files, and the roles of its special tokens."""


def save_tokenizer(kind: str, folder: Path) -> Any:
    """Save a tokenizer of a kind to a folder with its library; returns the tokenizer."""
    make, roles = KINDS[kind]
    core = Tokenizer.from_buffer(make()["tokenizer.json"])
    named = {f"{role}_token": token for role, token in roles.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=1_000_000, **named)
    tokenizer.save_pretrained(folder)
    return tokenizer
