"""Repositories of the hub as they are published: files, configuration keys, names of parameters.

Only their widths are tiny and their weights random. `PUBLISHED` makes the files of each repository by its name.
Names of parameters are those that the libraries write; what older ones wrote is put back where they did.
"""

from __future__ import annotations

import functools
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from hub_tokenizers import (
    Files,
    as_json,
    clip_tokenizer,
    deberta_tokenizer,
    gemma_tokenizer,
    modernbert_tokenizer,
    roberta_tokenizer,
    t5_tokenizer,
    vocabulary_size,
    wordpiece_tokenizer,
    xlm_roberta_tokenizer,
)
from safetensors.torch import load, save
from timm import create_model
from tiny_extraction import tree_bytes

State = dict[str, torch.Tensor]

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


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
    **{
        f"vit_{name}": {"embed_dim": 32, "depth": 2, "num_heads": 2}
        for name in (
            "base_patch16_dinov3 small_patch16_dinov3 large_patch16_dinov3 huge_plus_patch16_dinov3 "
            "base_patch16_dinov3_qkvb large_patch16_224 large_patch16_radio_v3 so400m_patch16_radio_v4 "
            "pe_core_large_patch14_336 pe_spatial_large_patch14_448 large_patch14_reg1_tipsv2"
        ).split()
    },
    "swin_large_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
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
