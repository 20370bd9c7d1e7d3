"""Text encoders: our features are those of a direct call, whatever else is in the batch.

`test_teachers_of_the_hub.py` has the families that have a name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.datasets.records import text_unit
from advl_pipeline.teachers.interface import TextTower
from advl_pipeline.teachers.registry import open_teacher
from advl_pipeline.teachers.word_pieces import WordPieces

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = "Why is the naive dog holding an umbrella?"
OTHERS = ["the café's door", "because nobody is watching the green field near the left tree, and it's half empty!"]

FAMILIES: dict[str, tuple[Any, Any, str, str]] = {
    "bert": (hf.BertModel, hf.BertConfig(vocab_size=300, **SMALL), "wordpiece", "first"),
    "roberta": (
        hf.RobertaModel,
        hf.RobertaConfig(vocab_size=500, max_position_embeddings=66, pad_token_id=1, **SMALL),
        "bytes",
        "first",
    ),
    "deberta-v2": (
        hf.DebertaV2Model,
        hf.DebertaV2Config(
            vocab_size=300,
            relative_attention=True,
            position_biased_input=False,
            pos_att_type=["c2p", "p2c"],
            **SMALL,
        ),
        "unigram",
        "first",
    ),
    "mpnet": (
        hf.MPNetModel,
        hf.MPNetConfig(vocab_size=300, max_position_embeddings=66, **SMALL),
        "wordpiece",
        "mean",
    ),
}


def opened(folder: Path) -> TextTower:
    teacher = open_teacher("hf:local/model", weights=folder)
    assert teacher.text is not None
    assert teacher.image is None
    return teacher.text


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_features_equal_a_direct_call(family: str, text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    model_class, config, kind, pooling = FAMILIES[family]
    folder, model, tokenizer = text_folder(model_class, config, kind)
    tower = opened(folder)
    prepared = tower.prepare([text_unit(text) for text in [TEXT, *OTHERS]])
    together = tower.encode(prepared)
    inputs = tokenizer(TEXT, return_tensors="pt", return_special_tokens_mask=True, return_token_type_ids=False)
    content = inputs.pop("special_tokens_mask")[0] == 0
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
    expected = states[0] if pooling == "first" else states.mean(dim=0)
    torch.testing.assert_close(together.global_ND[0], expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(together.token_values[0], states[content], atol=2e-5, rtol=1e-4)
    alone = tower.encode(prepared[:1])
    torch.testing.assert_close(alone.global_ND, together.global_ND[:1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(alone.token_values[0], together.token_values[0], atol=2e-5, rtol=1e-4)
    assert tower.global_dim == together.global_ND.shape[1] == tower.token_dim
    assert max(float(values.abs().max()) for values in together.token_values) < 65504


def test_a_tokenizer_without_offsets_finds_the_same_characters(
    text_folder: Callable[..., tuple[Path, Any, Any]], tmp_path: Path
) -> None:
    """One vocabulary, read by a tokenizer that gives offsets and by one in Python that gives none."""
    _, _, fast = text_folder(*FAMILIES["bert"][:3])
    vocabulary = tmp_path / "vocab.txt"
    names = sorted(fast.get_vocab().items(), key=lambda entry: entry[1])
    vocabulary.write_text("".join(f"{name}\n" for name, _ in names), encoding="utf-8")
    slow = WordPieces(hf.BertTokenizerLegacy(str(vocabulary), do_lower_case=True))
    with_offsets = WordPieces(fast)
    assert (slow.describe()["spans"], with_offsets.describe()["spans"]) == ("aligned", "offsets")
    assert (slow.prefix, slow.suffix) == (with_offsets.prefix, with_offsets.suffix)
    for aligned, exact in zip(slow([TEXT, *OTHERS, ""]), with_offsets([TEXT, *OTHERS, ""]), strict=True):
        assert [part.tolist() for part in aligned] == [part.tolist() for part in exact]


def test_a_family_without_offsets_goes_the_whole_way(tmp_path: Path) -> None:
    """ByT5: no fast tokenizer exists, and its pieces are bytes."""
    tokenizer = hf.ByT5Tokenizer()
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = hf.T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    model = hf.T5EncoderModel(config).eval()
    model.save_pretrained(tmp_path)
    tower = opened(tmp_path)
    assert tower.describe()["tokenizer"]["spans"] == "aligned"
    (prepared,) = tower.prepare([text_unit(OTHERS[0])])
    spans = prepared.char_spans_M2
    characters = [OTHERS[0][start:end] for start, end in spans.tolist()]
    assert characters == [*"the", "", *"caf", "é", "é", "'", "s", "", *"door"]
    inputs = tokenizer(OTHERS[0], return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0]
    encoded = tower.encode([prepared])
    torch.testing.assert_close(encoded.token_values[0], states[:-1], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encoded.global_ND[0], states.mean(dim=0), atol=2e-5, rtol=1e-4)


def test_a_long_text_is_read_in_windows(text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    model_class, config, kind, _ = FAMILIES["roberta"]
    folder, model, tokenizer = text_folder(model_class, config, kind)
    tower = opened(folder)
    text = " ".join(OTHERS * 12)
    (prepared,) = tower.prepare([text_unit(text)])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prepared.num_tokens == len(ids) > 100
    encoded = tower.encode([prepared])
    assert encoded.token_values[0].shape == (len(ids), 32)
    # 66 positions less 2 kept for padding less 2 special tokens: the first window holds 62 pieces, and owns
    # everything up to the middle of what it shares with the next.
    first = torch.tensor([[0, *ids[:62], 2]])
    with torch.no_grad():
        states = model(input_ids=first).last_hidden_state[0, 1:-1]
    torch.testing.assert_close(encoded.token_values[0][:50], states[:50], atol=2e-5, rtol=1e-4)
    assert tower.describe()["long_texts"]["max_length"] == 64


def test_a_missing_weight_is_an_error_and_a_missing_pooler_is_not(
    text_folder: Callable[..., tuple[Path, Any, Any]],
) -> None:
    from safetensors.torch import load_file, save_file

    model_class, config, kind, _ = FAMILIES["bert"]
    folder, _, _ = text_folder(model_class, config, kind)
    state = load_file(folder / "model.safetensors")
    without_pooler = {name: value for name, value in state.items() if not name.startswith("pooler.")}
    assert len(without_pooler) < len(state)
    described = opened(folder).describe()
    save_file(without_pooler, folder / "model.safetensors", metadata={"format": "pt"})
    assert opened(folder).describe() == described
    without_pooler.pop("encoder.layer.1.output.dense.weight")
    save_file(without_pooler, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsUnavailable, match="lack weights") as caught:
        opened(folder)
    assert "encoder.layer.1.output.dense.weight" in str(caught.value)


def test_half_precision_computes_and_says_so(text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    model_class, config, kind, _ = FAMILIES["bert"]
    folder, _, _ = text_folder(model_class, config, kind)
    exact = opened(folder)
    rounded = open_teacher("hf:local/model", weights=folder, dtype="bf16").text
    ours, theirs = (tower.encode(tower.prepare([text_unit(TEXT)])).global_ND for tower in (exact, rounded))
    assert theirs.dtype == torch.float32
    assert float(torch.cosine_similarity(ours, theirs)) > 0.999
    assert not torch.equal(ours, theirs)
    assert rounded.describe()["parameters"] == exact.describe()["parameters"]
    assert rounded.describe()["compute_dtype"] == "bfloat16"


def test_an_empty_text_has_a_global_feature_and_no_tokens(
    text_folder: Callable[..., tuple[Path, Any, Any]],
) -> None:
    folder, _, _ = text_folder(*FAMILIES["bert"][:3])
    tower = opened(folder)
    encoded = tower.encode(tower.prepare([text_unit(""), text_unit(TEXT)]))
    assert encoded.token_values[0].shape == (0, 32)
    assert np.isfinite(encoded.global_ND.numpy()).all()
