"""One commit of a repository of the hub is fetched over HTTP into a folder, and found there without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub.server import Hub, served_models

from advl_pipeline.base import locations
from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.base.repositories import fetch, is_at_hand, pinned

KEY = "models/lab/net"
SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served_models(tmp_path / "hub", monkeypatch) as served:
        yield served


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def take(name: str = "lab/net", **settings: object) -> Path:
    return fetch(name, what="weights of teacher 'net'", option="--weights", **settings)  # type: ignore[arg-type]


def sharded() -> dict[str, bytes]:
    index = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
    return {"config.json": b"{}", "model.safetensors.index.json": index} | {
        name: bytes([number]) * 4000 for number, name in enumerate(SHARDS)
    }


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_what_opens_a_model_is_fetched_in_one_form_and_found_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptions = "config.json vocab.txt chat_template.jinja spiece.model modules.json 1_Pooling/config.json"
    kept = {name: name.encode() for name in f"{descriptions} 2_Dense/model.safetensors model.safetensors".split()}
    weights = "pytorch_model.bin tf_model.h5 open_clip_model.safetensors onnx/model.onnx original/model.safetensors"
    others = dict.fromkeys(f"{weights} onnx/config.json README.md train.py".split(), b"x")
    hub.repositories[KEY] = kept | others
    assert not is_at_hand("lab/net")
    folder = take()
    assert folder.name == hub.sha(KEY)
    assert {name: (folder / name).read_bytes() for name in files_of(folder)} == kept
    offline(monkeypatch)
    asked = len(hub.asked)
    assert take() == take(pinned("lab/net", folder)) == folder
    assert is_at_hand("lab/net")
    assert len(hub.asked) == asked


def test_weights_of_the_older_form_are_fetched_where_there_are_no_others(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[KEY] = {
        "config.json": b"{}",
        "pytorch_model.bin": b"weights",
        "pytorch_model.generator.bin": b"x",
        "flax_model.msgpack": b"x",
    }
    assert files_of(take()) == {"config.json", "pytorch_model.bin"}
    offline(monkeypatch)
    assert files_of(take()) == {"config.json", "pytorch_model.bin"}


def test_main_is_what_the_hub_says_now_and_a_commit_stays(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[KEY] = {"config.json": b"{}", "model.safetensors": b"first"}
    first = take()
    hub.move(KEY, **{"model.safetensors": b"second"})
    second = take()
    assert [(folder / "model.safetensors").read_bytes() for folder in (first, second)] == [b"first", b"second"]
    assert take(pinned("lab/net", first)) == first
    offline(monkeypatch)
    assert (take(), take(pinned("lab/net", first))) == (second, first)


def test_shards_that_a_broken_download_left_out_are_fetched_by_the_same_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[KEY] = sharded()
    first, late = (f"GET /lab/net/resolve/{hub.sha(KEY)}/{name}" for name in SHARDS)
    hub.refuses[late] = 500
    with pytest.raises(WeightsUnavailable, match="HTTP 500") as broken:
        take()
    assert "run the same command again" in broken.value.next_command
    assert not is_at_hand("lab/net")
    with monkeypatch.context() as patched:
        offline(patched)
        with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE is set"):
            take()
    hub.refuses.clear()
    hub.asked.clear()
    assert set(SHARDS) < files_of(take())
    assert late in hub.asked
    assert first not in hub.asked


def test_a_transfer_that_breaks_in_the_middle_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.repositories[KEY] = sharded()
    path = f"/lab/net/resolve/{hub.sha(KEY)}/{SHARDS[1]}"
    hub.breaks[path] = 1
    try:
        folder = take()
    except WeightsUnavailable:
        # huggingface-hub before 2 asks for the rest by the same command alone.
        folder = take()
    assert (folder / SHARDS[1]).read_bytes() == sharded()[SHARDS[1]]
    assert hub.asked.count(f"GET {path}") == 2


@pytest.mark.parametrize(
    ("name", "why", "following"),
    [
        ("lab/gated", "its owner grants access on request (HTTP 401)", "lab/gated grants you access; or set HF_"),
        ("lab/absent", "it is not there, or private and not yours (HTTP 404)", "hf auth login"),
        ("lab/net@0.9", "it has no revision 0.9", "leave out @0.9"),
        ("lab/no weights", "", "name a repository as ORG/MODEL"),
        ("lab/bare", "it has no *.safetensors or pytorch_model.bin", "name a repository that holds weights"),
    ],
)
def test_what_is_not_to_be_had_says_why_and_what_to_do(hub: Hub, name: str, why: str, following: str) -> None:
    hub.repositories |= {"models/lab/gated": sharded(), KEY: sharded(), "models/lab/bare": {"config.json": b"{}"}}
    hub.gated.add("models/lab/gated")
    with pytest.raises(WeightsUnavailable) as refused:
        take(name)
    assert why in refused.value.why
    assert following in refused.value.next_command
    assert refused.value.where == f"hf:{name}"


def test_a_hub_that_cannot_be_reached_serves_what_was_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[KEY] = sharded()
    folder = take()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(locations, "getproxies", lambda: {"https": "http://a-proxy-that-is-trusted"})
    assert locations.hub_obstacle() == ""
    monkeypatch.setattr(locations, "getproxies", dict)
    assert take() == folder
    with pytest.raises(WeightsUnavailable, match=r"127\.0\.0\.1 cannot be reached") as missing:
        take("lab/other@v2")
    assert "hf download lab/other --revision v2 --local-dir DIR; then --weights DIR" in missing.value.next_command
