"""Teachers by name: listed, shown, checked and opened; the catalogue, the doors, plug-ins, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from commands import completed
from fake_hub.models import write_repository
from tiny_extraction import TinyTextTower

from advl_pipeline.base.errors import ConfigError, WeightsUnavailable
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.teachers import registry, teacher_check
from advl_pipeline.teachers.interface import EncodedBatch, Teacher
from advl_pipeline.teachers.open_options import CheckTeacherConfig, OpenOptions
from advl_pipeline.teachers.registry import (
    CATALOGUE,
    DOORS,
    card_of,
    known_names,
    list_teachers,
    open_teacher,
    show_teacher,
)
from advl_pipeline.teachers.teacher_check import run_check_teacher


@pytest.mark.parametrize(
    ("name", "settings", "kind", "says"),
    [
        ("roberta-base", {}, ConfigError, "roberta-b"),
        ("timm:resnet-18", {}, ConfigError, "resnet18"),
        ("random:timm:pit_ti_224", {}, ConfigError, r"Features of \w+ cannot be extracted"),
        ("random:timm:crossvit_tiny_240", {}, ConfigError, r"Features of \w+ cannot be extracted"),
        ("random:efficientnet-lite0", {"device": "abacus"}, ConfigError, "abacus"),
        ("random:efficientnet-lite0@x", {}, ConfigError, "no number"),
        ("roberta-b", {"weights": Path("nowhere")}, WeightsUnavailable, r"nowhere\n.*config\.json"),
    ],
)
def test_what_opens_no_teacher_is_refused(name: str, settings: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        open_teacher(name, **settings)


def test_random_teachers_are_seeded_and_have_their_own_identity(picture: ImageUnit) -> None:
    def tower_of(name: str) -> tuple[torch.Tensor, str]:
        tower = open_teacher(name, image_tokens="none").image
        return tower.encode([tower.prepare(picture)]).global_ND, tower.describe()["parameters"]

    before = torch.random.get_rng_state()
    first, again, other = (tower_of(f"random:timm:test_efficientnet{seed}") for seed in ("", "@0", "@1"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1] != other[1]
    assert not torch.allclose(first[0], other[0])


@dataclass
class Tower:
    """What a plug-in's tower says of itself."""

    described: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        return self.described


def test_a_plug_in_whose_random_control_is_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def heeding(options: OpenOptions) -> Teacher:
        return Teacher(name=options.name, text=Tower({"seed": options.random_seed}))  # type: ignore[arg-type]

    def deaf(options: OpenOptions) -> Teacher:
        return Teacher(name=options.name, text=Tower({}))  # type: ignore[arg-type]

    def without_default(options: OpenOptions) -> Teacher:
        if options.random_seed is None:
            raise TypeError("It has no weights of its own.")
        return deaf(options)

    point = EntryPoint(name="mine", value="plug_in_module:plug_in", group="advl.teachers")
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    # Where nothing can be compared, that is said.
    unsaid = "The control 'random:mine@3' is not compared with 'mine', which cannot be opened: TypeError: It has no"
    for opener, messages in ((heeding, []), (without_default, [f"{unsaid} weights of its own."])):
        monkeypatch.setattr(EntryPoint, "load", lambda self, opener=opener: opener)
        assert open_teacher("random:mine@3").name == "random:mine@3"
        assert caplog.messages == messages
    monkeypatch.setattr(EntryPoint, "load", lambda self: deaf)
    assert open_teacher("mine").name == "mine"
    with pytest.raises(ConfigError, match="'random:mine' must have random weights, and has those of 'mine'"):
        open_teacher("random:mine")


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    write_repository("openai/clip-vit-base-patch16", tmp_path / "clip-folder")
    pair = hf.CLIPModel.from_pretrained(tmp_path / "clip-folder")
    with pytest.raises(WeightsUnavailable, match=r"type 'clip'.* of type 'roberta'") as caught:
        open_teacher("roberta-l", weights=tmp_path / "clip-folder")
    words = caught.value.next_command.split()
    before = open_teacher(words[words.index("--teacher") + 1], weights=Path(words[-1]))
    assert before.logit_scale == pytest.approx(float(pair.logit_scale.detach().exp()))
    # Each tower of a pair is identified by its own parameters.
    with torch.no_grad():
        pair.text_projection.weight[0, 0] += 1.0
    pair.save_pretrained(tmp_path / "clip-folder")
    after = open_teacher("hf:local/pair", weights=tmp_path / "clip-folder")
    assert before.image.describe() == after.image.describe()
    assert before.text.describe() != after.text.describe()
    for name in known_names():
        teacher = card_of(name)
        assert bool(teacher.model_type) == (not teacher.architecture)


def test_list_as_text_and_as_json() -> None:
    text = completed("teachers", "list").stdout
    assert all(name in text for name in [*CATALOGUE, *DOORS])
    listed = json.loads(completed("teachers", "list", "--json").stdout)
    assert [entry["name"] for entry in listed["teachers"]] == [summary.name for summary in list_teachers()]


def test_show_states_sizes_and_policies() -> None:
    details = show_teacher("clip-vit-l")
    sizes = {size.feature: (size.width, size.num_bytes, size.per) for size in details.features}
    assert sizes["image global"] == (768, 1536, "picture")
    assert sizes["image tokens, grid 16 x 16"] == (1024, 16 * 16 * 1024 * 2, "picture")
    assert sizes["text tokens"] == (768, 1536 + 8, "word piece")
    assert "77" in details.long_texts
    assert "hf download openai/clip-vit-large-patch14" in details.how_to_get
    assert "random weights" in show_teacher("random:clip-vit-l@3").summary.about
    assert show_teacher("timm:resnet18").features == ()
    with pytest.raises(ConfigError, match="clip-vit-l"):
        show_teacher("clip-vit")


def test_check_passes_a_good_teacher(text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    config = hf.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    folder, _, _ = text_folder(hf.BertModel, config, "wordpiece")
    result = run_check_teacher(CheckTeacherConfig(name="hf:local/model", weights=folder))
    assert result.is_good
    assert [(tower.modality, tower.global_dim) for tower in result.towers] == [("text", 32)]
    # Weights of another width than the catalogue states are reported.
    other = run_check_teacher(CheckTeacherConfig(name="bert-l", weights=folder))
    assert not other.is_good
    assert "1024" in other.towers[0].problems[0]


def test_check_finds_a_tokenizer_that_knows_no_text(text_folder: Callable[..., tuple[Path, Any, Any]]) -> None:
    config = hf.BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    folder, _, tokenizer = text_folder(hf.BertModel, config, "wordpiece")
    # As many pieces as before, of letters that no text has.
    names = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])[:60]
    vocabulary = [name if name.startswith("[") else chr(0x10A0 + place) for name, place in names]
    for file in folder.glob("tokenizer*.json"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    result = run_check_teacher(CheckTeacherConfig(name="hf:local/model", weights=folder))
    # One of them has [SEP] in it.
    assert "3 of 4 texts have no piece that the tokenizer knows" in result.towers[0].problems


class Flawed(TinyTextTower):
    """A text tower whose features depend on the batch, overflow float16, or are not finite."""

    def __init__(self, flaw: str) -> None:
        super().__init__()
        self.flaw = flaw

    def encode(self, units: Any) -> EncodedBatch:
        value = {"batch": float(len(units)), "range": 1e6, "nan": float("nan"), "rows": 1.0}[self.flaw]
        extra = 1 if self.flaw == "rows" else 0
        return EncodedBatch(
            global_ND=torch.full((len(units), 2), value),
            token_values=[torch.full((unit.num_tokens + extra, 2), value) for unit in units],
        )


@pytest.mark.parametrize(
    ("flaw", "complaint"),
    [("batch", "change with its batch"), ("range", "float16"), ("nan", "not finite"), ("rows", "token rows")],
)
def test_check_finds_what_is_wrong(flaw: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(name="flawed", text=Flawed(flaw))
    monkeypatch.setattr(teacher_check, "open_teacher", lambda name, **settings: teacher)
    result = run_check_teacher(CheckTeacherConfig(name="flawed"))
    assert not result.is_good
    assert any(complaint in problem for problem in result.towers[0].problems)
