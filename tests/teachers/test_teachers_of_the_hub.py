"""Every teacher by name goes from an empty cache of the hub through `advl extract`, and is opened without a network.

Repositories have the published layout, and features are those of a plain computation with transformers or timm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from closeness import assert_near
from commands import printed
from fake_hub.models import PUBLISHED, files_of
from fake_hub.server import Hub, served_models
from fake_hub.teachers import (
    LFS_POINTER,
    State,
    bert,
    clip,
    narrow_models,
    pickled,
    published,
    roberta,
    shards,
    weights,
)
from fake_hub.tokenizers import Files, as_json, fast
from own_rows import choice_row, write_json_lines
from PIL import Image
from safetensors.torch import load, load_file
from timm.data import create_transform, resolve_data_config
from tiny_extraction import tree_bytes
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.datasets.records import Candidate, Dataset, TextUnit, text_unit
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.students.tokenizer import load_text_tokenizer
from advl_pipeline.teachers.registry import CATALOGUE, TeacherCard, open_teacher
from advl_pipeline.teachers.timm_family import TimmBackbone, timm_pixel_settings
from advl_pipeline.teachers.transformers_family import TransformersVisionBackbone


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(timm, "create_model", narrow_models(timm.create_model))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with served_models(tmp_path / "hub", monkeypatch) as served:
        yield served


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [choice_row(number, split="train") for number in range(5)]
    return write_json_lines(tmp_path_factory.mktemp("mine") / "mine.jsonl", rows)


MEAN_TYPES = ("t5", "nomic_bert")
"""Types whose global feature is the mean over all tokens."""


def plain_texts(folder: Path, texts: Sequence[str]) -> list[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Return of each text the global feature, the states of its pieces, and their ids, as its publisher computes."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    kind = json.loads((folder / "config.json").read_bytes())["model_type"]
    model = (hf.T5EncoderModel if kind == "t5" else hf.AutoModel).from_pretrained(folder, dtype=torch.float32).eval()
    computed = []
    for text in texts:
        padding = {"padding": "max_length", "max_length": 64} if kind == "siglip" else {}
        read = text.lower() if kind == "siglip" else text
        words = tokenizer(read, return_tensors="pt", return_special_tokens_mask=True, **padding)
        content = words.pop("special_tokens_mask")[0] == 0
        if kind == "siglip":
            words.pop("attention_mask")
        with torch.no_grad():
            if kind in ("clip", "metaclip_2", "siglip"):
                states = model.get_text_features(**words)
                project = model.text_model.head if kind == "siglip" else model.text_projection
                global_D, states_MD = states.pooler_output[0], project(states.last_hidden_state[0])
            else:
                states_MD = model(**words).last_hidden_state[0]
                global_D = states_MD.mean(dim=0) if kind in MEAN_TYPES else states_MD[0]
        computed.append((global_D, states_MD[content], words["input_ids"][0][content].tolist()))
    return computed


def plain_picture(card: TeacherCard, folder: Path, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the global feature of a picture, and the patches of its last map one after another."""
    picture = Image.open(path).convert("RGB")
    with torch.no_grad():
        if card.source == "timm":
            model = timm.create_model(card.architecture, pretrained=False).eval()
            model.load_state_dict(load_file(folder / "model.safetensors"))
            pixels = create_transform(**resolve_data_config({}, model=model), is_training=False)(picture)[None]
            states = model.forward_features(pixels)
            if states.ndim == 3:
                grid_MD = states[0, getattr(model, "num_prefix_tokens", 0) :]
            else:
                grid_MD = (states if getattr(model, "output_fmt", "") == "NHWC" else states.movedim(1, 3))[0].flatten(
                    0, 1
                )
            of_class = "class token" in card.global_feature
            return states[0, 0] if of_class else model.forward_head(states, pre_logits=True)[0], grid_MD
        processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        if "text" not in card.modalities:
            states = model(pixel_values=pixels).last_hidden_state[0]
            return states[0], states[1:]
        seen = model.get_image_features(pixel_values=pixels)
        grid = seen.last_hidden_state
        if model.config.model_type != "siglip":
            grid = model.vision_model.post_layernorm(grid[:, 1:])
        return seen.pooler_output[0], grid[0]


def require_texts(
    name: str, cache: TeacherCache, folder: Path, units: Sequence[TextUnit], *, own: bytes = b""
) -> None:
    """Hold stored features of texts, and the pieces, against a plain computation and the published tokenizer.json.

    Args:
        own: that file, where the repository lacks it.
    """
    if not own and (folder / "tokenizer.json").is_file():
        own = (folder / "tokenizer.json").read_bytes()
    store = cache.stores()["text"]
    computed = plain_texts(folder, [unit.text for unit in units])
    ids = [unit.unit_id for unit in units]
    expected = np.stack([global_D.numpy() for global_D, _, _ in computed])
    assert_near(store.global_features(ids).copy(), expected, roundings=64)
    tower = open_teacher(name).text
    assert tower is not None
    prepared = tower.prepare(units)
    for unit, ready, (_, states_MD, pieces) in zip(units, prepared, computed, strict=True):
        assert ready.inputs["ids"].tolist() == pieces
        if own:
            tokenizer = Tokenizer.from_buffer(own)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            text = unit.text.lower() if name.startswith("siglip2") else unit.text
            assert tokenizer.encode(text, add_special_tokens=False).ids == pieces
        assert_near(store.token_features([unit.unit_id])[0].copy(), states_MD.numpy(), roundings=64)
        # Spans name the characters of each piece.
        spans = store.char_spans([unit.unit_id]).tolist()
        covered = {place for start, end in spans for place in range(start, end)}
        assert {place for place, letter in enumerate(unit.text) if not letter.isspace()} <= covered
        assert not any(unit.text[start:end] != unit.text[start:end].strip() for start, end in spans)


def require_pictures(card: TeacherCard, cache: TeacherCache, folder: Path, dataset: Dataset) -> None:
    store = cache.stores()["image"]
    for unit in dataset.image_units():
        global_D, grid_MD = plain_picture(card, folder, unit.path)
        assert_near(store.global_features([unit.unit_id])[0].copy(), global_D.numpy(), roundings=256)
        assert_near(store.token_features([unit.unit_id])[0].copy(), grid_MD.numpy(), roundings=256)


def command(name: str, data: Path) -> tuple[object, ...]:
    stored = ("--dtype", "float32", "--grid-side", 64, "--confidence", "none")
    return ("extract", "--teacher", name, "--data", data, *stored, "--output")


def snapshot(hub: Hub, cache: Path, repository: str) -> Path:
    """Return the folder that a repository's files were fetched into."""
    commit = hub.sha(f"models/{repository}")
    return cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


FIRST_OF_FORM = {
    PUBLISHED[card.repository]: name for name, card in reversed(CATALOGUE.items()) if card.repository in PUBLISHED
}
"""What makes the files -> the first teacher of that form."""


def test_teachers_of_one_form_differ_in_size_alone() -> None:
    for card in CATALOGUE.values():
        if card.repository in PUBLISHED:
            first = CATALOGUE[FIRST_OF_FORM[PUBLISHED[card.repository]]]
            for fact in ("source", "model_type", "modalities", "global_feature", "prompt", "licence"):
                assert getattr(card, fact) == getattr(first, fact), (card.name, fact)


@pytest.mark.parametrize("name", FIRST_OF_FORM.values())
def test_from_an_empty_cache_and_without_a_network(
    name: str, hub: Hub, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    card = CATALOGUE[name]
    hub.repositories[f"models/{card.repository}"] = files_of(card.repository)
    if name == "deberta-v3-l" and not hf.utils.is_sentencepiece_available():
        # Its tokenizer is published in one form only.
        _, said = printed(capsys, *command(name, data), tmp_path / "cache", code=6)
        assert "pip install" in said
        assert "sentencepiece" in said
        return
    printed(capsys, *command(name, data), tmp_path / "cache")
    fetched = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert not any(line.endswith((".h5", ".msgpack", ".ot", ".onnx", ".md")) for line in fetched)
    assert not any(line.endswith("generator.bin") for line in fetched)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    cache, dataset = open_cache(tmp_path / "cache"), open_dataset(str(data), split="train")
    teacher = open_teacher(name, image_tokens="grid", grid_side=64)
    for modality, tower in (("image", teacher.image), ("text", teacher.text)):
        described = None if tower is None else json.loads(json.dumps(tower.describe()))
        assert described == cache.identity["teacher"][modality]
    assert len(hub.asked) == asked
    folder = snapshot(hub, tmp_path / "hub", card.repository)
    assert cache.provenance["config"]["revision"] == folder.name
    if "text" in card.modalities:
        require_texts(name, cache, folder, dataset.text_units())
    if "image" in card.modalities:
        require_pictures(card, cache, folder, dataset)


def without(files: Files, *names: str) -> Files:
    return {name: content for name, content in files.items() if name not in names}


def bf16(state: State) -> Files:
    return weights({name: value.bfloat16() for name, value in state.items()})


FORMS: dict[str, tuple[Callable[[str], Files], Callable[[str], Files]]] = {
    "shards": (bert, partial(bert, form=shards)),
    "the older form alone": (bert, partial(bert, form=pickled)),
    "half precision": (bert, partial(bert, form=bf16)),
    "a vocabulary of word pieces": (bert, lambda name: without(bert(name), "tokenizer.json")),
    "vocabulary and merges": (roberta, lambda name: without(roberta(name), "tokenizer.json")),
    "a pair's vocabulary and merges": (clip, lambda name: without(clip(name), "tokenizer.json")),
}
"""What a repository may be like -> the usual one of its family, and this one."""


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_files_give_the_same(
    form: str, hub: Hub, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    usual, make = FORMS[form]
    hub.repositories["models/lab/net"] = make("lab/net")
    printed(capsys, *command("hf:lab/net", data), tmp_path / "cache")
    # What is computed here opens the teacher again.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    units = open_dataset(str(data), split="train").text_units()
    own = usual("lab/net")["tokenizer.json"]
    require_texts(
        "hf:lab/net", open_cache(tmp_path / "cache"), snapshot(hub, tmp_path / "hub", "lab/net"), units, own=own
    )


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (lambda: without(roberta("x"), "tokenizer.json", "vocab.json", "merges.txt"), "there is no vocabulary"),
        (lambda: without(clip("x"), "tokenizer.json", "vocab.json", "merges.txt"), "there is no vocabulary"),
        (lambda: without(bert("x"), "tokenizer.json", "vocab.txt"), "there is no vocabulary"),
        (lambda: without(bert("x"), "tokenizer.json") | {"vocab.txt": b"[PAD]\n[UNK]\n"}, "its tokenizer has"),
        (lambda: bert("x") | {"tokenizer.json": roberta("x")["tokenizer.json"]}, "its tokenizer has"),
        (lambda: without(bert("x"), "model.safetensors"), "it has no *.safetensors"),
        (
            lambda: without(bert("x", form=shards), "model-00002-of-00002.safetensors"),
            "it lacks model-00002-of-00002",
        ),
        (lambda: bert("x") | {"config.json": b'{"model_type": "bert"'}, "is damaged"),
        (lambda: bert("x") | {"config.json": b'["bert"]'}, "no object of names and values"),
        (lambda: without(clip("x"), "preprocessor_config.json"), "it has none of preprocessor_config.json"),
    ],
)
def test_a_repository_that_lacks_something_is_refused(
    files: Callable[[], Files], why: str, hub: Hub, data: Path, tmp_path: Path, capsys: Any
) -> None:
    hub.repositories["models/lab/net"] = files()
    _, said = printed(capsys, *command("hf:lab/net", data), tmp_path / "cache", code=6)
    assert why in said
    assert not (tmp_path / "cache").exists()


def recut(files: Files, change: Callable[[Tokenizer], None], **settings: Any) -> Files:
    """Return a repository whose tokenizer.json is changed, and whose other settings of the tokenizer are given."""
    core = Tokenizer.from_buffer(files["tokenizer.json"])
    change(core)
    return files | fast(core) | {"tokenizer_config.json": as_json({"model_max_length": 512, **settings})}


def split_digits(core: Tokenizer) -> None:
    """Split digits, although the vocabulary has a piece of two."""
    model = json.loads(core.to_str())["model"]
    vocabulary = {"20" if piece == "Which" else piece: number for piece, number in model["vocab"].items()}
    merges = [tuple(pair) for pair in model["merges"] if "".join(pair) in vocabulary]
    core.model = models.BPE(vocab=vocabulary, merges=[*merges, ("2", "0")])
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def split_by_letter(core: Tokenizer) -> None:
    letters = pre_tokenizers.Split(Regex(r"\p{L}\p{M}*"), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([letters, as_bytes])


def keep_case(core: Tokenizer) -> None:
    core.normalizer = normalizers.BertNormalizer(lowercase=False)


def end_twice(core: Tokenizer) -> None:
    frame = [(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP] [SEP]", special_tokens=frame)


CUTS: dict[str, Callable[[], Files]] = {
    "digits, as SmolLM2": partial(
        recut, roberta("x"), split_digits, tokenizer_class="GPT2Tokenizer", unk_token="<unk>"
    ),
    "a RoBERTa with its own pattern": partial(recut, roberta("x"), split_by_letter),
    "a cased BERT without do_lower_case": partial(recut, bert("x"), keep_case),
    "an end of its own": partial(recut, bert("x"), end_twice),
    "a class that needs sentencepiece": partial(
        recut, bert("x"), keep_case, tokenizer_class="SiglipTokenizer", pad_token="[PAD]"
    ),
}
"""How tokenizer.json may differ from the class that transformers rebuilds."""


@pytest.mark.parametrize("kind", CUTS)
def test_the_published_tokenizer_decides_for_teachers_and_students(kind: str, hub: Hub) -> None:
    # A student's tokenizer is kept by name.
    files, name = CUTS[kind](), f"lab/{kind.replace(' ', '-').replace(',', '')}"
    hub.repositories[f"models/{name}"] = files
    tower, student = open_teacher(f"hf:{name}").text, load_text_tokenizer(name)
    assert tower is not None
    published, text = Tokenizer.from_buffer(files["tokenizer.json"]), "Which 2048 dogs RUN at the Green tree?"
    (prepared,) = tower.prepare([text_unit(text)])
    bare = published.encode(text, add_special_tokens=False)
    pieces = prepared.inputs["ids"].tolist()
    assert pieces == bare.ids
    ((part,),) = student.encode([Candidate(text_unit=text_unit(text))])
    assert part.token_ids == pieces
    assert [*tower.pieces.prefix, *pieces, *tower.pieces.suffix] == published.encode(text).ids  # type: ignore[attr-defined]


def changed(files: Files, **settings: Any) -> Files:
    """Return a repository with some settings of its config.json changed."""
    return files | {"config.json": as_json({**json.loads(files["config.json"]), **settings})}


OWN_CODE = {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}


TIMM = "timm/vit_large_patch16_224.augreg_in21k_ft_in1k"
UNREADABLE: dict[str, tuple[Callable[[], Files], Sequence[str]]] = {
    "a class of its own": (
        lambda: changed(bert("x"), auto_map=OWN_CODE),
        ["code from its repository", "modeling_qwen.Qwen2ForCausalLM for AutoModelForCausalLM"],
    ),
    "a type of its own": (
        lambda: changed(bert("x"), model_type="new", auto_map={"AutoModel": "lab/code--modeling.NewModel"}),
        ["code from its repository", "lab/code--modeling.NewModel for AutoModel"],
    ),
    "quantised": (lambda: changed(bert("x"), quantization_config={"quant_method": "awq"}), ["are quantised"]),
    "SAM": (lambda: changed(bert("x"), model_type="sam"), ["type 'sam' cannot be teachers", "dinov2"]),
    "BEiT": (lambda: changed(bert("x"), model_type="beit"), ["type 'beit' cannot be teachers", "dinov2"]),
    "timm": (lambda: files_of(TIMM), ["not of transformers", f"did you mean timm:{TIMM.removeprefix('timm/')}"]),
}
"""Repositories that no teacher is made of -> their files, and what the refusal says."""


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_a_teacher_is_refused_before_its_weights_are_fetched(
    kind: str, hub: Hub, data: Path, tmp_path: Path, capsys: Any
) -> None:
    make, words = UNREADABLE[kind]
    name = TIMM if kind == "timm" else "lab/net"
    hub.repositories[f"models/{name}"] = make() | {"modeling_qwen.py": b"exit()"}
    _, said = printed(capsys, *command(f"hf:{name}", data), tmp_path / "cache", code=2)
    assert all(word in said for word in words), said
    assert f"hf:{name}/" not in said
    assert not [line for line in hub.asked if line.endswith((".safetensors", ".bin", ".py")) and "GET" in line]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("name", "file"), [("hf:lab/net", "tokenizer.json"), ("timm:resnet18", "model.safetensors")])
def test_pointers_of_git_lfs_are_named(name: str, file: str, data: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / file).write_bytes(LFS_POINTER)
    _, said = printed(capsys, *command(name, data), tmp_path / "cache", "--weights", tmp_path, code=6)
    assert "Git LFS left pointers" in said
    assert f"git -C {tmp_path} lfs pull" in said


def test_a_network_that_transformers_took_over_is_opened(
    hub: Hub, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    code = {"AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig"}
    code["AutoModel"] = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"
    hub.repositories["models/lab/net"] = changed(published("nomic_bert", "lab/net"), auto_map=code)
    printed(capsys, *command("hf:lab/net", data), tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    units = open_dataset(str(data), split="train").text_units()
    cache, folder = open_cache(tmp_path / "cache"), snapshot(hub, tmp_path / "hub", "lab/net")
    require_texts("hf:lab/net", cache, folder, units)


def test_a_cache_keeps_to_the_commit_that_it_began_with(hub: Hub, data: Path, tmp_path: Path, capsys: Any) -> None:
    hub.repositories["models/lab/net"] = bert("lab/net")
    printed(capsys, *command("hf:lab/net", data), tmp_path / "cache")
    changed = {name: value + 1 for name, value in load(bert("lab/net")["model.safetensors"]).items()}
    began = hub.move("models/lab/net", **weights(changed))
    before = tree_bytes(tmp_path / "cache")
    printed(capsys, *command("hf:lab/net", data), tmp_path / "cache")
    printed(capsys, "cache", "verify", tmp_path / "cache", "--recompute", 2, "--data", data)
    assert tree_bytes(tmp_path / "cache") == before
    printed(capsys, *command("hf:lab/net", data), tmp_path / "cache", "--revision", "main", code=3)
    printed(capsys, *command("hf:lab/net", data), tmp_path / "now")
    printed(capsys, *command("hf:lab/net", data), tmp_path / "then", "--revision", began)
    now, then = (open_cache(tmp_path / name) for name in ("now", "then"))
    assert now.provenance["config"]["revision"] == hub.sha("models/lab/net")
    assert then.identity == open_cache(tmp_path / "cache").identity != now.identity


def test_dinov3_is_one_feature_by_either_library() -> None:
    """The same weights, whose biases of queries and values are 0 as timm has them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    theirs = hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**sizes, num_register_tokens=4, patch_size=16, image_size=256)
    ).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if name.endswith(("q_proj.bias", "v_proj.bias")):
                value.zero_()
            elif value.ndim < 2:
                value += 0.1 * torch.randn_like(value)
    renamed = {"embeddings.cls_token": "cls_token", "embeddings.register_tokens": "reg_token"}
    renamed |= {"embeddings.patch_embeddings": "patch_embed.proj", "model.layer.": "blocks."}
    renamed |= {"attention.o_proj": "attn.proj", "layer_scale1.lambda1": "gamma_1", "layer_scale2.lambda1": "gamma_2"}
    renamed |= {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    state = {}
    for name, value in theirs.state_dict().items():
        for theirs_name, ours in renamed.items():
            name = name.replace(theirs_name, ours)
        state[name] = value
    for block in ("blocks.0.attention", "blocks.1.attention"):
        parts = [state.pop(f"{block}.{part}_proj.weight") for part in "qkv"]
        state[f"{block.replace('attention', 'attn')}.qkv.weight"] = torch.cat(parts)
    architecture = "vit_base_patch16_dinov3"
    ours = narrow_models(timm.create_model)(architecture, pretrained=False)
    ours.load_state_dict({name: value for name, value in state.items() if name in ours.state_dict()}, strict=True)
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    settings = timm_pixel_settings(ours)
    by_timm = TimmBackbone(ours, architecture=architecture, **place)
    by_transformers = TransformersVisionBackbone(theirs, "class token", settings=settings, **place)
    pixels = torch.randn(2, 3, 256, 256)
    first, second = by_timm(pixels), by_transformers(pixels)
    assert_near(first.global_ND, second.global_ND)
    assert_near(first.grid_NhwD, second.grid_NhwD)
    assert by_timm.describe()["global"] == by_transformers.describe()["global"] == "class token"
