"""Repositories of the hub as they are published: files, configuration keys, names of parameters, kinds of tokenizers.

Only their widths are tiny and their weights random. `PUBLISHED` makes the files of each repository by its name.
Names of parameters are those that the libraries write; what older ones wrote is put back where they did.
"""

from __future__ import annotations

import functools
import io
import json
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load, save
from timm import create_model
from tiny_extraction import tree_bytes
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

Files = dict[str, bytes]
State = dict[str, torch.Tensor]

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}

CORPUS = [
    "Which colour has picture 3? red green blue yellow white dark.",
    "The picture is red, isn't it? A dog runs over the green field near the left tree, holding an umbrella!",
    "Why is person_1 pointing at the wine glass? Because it's half empty, and nobody is watching the café's door.",
] * 4


def as_json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode()


def page(name: str, *others: str) -> Files:
    """Return what a repository has beside a model that is read: a page, and weights for other programs."""
    return {"README.md": f"# {name}\n".encode(), ".gitattributes": b"*.bin filter=lfs\n"} | dict.fromkeys(
        others, b"x"
    )


def saved(model_class: Any, config: Any) -> tuple[Files, State]:
    """Return the files of a random model but for its weights, and these by the names that its library publishes."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for name, value in model.named_parameters():
            # As a trained one: what begins at 0 or 1 would hide that it was not read.
            if value.ndim < 2 and "scale" not in name:
                value += 0.1 * torch.randn_like(value)
        model.save_pretrained(folder)
        files = tree_bytes(Path(folder))
    return files, load(files.pop("model.safetensors"))


def weights(state: State) -> Files:
    return {"model.safetensors": save({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})}


def pickled(state: State) -> Files:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return {"pytorch_model.bin": buffer.getvalue()}


def shards(state: State) -> Files:
    """Return weights in two shards with their index."""
    names = sorted(state)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = {f"model-0000{place}-of-00002.safetensors": part for place, part in enumerate(parts, start=1)}
    index = {
        "metadata": {"total_size": 0},
        "weight_map": {name: file for file, part in files.items() for name in part},
    }
    return {
        file: weights({name: state[name] for name in part})["model.safetensors"] for file, part in files.items()
    } | {"model.safetensors.index.json": as_json(index)}


def described(files: Files, config: Mapping[str, Any], *, without: Iterable[str] = ("dtype",)) -> Files:
    """Return config.json with the keys of its time in place of those of the installed library."""
    now = {key: value for key, value in json.loads(files["config.json"]).items() if key not in without}
    return {"config.json": as_json({**now, "torch_dtype": "float32", **config})}


# Tokenizers. Training is not the same twice, so that each is made once.


def byte_level(vocabulary: int = 420) -> tuple[dict[str, int], list[str]]:
    """Return vocabulary and merges of byte-level BPE, special tokens of RoBERTa first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        ),
    )
    learned = json.loads(core.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"]]
    return learned["vocab"], merges


def merges_file(merges: list[str]) -> bytes:
    return ("#version: 0.2\n" + "\n".join(merges) + "\n").encode()


def fast(core: Tokenizer) -> Files:
    return {"tokenizer.json": core.to_str(pretty=True).encode()}


@functools.cache
def roberta_tokenizer() -> Files:
    vocabulary, merges = byte_level()
    vocabulary["<mask>"] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair.split()) for pair in merges]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    core.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)])
    return fast(core) | {
        "vocab.json": as_json(vocabulary),
        "merges.txt": merges_file(merges),
        "tokenizer_config.json": as_json({"model_max_length": 512}),
    }


@functools.cache
def modernbert_tokenizer() -> Files:
    vocabulary, merges = byte_level()
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(pair.split()) for pair in merges]))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    core.add_special_tokens([AddedToken(name, special=True) for name in names])
    frame = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    roles = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), names, strict=True))
    settings = {"clean_up_tokenization_spaces": True, "model_input_names": ["input_ids", "attention_mask"]}
    settings |= {"model_max_length": 8192, "tokenizer_class": "PreTrainedTokenizerFast"}
    return fast(core) | {
        "tokenizer_config.json": as_json(roles | settings),
        "special_tokens_map.json": as_json(roles),
    }


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
    pattern = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    core = Tokenizer(
        models.BPE(unk_token="<|endoftext|>", continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False)
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [text.lower() for text in CORPUS],
        trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learned = json.loads(core.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for letter in alphabet:
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split()) for pair in learned["merges"]]
    start, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": start, "<|endoftext|>": end}
    core.model = models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token="<|endoftext|>",
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
    )
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
        "merges.txt": merges_file([" ".join(pair) for pair in merges]),
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
    settings = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "tokenizer_class": "GemmaTokenizer",
    }
    settings |= {"add_bos_token": "<bos>" in frame, "add_eos_token": "<eos>" in frame, "sp_model_kwargs": {}}
    return fast(core) | {
        "tokenizer_config.json": as_json(roles | settings | {"padding_side": "right"}),
        "special_tokens_map.json": as_json(roles),
    }


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
    """Return a file as SentencePiece writes it: a protocol buffer, of its sentencepiece_model.proto."""

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
    settings = {**roles, "extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    return fast(core) | {
        "spiece.model": sentencepiece_model(pieces, unknown="<unk>", control=("<pad>", "</s>")),
        "tokenizer_config.json": as_json(settings),
        "special_tokens_map.json": as_json(roles),
    }


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
    settings = {**roles, "model_max_length": 512, "tokenizer_class": "XLMRobertaTokenizer"}
    return fast(core) | {
        "sentencepiece.bpe.model": sentencepiece_model(pieces[1:], unknown="<unk>", control=("<pad>", "</s>")),
        "tokenizer_config.json": as_json(settings),
        "special_tokens_map.json": as_json(roles),
    }


@functools.cache
def deberta_tokenizer() -> Files:
    pieces = unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[UNK]")
    return {
        "spm.model": sentencepiece_model(pieces, unknown="[UNK]", control=("[PAD]", "[CLS]", "[SEP]")),
        "tokenizer_config.json": as_json({"do_lower_case": False, "vocab_type": "spm"}),
    }


def vocabulary_size(tokenizer: Files) -> int:
    return int(Tokenizer.from_str(tokenizer["tokenizer.json"].decode()).get_vocab_size())


# Models of transformers


def roberta(name: str) -> Files:
    tokenizer = roberta_tokenizer()
    config = hf.RobertaConfig(
        vocab_size=vocabulary_size(tokenizer),
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **SMALL,
    )
    files, state = saved(hf.RobertaForMaskedLM, config)
    state["roberta.embeddings.position_ids"] = torch.arange(514)[None]
    old = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    others = page(name, "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "dict.txt", "onnx/model.onnx")
    return described(files, old) | tokenizer | weights(state) | pickled(state) | others


def bert_state(state: State) -> State:
    """Return weights as the first library wrote them: gamma and beta."""
    state = {re.sub(r"(LayerNorm\.)weight$", r"\1gamma", name): value for name, value in state.items()}
    return {re.sub(r"(LayerNorm\.)bias$", r"\1beta", name): value for name, value in state.items()}


def bert(name: str, *, tokenizer: Files | None = None, form: Callable[[State], Files] = weights) -> Files:
    tokenizer = tokenizer or wordpiece_tokenizer()
    config = hf.BertConfig(vocab_size=tokenizer["vocab.txt"].count(b"\n"), max_position_embeddings=512, **SMALL)
    files, state = saved(hf.BertForPreTraining, config)
    old = {"architectures": ["BertForMaskedLM"], "position_embedding_type": "absolute", "use_cache": True}
    return described(files, old) | tokenizer | form(bert_state(state)) | page(name, "tf_model.h5", "rust_model.ot")


def clip(name: str) -> Files:
    tokenizer = clip_tokenizer()
    size = vocabulary_size(tokenizer)
    words = {**SMALL, "vocab_size": size, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    words |= {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    eyes = {**SMALL, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 24}
    files, state = saved(
        hf.CLIPModel,
        hf.CLIPConfig(text_config={**words, "projection_dim": 24}, vision_config=eyes, projection_dim=24),
    )
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    # Keys of generation that every configuration held, twice where the defaults were overridden.
    generation = {"length_penalty": 1.0, "num_beams": 1, "top_k": 50, "torchscript": False, "torch_dtype": None}
    old = {"logit_scale_init_value": 2.6592, "projection_dim": 24, "transformers_version": None}
    old |= {"text_config": {**generation, "model_type": "clip_text_model", **words, "projection_dim": 24}}
    # The id that the published one has: the text's end is then the largest id.
    old["text_config"]["eos_token_id"] = 2
    old |= {"vision_config": {**generation, "model_type": "clip_vision_model", **eyes}}
    old |= {"text_config_dict": {**SMALL, "vocab_size": size, "projection_dim": 24}}
    old |= {"vision_config_dict": {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 24}}
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    pictures = {"crop_size": 32, "size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    pictures |= {"feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, **colours}
    files = described(files, old) | {"preprocessor_config.json": as_json(pictures)}
    return files | tokenizer | weights(state) | pickled(state) | page(name, "tf_model.h5", "flax_model.msgpack")


def metaclip2(name: str) -> Files:
    tokenizer = xlm_roberta_tokenizer()
    words = {**SMALL, "vocab_size": vocabulary_size(tokenizer), "max_position_embeddings": 77, "projection_dim": 24}
    words |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    eyes = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    files, state = saved(
        hf.MetaClip2Model, hf.MetaClip2Config(text_config=words, vision_config=eyes, projection_dim=24)
    )
    colours = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    pictures = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}, "resample": 3, **colours}
    pictures |= {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"}
    files |= tokenizer | weights(state) | page(name)
    return files | {"preprocessor_config.json": as_json({"do_center_crop": True, "do_resize": True, **pictures})}


def multilingual_e5() -> Files:
    tokenizer = xlm_roberta_tokenizer()
    size = vocabulary_size(tokenizer)
    config = hf.XLMRobertaConfig(vocab_size=size, max_position_embeddings=514, type_vocab_size=1, **SMALL)
    files, state = saved(hf.XLMRobertaModel, config)
    return files | tokenizer | weights(state)


def siglip2(name: str) -> Files:
    tokenizer = gemma_tokenizer(frame="$A <eos>", max_length=64)
    words = {**SMALL, "vocab_size": vocabulary_size(tokenizer), "projection_size": 32}
    eyes = {**SMALL, "image_size": 32, "patch_size": 8}
    files, state = saved(hf.SiglipModel, hf.SiglipConfig(text_config=words, vision_config=eyes))
    old = {"text_config": {"model_type": "siglip_text_model", **words}, "initializer_factor": 1.0}
    old |= {"vision_config": {"model_type": "siglip_vision_model", **eyes}}
    pictures = {"do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True}
    pictures |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    pictures |= {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "resample": 2}
    pictures["rescale_factor"] = 1 / 255
    files = described(files, old) | {"preprocessor_config.json": as_json(pictures)}
    return files | tokenizer | weights(state) | page(name)


def dinov2(name: str) -> Files:
    config = hf.Dinov2Config(image_size=70, patch_size=14, mlp_ratio=2, **{**SMALL, "intermediate_size": None})
    files, state = saved(hf.Dinov2Model, config)
    old = {"apply_layernorm": True, "reshape_hidden_states": True, "use_swiglu_ffn": False}
    pictures = {"crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "do_convert_rgb": True}
    pictures |= {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 1 / 255}
    pictures |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    pictures |= {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 64}}
    files = described(files, old) | {"preprocessor_config.json": as_json(pictures)}
    return files | weights(state) | pickled(state) | page(name)


def deberta(name: str) -> Files:
    tokenizer = deberta_tokenizer()
    config = hf.DebertaV2Config(
        vocab_size=200,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        layer_norm_eps=1e-7,
        max_relative_positions=-1,
        position_biased_input=False,
        type_vocab_size=0,
        **SMALL,
    )
    files, state = saved(hf.DebertaV2ForMaskedLM, config)
    state = {name.replace("cls.predictions.", "lm_predictions.lm_head."): value for name, value in state.items()}
    old = {"pos_att_type": "p2c|c2p", "pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 32}
    others = page(name, "tf_model.h5", "generator_config.json") | {"pytorch_model.generator.bin": b"x"}
    return described(files, old, without=("dtype", "architectures")) | tokenizer | pickled(state) | others


def t5(name: str) -> Files:
    tokenizer = t5_tokenizer()
    config = hf.T5Config(
        vocab_size=vocabulary_size(tokenizer) + 28, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2
    )
    files, state = saved(hf.T5ForConditionalGeneration, config)
    old = {"n_positions": 512, "task_specific_params": {"summarization": {"prefix": "summarize: "}}}
    kept = {"generation_config.json": files["generation_config.json"]}
    return described(files, old) | kept | tokenizer | weights(state) | page(name, "tf_model.h5", "spiece.vocab")


def modernbert(name: str) -> Files:
    tokenizer = modernbert_tokenizer()
    size = vocabulary_size(tokenizer)
    ids = {"pad_token_id": size - 2, "cls_token_id": size - 4, "sep_token_id": size - 3}
    config = hf.ModernBertConfig(
        vocab_size=size + 7,
        global_attn_every_n_layers=2,
        local_attention=8,
        max_position_embeddings=8192,
        **SMALL,
        **ids,
    )
    files, state = saved(hf.ModernBertForMaskedLM, config)
    old = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "model_type": "modernbert"}
    others = page(name, "onnx/model.onnx")
    return (
        described(files, old, without=("dtype", "rope_parameters", "layer_types"))
        | tokenizer
        | weights(state)
        | others
    )


# Models of timm

NARROW: dict[str, dict[str, Any]] = {
    "vit_base_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_small_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_large_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_huge_plus_patch16_dinov3": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_base_patch16_dinov3_qkvb": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_large_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "swin_large_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "vit_large_patch16_radio_v3": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_so400m_patch16_radio_v4": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_pe_core_large_patch14_336": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_pe_spatial_large_patch14_448": {"embed_dim": 32, "depth": 2, "num_heads": 2},
    "vit_large_patch14_reg1_tipsv2": {"embed_dim": 32, "depth": 2, "num_heads": 2},
}
"""Settings that make an architecture of timm narrow; everything else is as its name says."""


def narrow_models(create: Callable[..., Any]) -> Callable[..., Any]:
    """Return timm's way to make a model, of the same architectures but narrow."""

    def create_narrow(name: str, **settings: Any) -> Any:
        return create(name, **settings, **NARROW.get(name.partition(".")[0], {}))

    return create_narrow


def of_timm(architecture: str, name: str) -> Files:
    torch.manual_seed(0)
    model = narrow_models(create_model)(architecture, pretrained=False)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim < 2:
                value += 0.1 * torch.randn_like(value)
    state = dict(model.state_dict())
    known = {
        key: value
        for key, value in model.pretrained_cfg.items()
        if isinstance(value, str | int | float | list | tuple)
    }
    config = {
        "architecture": architecture.partition(".")[0],
        "num_classes": model.num_classes,
        "pretrained_cfg": known,
    }
    return {"config.json": as_json(config)} | weights(state) | pickled(state) | page(name)


PUBLISHED: dict[str, Callable[[str], Files]] = {
    "openai/clip-vit-base-patch16": clip,
    "openai/clip-vit-large-patch14": clip,
    "openai/clip-vit-large-patch14-336": clip,
    "facebook/metaclip-2-worldwide-l14": metaclip2,
    "google/siglip2-base-patch16-224": siglip2,
    "google/siglip2-so400m-patch14-384": siglip2,
    "facebook/dinov2-base": dinov2,
    "facebook/dinov2-large": dinov2,
    "FacebookAI/roberta-base": roberta,
    "FacebookAI/roberta-large": roberta,
    "google-bert/bert-large-uncased": bert,
    "microsoft/deberta-v3-large": deberta,
    "google-t5/t5-large": t5,
    "answerdotai/ModernBERT-base": modernbert,
    **{
        f"timm/{architecture}": functools.partial(of_timm, architecture)
        for architecture in (
            "vit_base_patch16_dinov3.lvd1689m",
            "vit_large_patch16_224.augreg_in21k_ft_in1k",
            "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
            "convnext_base.fb_in22k_ft_in1k",
            "vit_small_patch16_dinov3.lvd1689m",
            "vit_large_patch16_dinov3.lvd1689m",
            "vit_huge_plus_patch16_dinov3.lvd1689m",
            "convnext_base.dinov3_lvd1689m",
            "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m",
            "vit_large_patch16_radio_v3.c_radio",
            "vit_so400m_patch16_radio_v4.c_radio",
            "vit_pe_core_large_patch14_336.fb",
            "vit_pe_spatial_large_patch14_448.fb",
            "vit_large_patch14_reg1_tipsv2.webli",
        )
    },
}
"""Repositories of the teachers by name -> what makes their files."""


@functools.cache
def files_of(name: str) -> Files:
    """Return the files of a published repository; they are made once."""
    return PUBLISHED[name](name)
