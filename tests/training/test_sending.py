"""Batches travel as they are stored, on a stream of their own; a reader waits for them, and for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_corpus import SmallCorpus, signals_of

from advl_pipeline.base.tensors import with_tensors
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.students.registry import build_student
from advl_pipeline.training.batches import TrainingBatch, collate_batch, in_pinned_memory, received, send_ahead

PICTURES, TEXTS = ("global_BD", "regions_BSD"), ("global_ND", "words_NWD", "relevance_NW")


@pytest.fixture(scope="module")
def collated(small_corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> TrainingBatch:
    """A batch with a text teacher whose rows are codes, and a picture teacher whose cells are float16."""
    codes = small_corpus.extract(tmp_path_factory.mktemp("codes") / "minilm-l6", dtype="int8", confidence=False)
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
