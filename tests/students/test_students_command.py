"""`advl students` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from commands import completed

from advl_pipeline.base import repositories
from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.students.presets import family_of
from advl_pipeline.students.registry import build_student, families, list_students

Advl = Callable[..., CompletedProcess[str]]


@pytest.fixture
def advl() -> Advl:
    """Run `advl students ...` in this process: importing torch once is enough."""
    return partial(completed, "students")


def test_list_names_every_student_and_each_has_a_proof(advl: Advl) -> None:
    result = advl("list", "--json")
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)
    assert [item["name"] for item in listed] == [item["name"] for item in list_students()]
    assert {family_of(item["name"]) for item in listed} == set(families())
    for item in listed:
        assert item["proof"]
        assert item["unproven"]
        assert item.get("largest", 0.0) < 2e-5


def test_show_prints_architecture_and_recipe_sources(advl: Advl) -> None:
    result = advl("show", "meter-tiny", "--json")
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["pooled_size"] == 2 * shown["hidden_size"]
    assert shown["recipes"] == {}
    assert "hidden_size: 32" in advl("show", "uniter-tiny").stdout


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [(("show", "unitter-base"), 2, "uniter-base"), (("load-check", "uniter-tiny", "absent.pt"), 6, "next:")],
)
def test_what_is_not_there_is_one_message(advl: Advl, words: tuple[str, ...], code: int, says: str) -> None:
    result = advl(*words)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_load_check_names_the_keys(advl: Advl, tmp_path: Path) -> None:
    state = {
        f"uniter.{key.removeprefix('model.')}": value
        for key, value in build_student("uniter-tiny").state_dict().items()
    }
    gone = "uniter.pooler.dense.bias"
    del state[gone]
    torch.save(
        {**state, "uniter.extra.weight": torch.zeros(1), "vqa_output.0.bias": torch.zeros(2)}, tmp_path / "a.pt"
    )
    result = advl("load-check", "uniter-tiny", str(tmp_path / "a.pt"), "--json")
    assert result.returncode == 2, result.stderr
    report = json.loads(result.stdout)
    assert report["missing"] == ["model.pooler.dense.bias"]
    assert report["unexpected"] == ["model.extra.weight"]
    assert report["ignored"] == ["vqa_output.0.bias"]
    text = advl("load-check", "uniter-tiny", str(tmp_path / "a.pt")).stdout
    assert "does not fill uniter-tiny" in text
    state[gone] = torch.zeros(32)
    torch.save(state, tmp_path / "b.pt")
    whole = advl("load-check", "uniter-tiny", str(tmp_path / "b.pt"))
    assert whole.returncode == 0
    assert "fills uniter-tiny" in whole.stdout


def test_a_student_whose_tokenizer_is_out_of_reach_is_described_and_says_what_to_do(
    advl: Advl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repositories, "hub_obstacle", lambda: "no network")
    student = build_student("lxmert-tiny", overrides={"tokenizer": "nobody/nothing"})
    with pytest.raises(WeightsUnavailable, match="not at hand") as missing:
        student.collate_texts([])
    assert missing.value.why == "no network"
    # RoBERTa counts its positions from the padding's id, which its tokenizer says.
    with pytest.raises(WeightsUnavailable):
        build_student("meter-tiny", overrides={"tokenizer": "nobody/nothing"})
    shown = advl("show", "meter-tiny", "--tokenizer", "minilm-l6", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["config"]["tokenizer"] == "minilm-l6"
