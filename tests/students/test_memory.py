"""Recomputed layers and low-rank updates change nothing; what a pass keeps for the backward pass, layer by layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_examples import picture, question
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.lxmert.modeling_lxmert import LxmertLayer

from advl_pipeline.datasets.records import Example
from advl_pipeline.students.bert_parts import PADDING, TEXT, VISUAL, attention_bias
from advl_pipeline.students.interface import LoraSettings, Student
from advl_pipeline.students.memory import LORA_TARGETS, add_lora, enable_gradient_checkpointing, merge_lora
from advl_pipeline.students.registry import build_student, student_names

RECOMPUTED = ("uniter-tiny", "meter-tiny", "bridgetower-tiny", "vilt-tiny", "modernvbert-tiny", "qwen3-vl-tiny")
"""One of each kind of layers; those of UNITER are BERT's, as those of three other families are."""


@pytest.fixture
def asked(tmp_path: Path) -> list[Example]:
    shown = picture(tmp_path / "p.png", 40, 30, boxes=[[1, 2, 20, 22]])
    return [question(shown, "What colour is it?", "vqa")]


def without_dropout(name: str) -> Student:
    torch.manual_seed(0)
    return build_student(name, overrides={"dropout": 0.0}).train()


def gradients(student: Student, asked: list[Example]) -> dict[str, torch.Tensor]:
    student.encode(student.collate(asked)).pooled_NP.square().sum().backward()
    return {name: value.grad for name, value in student.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputed_layers_give_the_same_gradients(name: str, asked: list[Example]) -> None:
    plain, recomputing = without_dropout(name), without_dropout(name)
    enable_gradient_checkpointing(recomputing)
    expected = gradients(plain, asked)
    actual = gradients(recomputing, asked)
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["uniter-tiny", "modernvbert-tiny", "smolvlm-tiny"])
def test_low_rank_updates_train_and_merge(name: str, asked: list[Example]) -> None:
    student = without_dropout(name).eval()
    names = set(student.state_dict())
    batch = student.collate(asked)
    before = student.encode(batch).pooled_NP.detach()
    add_lora(student, LoraSettings(rank=2, alpha=4.0, targets=LORA_TARGETS))
    torch.testing.assert_close(student.encode(batch).pooled_NP.detach(), before)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)
    assert 0 < num_trained < 0.1 * sum(parameter.numel() for parameter in student.parameters())
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
    changed = student.encode(batch).pooled_NP.detach()
    assert (changed - before).abs().max() > 1e-5
    merge_lora(student)
    assert set(student.state_dict()) == names
    torch.testing.assert_close(student.encode(batch).pooled_NP.detach(), changed, atol=1e-5, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in student.parameters())


TINY = [name for name in student_names() if name.endswith("-tiny") and name != "villa-tiny"]


MOST_STATES = 48
"""Bytes that a layer may keep, in states of its tokens in half precision."""

MOST_HEADS = 16
"""Widths of a head below this are no number of tokens."""

MASKS = {
    "modernvbert-tiny": 2,
    **dict.fromkeys(
        ("uniter-tiny", "visualbert-tiny", "vl-bert-tiny", "clip-vil-tiny", "efficientnet-minilm-tiny"), 4
    ),
}
"""Masks of a pass, where they are more: of its two parts, or of the few sequences that a CPU attends to at once."""

STEP_BY_STEP = ("bridgetower-tiny", "meter-tiny", "vilt-tiny")
"""Their attention is transformers' own, whose layers keep what each token makes of each."""


class Saved:
    """The bytes that each layer of a student keeps for the backward pass, in states of its tokens.

    A mask that all layers share counts for the first alone.
    """

    def __init__(self, student: Student) -> None:
        self._known = {value.untyped_storage().data_ptr() for value in student.parameters()}
        self._inside: list[int] = []
        self._bytes: dict[int, int] = {}
        self._state_bytes: dict[int, int] = {}
        # Storages that are let go would lend their places in memory to others.
        self._kept: list[torch.Tensor] = []
        self.squares: set[int] = set()
        layers = [part for part in student.modules() if isinstance(part, GradientCheckpointingLayer | LxmertLayer)]
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            layer.register_forward_hook(self._leave)

    def _enter(self, number: int, _: nn.Module, inputs: Any, options: Any) -> None:
        self._inside.append(number)
        states = next(value for value in (*inputs, *options.values()) if isinstance(value, torch.Tensor))
        self._state_bytes[number] = 2 * states.numel()

    def _leave(self, *_: Any) -> None:
        self._inside.pop()

    def pack(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        self._kept.append(value)
        if self._inside and value.dim() == 4 and value.shape[-1] == value.shape[-2] > MOST_HEADS:
            self.squares.add(storage.data_ptr())
        if self._inside and storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self._bytes[self._inside[-1]] = self._bytes.get(self._inside[-1], 0) + storage.nbytes()
        return value

    @property
    def by_layer(self) -> list[float]:
        return [number / self._state_bytes[layer] for layer, number in sorted(self._bytes.items())]


class Masks(TorchDispatchMode):
    """Looks at what softmaxes are given: rows of scores, or the mask of a fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.num_seen = 0
        self.empty: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        names = [argument.name for argument in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | (kwargs or {})
        rows = arguments.get("attn_mask", arguments.get("attn_bias"))
        if name == "_softmax":
            rows = arguments["self"]
        if isinstance(rows, torch.Tensor):
            self.num_seen += 1
            seen = rows if rows.dtype == torch.bool else rows > -1e4
            if not bool(seen.any(-1).all()):
                self.empty.add(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def examples(small_corpus: Any) -> list[Example]:
    return small_corpus.examples(number=4)


@pytest.mark.parametrize("name", TINY)
def test_a_layer_keeps_no_more_than_some_states_of_its_tokens_and_no_row_of_a_mask_is_empty(
    name: str, examples: list[Example]
) -> None:
    """In particular no mask of its own, and no attention of each token to each."""
    student = build_student(name).eval()
    batch = student.collate(examples)
    for encode in (student.encode, student.encode_unimodal):
        saved = Saved(student)
        keeping = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda x: x)
        with torch.autocast("cpu", torch.bfloat16), keeping, Masks() as masks:
            output = encode(batch)
        assert not masks.empty
        assert bool(output.text_states_NLH.isfinite().all())
        if encode == student.encode_unimodal and not masks.num_seen:
            # Word vectors without layers below the fusion attend to nothing.
            continue
        assert masks.num_seen
        assert saved.by_layer
        assert max(saved.by_layer) <= MOST_STATES, saved.by_layer
        assert name in STEP_BY_STEP or len(saved.squares) <= MASKS.get(name, 1)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("separate", [False, True])
def test_a_mask_that_autocast_rounds_hides_as_before(half: torch.dtype, separate: bool) -> None:
    kinds_NS = torch.tensor([[TEXT, TEXT, VISUAL, PADDING], [TEXT, VISUAL, PADDING, PADDING]])
    bias = attention_bias(kinds_NS, separate=separate, dtype=torch.float32)
    rounded = bias.to(half)
    assert bool(rounded.isfinite().all())
    full = bias.expand(2, 1, 4, 4)
    assert torch.equal(rounded.expand_as(full).float().softmax(-1), full.softmax(-1))
