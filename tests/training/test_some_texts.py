"""Caches with the words of some texts: what others are filled with, and runs that read no more than is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from first_step import first_terms
from run_logs import losses

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import assign_tokens_to_words, is_function_word, word_spans
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import Features, TextSignal
from advl_pipeline.training.checks import _check_selection
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.signals import stored_signals as signals
from advl_pipeline.training.signals.averages import word_averages
from advl_pipeline.training.signals.teacher_features import WordMeans, form_of, word_means


@pytest.fixture(scope="module")
def some(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache: Path = small_corpus.extract(tmp_path_factory.mktemp("some") / "cache", select_texts=0.6, confidence=False)
    return cache


def test_means_are_over_the_texts_that_have_rows(some: Path, small_corpus: Any) -> None:
    dataset = open_dataset("scenes-vcr", split="train", data_root=small_corpus.data_root)
    texts = {unit.unit_id: unit.text for unit in dataset.text_units()}
    store = open_cache(some).text
    lengths = store.token_lengths(list(texts))
    assert 0 < (lengths == 0).mean() < 1
    each: dict[int, list[np.ndarray[Any, Any]]] = {}
    for unit, text in texts.items():
        rows, _ = store.token_features([unit])
        word_of_row = assign_tokens_to_words(store.char_spans([unit]), word_spans(text))
        for number, (start, end) in enumerate(word_spans(text)):
            word_rows = np.asarray(rows, np.float32)[word_of_row == number]
            word = text[start:end].lower()
            assert not len(word_rows) or not is_function_word(word)
            if len(word_rows):
                each.setdefault(form_of(word), []).append(word_rows.mean(0))
    means = word_means(store, texts)
    assert means.form_K.tolist() == sorted(each)
    expected = np.stack([np.mean(each[form], axis=0) for form in sorted(each)])
    np.testing.assert_allclose(means.mean_KD.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_missing_words_take_their_means_and_others_stay() -> None:
    means = WordMeans(form_K=np.array([2, 5]), mean_KD=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    missing_NW = torch.tensor([[False, True, True, True]])
    found_NW, mean_FD = means.look_up(torch.tensor([[5, 5, 7, 2]]), missing_NW)
    assert found_NW.tolist() == [[False, True, False, True]]
    # The first word alone has a row, of which it is the mean.
    averages, _ = word_averages(np.array([0]), np.array([1], np.int32), (1, 4))
    signal = TextSignal(
        text=Features(values_MD=torch.zeros(1, 2)),
        words=Features(values_MD=torch.full((1, 2), 9.0, dtype=torch.float16), averages=averages),
        fillings=(torch.nonzero(found_NW.flatten())[:, 0], mean_FD),
    )
    words_NWD = signal.words_NWD
    assert words_NWD is not None
    assert words_NWD[0].tolist() == [[9.0, 9.0], [3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]


def test_a_run_reads_no_row_of_a_word_without_meaning(
    small_corpus: Any, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of all texts, but for function words, marks and special tokens, are all that relations read."""
    # Moments are those of the stored rows, and differ.
    as_stored = {"mean_D": None, "variance_D": None}
    monkeypatch.setattr(signals, "Features", lambda **values: Features(**values | as_stored))
    options = {"known_words": known, "answer_weight": 1.0, "confidence": "none"}
    all_texts = small_corpus.extract(tmp_path / "cache", select_texts=1.0, confidence=False)
    full, vision = small_corpus.caches
    terms = [
        first_terms(small_corpus.config(tmp_path / name, cache=(cache, vision), **options))
        for name, cache in (("full", full), ("kept", all_texts))
    ]
    assert terms[0] == terms[1]
    stores = [open_cache(path).text for path in (full, all_texts)]
    rows = [int(store.token_lengths(list(store.ids)).sum()) for store in stores if store is not None]
    assert rows[1] < 0.6 * rows[0]


def test_a_run_over_some_texts_still_learns_answers_and_places_words(
    some: Path, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    options = {"known_words": known, "answer_weight": 1.0, "adapt_steps": 3, "num_steps": 1, "confidence": "none"}
    small_corpus.run(tmp_path / "run", cache=(some, small_corpus.caches[1]), **options)
    logged = [record for record in losses(tmp_path / "run") if record["phase"] == "adapt"]
    assert all(record["raw/text"] > 0 for record in logged)
    assert len({round(record["raw/answers"], 4) for record in logged}) > 1


def test_coordinates_need_all_words(some: Path, small_corpus: Any, tmp_path: Path) -> None:
    config = small_corpus.config(tmp_path / "run", cache=(some,), distance="mse", confidence="none")
    with pytest.raises(ConfigError, match="cannot serve the distance") as refused:
        run_finetune(config)
    assert "--distance relational" in str(refused.value.next_command)
    assert not (tmp_path / "run").exists()


def test_the_rarest_words_of_version_0_2_are_not_trained_on(small_corpus: Any) -> None:
    cache = open_cache(small_corpus.caches[0])
    teacher = cache.identity["teacher"]
    text = teacher["text"] | {"kept_tokens": {"share": 0.5}}
    old = replace(cache, identity=cache.identity | {"teacher": teacher | {"text": text}})
    with pytest.raises(ConfigError, match="rarest words") as refused:
        _check_selection([old], DistillationSettings())
    assert f"advl cache prune {cache.path} --all && advl extract" in str(refused.value.next_command)
