"""What the loss sees of teachers: rows sent as they are stored, averaged to words, filled where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from first_step import first_terms
from hypothesis import given, settings
from hypothesis import strategies as st
from run_logs import losses
from small_corpus import SmallCorpus, signals_of, train

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.tensors import with_tensors
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.words import assign_tokens_to_words, fit_word_prior, is_function_word, word_spans
from advl_pipeline.distillation.pooling import pool_to_words
from advl_pipeline.distillation.settings import DistillationSettings
from advl_pipeline.distillation.signal import Features, TeacherSignal, TextSignal
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batches import TrainingBatch, collate_batch, in_pinned_memory, received, send_ahead
from advl_pipeline.training.caches import _check_selection
from advl_pipeline.training.signals import teacher_features
from advl_pipeline.training.signals.averages import word_averages
from advl_pipeline.training.signals.stored_signals import SignalSource
from advl_pipeline.training.signals.teacher_features import WordMeans, form_of, word_means


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), num_texts=st.integers(1, 5), num_words=st.integers(1, 6))
def test_rows_are_pooled_to_words_as_padded_states_are(seed: int, num_texts: int, num_words: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 8, num_texts).astype(np.int32)
    lengths[0] = max(lengths[0], 1)
    is_row_NM = np.arange(lengths.max()) < lengths[:, None]
    word_NM = np.where(is_row_NM, generator.integers(-1, num_words, is_row_NM.shape), -1)
    padded_NMD = np.where(is_row_NM[..., None], generator.standard_normal((*is_row_NM.shape, 3)), 0).astype(
        np.float32
    )
    rows_MD = torch.from_numpy(padded_NMD[is_row_NM])
    averages, mask_NW = word_averages(word_NM[is_row_NM], lengths, (num_texts, num_words))
    expected = pool_to_words(torch.from_numpy(padded_NMD), torch.from_numpy(word_NM), num_words)
    assert torch.equal(averages.apply(rows_MD), expected)
    assert mask_NW.tolist() == (word_NM[..., None] == np.arange(num_words)).any(1).tolist()


def test_words_count_that_the_student_has_a_token_of() -> None:
    """A text that was cut has more words than its tokens reach, and a shorter one has fewer."""
    spans_NL2 = np.array([[[0, 0], [0, 1], [2, 5]], [[0, 0], [0, 3], [0, 0]]])
    source = SignalSource([], prior=fit_word_prior(["a dog"]))
    words = source._align_student(["a red dog", "cat"], spans_NL2)
    assert words.word_mask_NW.tolist() == [[True, True, False], [True, False, False]]


PICTURES, TEXTS = ("global_BD", "regions_BSD"), ("global_ND", "words_NWD", "relevance_NW")


@pytest.fixture(scope="module")
def collated(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> TrainingBatch:
    """A batch with a text teacher whose rows are codes, and a picture teacher whose patches are float16."""
    codes = small_corpus.extract(tmp_path_factory.mktemp("codes") / "minilm-l6", dtype="int8", confidence="none")
    dataset, examples = small_corpus.dataset(), small_corpus.examples(number=4)
    source = signals_of(small_corpus.caches[1], codes)
    return collate_batch(examples, dataset, build_student("scenes-small"), source, labelled=False)


def test_rows_travel_as_they_are_stored(collated: TrainingBatch) -> None:
    (text,), (picture,) = collated.signal.text.values(), collated.signal.vision.values()
    assert text.words.values_MD.dtype == torch.int8
    assert text.words.scale_M is not None
    assert picture.regions.values_MD.dtype == picture.picture.values_MD.dtype == torch.float16
    sent = num_bytes(collated.signal)
    made = sum(value.numel() * 4 for _, value in targets_of(collated.signal))
    assert sent < made / 1.5, (sent, made)


def targets_of(signal: TeacherSignal) -> list[tuple[str, torch.Tensor]]:
    """Return what the loss follows, by name."""
    targets = [(f"{name} {kind}", getattr(part, kind)) for name, part in signal.vision.items() for kind in PICTURES]
    targets += [(f"{name} {kind}", getattr(part, kind)) for name, part in signal.text.items() for kind in TEXTS]
    return [(name, value) for name, value in targets if value is not None]


def num_bytes(record: Any) -> int:
    sizes = []
    with_tensors(record, lambda value: sizes.append(value.numel() * value.element_size()) or value)
    return sum(sizes)


class PosingTensor(torch.Tensor):
    """Lies in memory and says that it is on a device, so that what a device would compute is computed here."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_device_makes_the_same_targets(collated: TrainingBatch) -> None:
    posing = with_tensors(collated.signal, lambda value: value.as_subclass(PosingTensor))
    here, there = targets_of(collated.signal), targets_of(posing)
    assert len(here) == 4
    for (name, value), (_, other) in zip(here, there, strict=True):
        torch.testing.assert_close(other.as_subclass(torch.Tensor), value, rtol=1e-5, atol=1e-5, msg=name)


@dataclass
class Parcel:
    """A batch of one tensor that notes when it is sent."""

    value: torch.Tensor
    notes: list[str]

    def to(self, device: torch.device) -> Parcel:
        self.notes.append(f"sent {int(self.value)} to {device}")
        return self


def test_a_step_is_sent_on_its_own_stream_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Stream:
        def __init__(self, device: torch.device | None = None) -> None:
            self.name = "of the model" if device is None else "of copies"

        def wait_event(self, event: Event) -> None:
            notes.append(f"stream {self.name} waits for {event.name}")

    class Event:
        name = "nothing"

        def record(self, stream: Stream) -> None:
            self.name = f"stream {stream.name}"
            notes.append(f"recorded on {self.name}")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        notes.append(f"begin {stream.name}")
        yield
        notes.append(f"end {stream.name}")

    model = Stream()
    for name, stand_in in {"Stream": Stream, "Event": Event, "stream": on, "current_stream": lambda _: model}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    device = torch.device("cuda:1")
    steps = send_ahead(([Parcel(torch.tensor(number), notes)] for number in range(2)), device)
    first = next(steps)
    assert notes == ["begin of copies", "sent 0 to cuda:1", "recorded on stream of copies", "end of copies"]
    notes.clear()
    assert received(first, device) == first[0]
    assert notes == ["stream of the model waits for stream of copies"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_what_arrives_on_a_gpu_is_what_a_cpu_makes(collated: TrainingBatch) -> None:
    here, device = collated.signal, torch.device("cuda")
    assert here is not None
    (sent,) = send_ahead([[in_pinned_memory(collated)]], device)
    (batch,) = received(sent, device)
    assert batch.signal is not None
    for (name, value), (_, other) in zip(targets_of(here), targets_of(batch.signal), strict=True):
        torch.testing.assert_close(other.cpu(), value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def some(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache: Path = small_corpus.extract(tmp_path_factory.mktemp("some") / "cache", select_texts=0.6, confidence="none")
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
    monkeypatch.setattr(teacher_features, "Features", lambda **values: Features(**values | as_stored))
    options = {"known_words": known, "answer_weight": 1.0, "confidence": "none"}
    all_texts = small_corpus.extract(tmp_path / "cache", select_texts=1.0, confidence="none")
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
        train(config)
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
