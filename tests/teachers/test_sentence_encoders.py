"""Sentence encoders, as sentence-transformers saves them today and did before, give its embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from closeness import assert_near
from fake_hub.models import PUBLISHED
from fake_hub.server import Hub, served_models
from fake_hub.teachers import SMALL, bert, modernbert, pickled, published, saved, weights
from fake_hub.tokenizers import Files, as_json, fast, gemma_tokenizer, modernbert_tokenizer, vocabulary_size
from safetensors.torch import load
from tiny_extraction import tree_bytes
from tokenizers import Tokenizer, normalizers

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import text_unit
from advl_pipeline.teachers.interface import TextTower
from advl_pipeline.teachers.registry import CATALOGUE, open_teacher

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

TEXTS = ["Which colour has picture 3? red", "A dog runs.", "the café's door"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with served_models(tmp_path / "hub", monkeypatch) as served:
        yield served


def qwen3() -> Files:
    tokenizer = modernbert_tokenizer()
    size = vocabulary_size(tokenizer)
    config = hf.Qwen3Config(vocab_size=size, head_dim=16, num_key_value_heads=1, max_position_embeddings=256, **SMALL)
    files, state = saved(hf.Qwen3Model, config)
    return files | tokenizer | weights({name: value.bfloat16() for name, value in state.items()})


def gemma3() -> Files:
    tokenizer = gemma_tokenizer(frame="<bos> $A <eos>", max_length=256)
    config = hf.Gemma3TextConfig(
        vocab_size=vocabulary_size(tokenizer),
        head_dim=16,
        num_key_value_heads=1,
        max_position_embeddings=256,
        sliding_window=8,
        use_bidirectional_attention=True,
        **SMALL,
    )
    files, state = saved(hf.Gemma3TextModel, config)
    return files | tokenizer | weights(state)


def encoder(folder: Path, base: Files, stages: str, **settings: Any) -> tuple[Any, Files]:
    """Return a sentence encoder of the library, and the files that it saves.

    Args:
        stages: names of what follows the network: a pooling, "dense" and "normalize"; before them "lower-case" for a
            network that reads lower-cased texts.
    """
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    (folder / "base").mkdir(parents=True)
    for name, content in base.items():
        if "/" not in name:
            (folder / "base" / name).write_bytes(content)
    torch.manual_seed(0)
    first, *others = stages.split()
    lowers = first == "lower-case"
    modules: list[Any] = [Transformer(str(folder / "base"), max_seq_length=128, do_lower_case=lowers)]
    width = 32
    for stage in others if lowers else (first, *others):
        if stage == "dense":
            modules.append(Dense(width, 80 - width, bias=False, activation_function=torch.nn.Identity()))
            width = 80 - width
        else:
            modules.append(Normalize() if stage == "normalize" else Pooling(width, pooling_mode=stage))
    made = library.SentenceTransformer(modules=modules, device="cpu", **settings)
    made.save(str(folder / "saved"))
    return made, tree_bytes(folder / "saved")


def as_before_5_4(files: Files) -> Files:
    """Return files with the keys and names of types that the library wrote until 5.3."""
    pooling = json.loads(files["1_Pooling/config.json"])
    flags = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    name = {"cls": "cls_token", "mean": "mean_tokens"}.get(pooling["pooling_mode"], pooling["pooling_mode"])
    flags[f"pooling_mode_{name}"] = True
    modules = json.loads(files["modules.json"])
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    return files | {
        "1_Pooling/config.json": as_json({"word_embedding_dimension": 32, **flags}),
        "modules.json": as_json(modules),
        "sentence_bert_config.json": as_json({"max_seq_length": 128, "do_lower_case": False}),
    }


def cased_tokenizer() -> Files:
    core = Tokenizer.from_buffer(bert("x")["tokenizer.json"])
    core.normalizer = normalizers.BertNormalizer(lowercase=False)
    return fast(core) | {"tokenizer_config.json": as_json({"do_lower_case": False, "model_max_length": 512})}


def as_published_in_2020(files: Files) -> Files:
    """Return files whose tokenizer preserves case, which a setting beside it changes."""
    settings = {"max_seq_length": 128, "do_lower_case": True}
    kept = as_before_5_4(files) | cased_tokenizer() | {"sentence_distilbert_config.json": as_json(settings)}
    return {name: content for name, content in kept.items() if name != "sentence_bert_config.json"}


def with_an_older_layer(files: Files) -> Files:
    """Return files whose dense layer alone is in the older format."""
    kept = {name: content for name, content in files.items() if name != "2_Dense/model.safetensors"}
    layer = pickled(load(files["2_Dense/model.safetensors"]))
    return kept | {f"2_Dense/{name}": content for name, content in layer.items()}


PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}

KINDS: dict[str, tuple[Callable[[], Files], str, Mapping[str, Any], Callable[[Files], Files]]] = {
    "mean": (lambda: bert("x"), "mean normalize", {}, dict),
    "first token": (lambda: bert("x"), "cls normalize", {}, dict),
    "mean, older": (lambda: bert("x"), "mean", {}, as_before_5_4),
    "another width": (lambda: bert("x"), "mean dense", {}, dict),
    "a layer in the older format": (lambda: bert("x"), "mean dense", {}, with_an_older_layer),
    "lower-cased": (lambda: bert("x") | cased_tokenizer(), "lower-case mean", {}, as_published_in_2020),
    "a prompt of all": (
        lambda: bert("x"),
        "mean normalize",
        {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"},
        dict,
    ),
}
NAMED: dict[str, tuple[Callable[[], Files], str, Mapping[str, Any], Callable[[Files], Files]]] = {
    "bge-l": (lambda: bert("x"), "cls normalize", {}, as_before_5_4),
    "qwen3-embedding": (
        qwen3,
        "lasttoken normalize",
        {"prompts": {"query": "Instruct: find\nQuery:"}},
        as_before_5_4,
    ),
    "embeddinggemma": (gemma3, "mean dense dense normalize", {"prompts": PROMPTS}, dict),
    "multilingual-e5-l": (lambda: published("multilingual_e5", "x"), "mean normalize", {}, as_before_5_4),
    "gte-modernbert": (lambda: modernbert("x"), "cls", {}, as_before_5_4),
}
"""Sentence encoders by name, in the form in which they are published."""


def opened(name: str = "hf:lab/net", **settings: Any) -> TextTower:
    tower = open_teacher(name, **settings).text
    assert tower is not None
    return tower


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [*KINDS, *NAMED])
def test_embeddings_are_those_of_the_library(
    kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, stages, settings, written = (KINDS | NAMED)[kind]
    made, files = encoder(tmp_path, base(), stages, **settings)
    card = CATALOGUE.get(kind)
    name = kind if card else "hf:lab/net"
    hub.repositories[f"models/{card.source_id if card else 'lab/net'}"] = written(files)
    prompts = settings.get("prompts", {})
    prompt = settings.get("default_prompt_name") or ("document" if "document" in prompts else None)
    before = card.prompt if card else ""
    expected = made.encode([before + text for text in TEXTS], prompt_name=prompt, convert_to_tensor=True)
    tower = opened(name)
    prepared = tower.prepare([text_unit(text) for text in TEXTS])
    encoded = tower.encode(prepared)
    assert tower.global_dim == expected.shape[1]
    assert_near(encoded.global_ND, expected, dtype=torch.bfloat16 if "qwen" in kind else None)
    # Tokens are those of the text, each with its characters.
    assert [rows.shape for rows in encoded.token_values] == [(unit.num_tokens, 32) for unit in prepared]
    for text, unit in zip(TEXTS, prepared, strict=True):
        covered = {place for start, end in unit.char_spans_M2.tolist() for place in range(start, end)}
        assert {place for place, letter in enumerate(text) if not letter.isspace()} == covered - {
            place for place, letter in enumerate(text) if letter.isspace()
        }
    assert ("prompt" in tower.describe()["tokenizer"]) == bool(prompt or before)
    control = opened(f"random:{name}")
    assert control.describe()["parameters"] != tower.describe()["parameters"]
    assert control.describe()["tokenizer"] == tower.describe()["tokenizer"]
    assert control.global_dim == tower.global_dim
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert opened(name).describe() == tower.describe()


def test_every_teacher_by_name_is_opened_from_its_published_layout() -> None:
    assert {name for name, card in CATALOGUE.items() if card.repository not in PUBLISHED} == set(NAMED)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_prompt_leaves_room_in_each_window(hub: Hub, tmp_path: Path) -> None:
    _, hub.repositories["models/lab/net"] = encoder(tmp_path, gemma3(), "mean", prompts=PROMPTS)
    tower = opened()
    text = " ".join(TEXTS * 6)
    (prepared,) = tower.prepare([text_unit(text)])
    assert prepared.num_tokens > 128
    encoded = tower.encode([prepared])
    assert encoded.token_values[0].shape == (prepared.num_tokens, 32)
    assert torch.isfinite(encoded.global_ND).all()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_not_made_here_is_refused(hub: Hub, tmp_path: Path) -> None:
    _, files = encoder(tmp_path, bert("x"), "mean dense", prompts=PROMPTS)
    pooling, dense = (json.loads(files[f"{name}/config.json"]) for name in ("1_Pooling", "2_Dense"))
    modules = json.loads(files["modules.json"])
    cases = {
        "max; supported are": {"1_Pooling/config.json": {**pooling, "pooling_mode": "max"}},
        "mean, cls; supported": {"1_Pooling/config.json": {**pooling, "pooling_mode": ["mean", "cls"]}},
        "no pooling": {"1_Pooling/config.json": {"word_embedding_dimension": 32}},
        "leaves out the prompt": {"1_Pooling/config.json": {**pooling, "include_prompt": False}},
        "activation os.system": {"2_Dense/config.json": {**dense, "activation_function": "os.system"}},
        "LSTM": {"modules.json": [*modules[:2], {**modules[2], "type": "sentence_transformers.models.LSTM"}]},
    }
    for why, changes in cases.items():
        hub.repositories["models/lab/net"] = files | {name: as_json(content) for name, content in changes.items()}
        with pytest.raises(ConfigError, match="not supported") as refused:
            opened()
        assert why in refused.value.why
