"""Names of teachers: the catalogue, the doors, plug-ins, and what happens to the rest."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_repositories import write_repository
from transformers import CLIPModel

from advl_pipeline.base.errors import ConfigError, WeightsUnavailable
from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.teachers import registry
from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.registry import card_of, known_names, open_teacher


@pytest.mark.parametrize(
    ("name", "settings", "kind", "says"),
    [
        ("roberta-base", {}, ConfigError, "roberta-b"),
        ("timm:resnet-18", {}, ConfigError, "resnet18"),
        ("random:timm:pit_ti_224", {}, ConfigError, r"Features of \w+ cannot be taken"),
        ("random:timm:crossvit_tiny_240", {}, ConfigError, r"Features of \w+ cannot be taken"),
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
    with pytest.raises(ConfigError, match="'random:mine' is 'mine' itself"):
        open_teacher("random:mine")


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    write_repository("openai/clip-vit-base-patch16", tmp_path / "clip-folder")
    pair = CLIPModel.from_pretrained(tmp_path / "clip-folder")
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
