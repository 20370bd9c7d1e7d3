"""Students and caches go to a hub and come back over HTTP; a hub that refuses is one message and leaves nothing."""

from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import commands
import pyarrow.parquet as pq
import pytest
import timm
from fake_hub.server import TOKEN, Hub, serve_hub
from huggingface_hub import DatasetCard, ModelCard
from own_rows import class_row, write_json_lines, write_pictures
from safetensors.torch import save_file
from tiny_extraction import tree_bytes

from advl_pipeline.base.process_lock import process_lock
from advl_pipeline.cache.commit_records import COMPLETE_RECORD
from advl_pipeline.cache.reader import open_cache
from advl_pipeline.cache.verify import verify_cache
from advl_pipeline.runs.evaluations import EvaluationDocument
from advl_pipeline.sharing.hub_facts import cache_metadata, model_metadata

pytestmark = pytest.mark.filterwarnings("ignore:Use .content:DeprecationWarning")
"""Of the way in which the hub's library uploads."""

Command = Callable[..., tuple[str, str]]

NAMING_PATHS = {"zarr.json", "records/provenance.json", "records/plan.json", "records/complete.json"}
"""Files of a cache that name paths of the machine that made it, or hold the digest of one that does."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Its own protocol of large files has no stand-in.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    # The library reads the environment once, which may have been another one.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serve_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def advl(capsys: pytest.CaptureFixture[str]) -> Command:
    return partial(commands.printed, capsys)


def test_a_cache_goes_to_the_hub_and_comes_back_the_same(
    hub: Hub, advl: Command, small_corpus: Any, tmp_path: Path
) -> None:
    cache = small_corpus.caches[0]
    assert "uploaded: http" in advl("cache", "push", cache, "lab/minilm")[0]
    files = hub.repositories["datasets/lab/minilm"]
    assert files.keys() == tree_bytes(cache).keys() | {"README.md", ".gitattributes", "ids.parquet"}
    card = DatasetCard(files["README.md"].decode())
    assert "Features of minilm-l6 over scenes-vcr/train" in card.text
    assert "Licence of the data: not stated" in card.text
    assert (card.data.viewer, card.data.tags) == (False, ["advl"])
    assert card.data.configs == [{"config_name": "ids", "data_files": "ids.parquet"}]
    ids = pq.read_table(io.BytesIO(files["ids.parquet"])).to_pylist()
    assert [row["unit_id"] for row in ids] == [*open_cache(cache).stores()["text"].ids]
    assert {row["modality"] for row in ids} == {"text"}
    # Broken off: what is there already is not asked for again.
    late = f"/datasets/lab/minilm/resolve/{hub.sha('datasets/lab/minilm')}/{COMPLETE_RECORD}"
    hub.refuses[f"GET {late}"] = 403
    _, message = advl("cache", "pull", "lab/minilm", "--output", tmp_path / "cache", code=7)
    assert "may not do that (HTTP 403)" in message
    assert not (tmp_path / "cache").exists()
    hub.refuses.clear()
    before = {line for line in hub.asked if line.startswith("GET /datasets/lab/minilm/resolve/")} - {f"GET {late}"}
    hub.asked.clear()
    assert before
    out, _ = advl("cache", "pull", "lab/minilm", "--output", tmp_path / "cache")
    assert out.startswith("sound: ")
    assert not before & set(hub.asked)
    pulled, made = tree_bytes(tmp_path / "cache"), tree_bytes(cache)
    assert {name for name in made if pulled[name] != made[name]} == NAMING_PATHS
    assert pulled.keys() == made.keys()
    assert not list(tmp_path.glob("*.partial"))


def test_of_two_pulls_into_one_folder_the_second_is_refused_and_changes_nothing(
    hub: Hub, advl: Command, small_corpus: Any, tmp_path: Path
) -> None:
    advl("cache", "push", small_corpus.caches[0], "lab/minilm")
    words = ("cache", "pull", "lab/minilm", "--output", tmp_path / "cache")
    with process_lock(tmp_path / "cache.partial/.lock", "this cache"):
        _, message = advl(*words, code=7)
    assert "Another process is writing this cache." in message
    assert not (tmp_path / "cache").exists()
    advl(*words)
    assert "exists already" in advl(*words, code=2)[1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("cache")] == ["cache"]


def test_a_pushed_cache_names_no_path_of_the_machine_that_made_it(hub: Hub, advl: Command, tmp_path: Path) -> None:
    home = tmp_path / "home-of-anna"
    write_pictures(home / "pets" / "pictures")
    write_json_lines(home / "pets" / "train.jsonl", map(class_row, (0, 1)))
    weights = tmp_path / "more-of-anna" / "weights.safetensors"
    weights.parent.mkdir()
    save_file(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict(), weights)
    made = ("--data", home / "pets" / "train.jsonl", "--weights", weights, "--modality", "image")
    cache = ("--teacher", "timm:tf_efficientnet_lite0", "--output", home / "cache", "--confidence", "none")
    advl("extract", *made, *cache)
    assert b"of-anna" in b"".join(tree_bytes(home / "cache").values())
    advl("cache", "push", home / "cache", "lab/pets")
    pushed = hub.repositories["datasets/lab/pets"]
    assert not [
        name for name, content in pushed.items() if b"of-anna" in content or str(tmp_path).encode() in content
    ]
    advl("cache", "pull", "lab/pets", "--output", tmp_path / "pulled")
    assert "dataset pets, split train" in advl("cache", "info", tmp_path / "pulled")[0]
    assert (
        "--weights weights.safetensors --dataset pets/train.jsonl"
        in advl("cache", "repair", tmp_path / "pulled", code=2)[1]
    )
    given = (*made[:4],)
    assert "sound: nothing to repair" in advl("cache", "repair", tmp_path / "pulled", *given)[0]


def test_a_push_again_sends_nothing_twice_and_removes_what_is_gone(
    hub: Hub, advl: Command, small_corpus: Any, tmp_path: Path
) -> None:
    cache = small_corpus.caches[1]
    hub.refuses["POST /api/datasets/lab/b/commit"] = 403
    advl("cache", "push", cache, "lab/b", code=7)
    assert hub.repositories["datasets/lab/b"].keys() == {".gitattributes"}
    sent = [line for line in hub.asked if line.startswith("PUT /blob/")]
    assert sent
    hub.refuses.clear()
    advl("cache", "push", cache, "lab/b")
    hub.repositories["datasets/lab/b"]["image/left-over"] = b"of another state"
    advl("cache", "push", cache, "lab/b")
    assert [line for line in hub.asked if line.startswith("PUT /blob/")] == sent
    assert "image/left-over" not in hub.repositories["datasets/lab/b"]


def test_a_push_removes_nothing_that_no_push_put_there(
    hub: Hub, advl: Command, small_corpus: Any, run: Path, tmp_path: Path
) -> None:
    theirs = {"README.md": b"---\ntags:\n- vision\n---\n\n- advl\n", "model.safetensors": b"of weeks"}
    hub.repositories = {"datasets/lab/b": dict(theirs), "models/lab/b": dict(theirs)}
    for words in (("cache", "push", small_corpus.caches[0], "lab/b"),
                  ("export", run, "--output", tmp_path / "out", "--push-to-hub", "lab/b")):  # fmt: skip
        assert "holds other files" in advl(*words, code=2)[1]
    assert hub.repositories == {"datasets/lab/b": theirs, "models/lab/b": theirs}
    assert not list(tmp_path.iterdir())


def test_what_is_not_sound_neither_goes_nor_comes(hub: Hub, advl: Command, small_corpus: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(small_corpus.caches[0], damaged)
    values = next(path for path in sorted((damaged / "text").rglob("c/*")) if path.is_file())
    values.write_bytes(values.read_bytes()[:-1] + b"\x01")
    advl("cache", "push", damaged, "lab/damaged", code=4)
    assert not hub.repositories
    hub.repositories["datasets/lab/damaged"] = tree_bytes(damaged)
    _, message = advl("cache", "pull", "lab/damaged", "--output", tmp_path / "cache", code=4)
    assert "on the hub is not sound" in message
    hub.repositories["datasets/lab/none"] = {"README.md": b"# nothing"}
    assert "holds no finished cache" in advl("cache", "pull", "lab/none", "--output", tmp_path / "cache", code=2)[1]
    hub.repositories["datasets/lab/out"] = {**tree_bytes(damaged), "../escaped": b"x"}
    assert (
        "names a file outside its own folder"
        in advl("cache", "pull", "lab/out", "--output", tmp_path / "cache", code=2)[1]
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
    assert verify_cache(small_corpus.caches[0]).is_sound


def test_a_cache_of_the_user_where_a_download_is_kept_stays(
    hub: Hub, advl: Command, small_corpus: Any, tmp_path: Path
) -> None:
    advl("cache", "push", small_corpus.caches[0], "lab/minilm")
    shutil.copytree(small_corpus.caches[1], tmp_path / "cache.partial")
    before, asked = tree_bytes(tmp_path), len(hub.asked)
    _, message = advl("cache", "pull", "lab/minilm", "--output", tmp_path / "cache", code=2)
    assert "for the download" in message
    assert not [line for line in hub.asked[asked:] if "/resolve/" in line]
    assert tree_bytes(tmp_path) == before
    (tmp_path / "linked.partial").symlink_to(tmp_path / "cache.partial")
    advl("cache", "pull", "lab/minilm", "--output", tmp_path / "linked", code=2)
    assert tree_bytes(tmp_path) == before


@pytest.fixture(scope="module")
def run(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "run"
    changes = {"method": "plain", "cache": (), "num_steps": 1, "recipe": "none", "student": "vilt-tiny"}
    small_corpus.run(folder, **changes)
    return folder


def test_a_student_goes_to_the_hub(hub: Hub, advl: Command, run: Path, tmp_path: Path) -> None:
    out, _ = advl("export", run, "--output", tmp_path / "out", "--push-to-hub", "lab/vilt")
    assert f"uploaded: {hub.endpoint}/models/lab/vilt/commit/" in out
    files = dict(hub.repositories["models/lab/vilt"])
    assert files.pop(".gitattributes")
    assert b"\n- advl\n" in files["README.md"], "by which the next push knows it"
    assert files == tree_bytes(tmp_path / "out")
    assert not [name for name, data in files.items() if str(run).encode() in data]


@pytest.mark.parametrize(
    ("refuses", "token", "wording"),
    [
        ({}, "wrong", "does not know you, or no such repository (HTTP 401)"),
        ({"POST /api/repos/create": 403}, TOKEN, "may not do that (HTTP 403)"),
        ({"POST /api/datasets/lab/b/commit": 404}, TOKEN, "not there, or private and not yours (HTTP 404)"),
        ({"POST /api/repos/create": 400}, TOKEN, "answers HTTP 400"),
        (None, TOKEN, "could not be reached"),
    ],
)
def test_a_hub_that_refuses_is_one_message(
    refuses: dict[str, int] | None,
    token: str,
    wording: str,
    hub: Hub,
    advl: Command,
    small_corpus: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if refuses is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    else:
        hub.refuses = refuses
    _, message = advl("cache", "push", small_corpus.caches[0], "lab/b", code=7)
    assert wording in message
    assert "next:" in message
    assert all(files.keys() <= {".gitattributes"} for files in hub.repositories.values())


def test_what_the_hub_does_not_take_is_not_written_here(hub: Hub, advl: Command, run: Path, tmp_path: Path) -> None:
    hub.refuses["POST /api/models/lab/vilt/commit"] = 403
    advl("export", run, "--output", tmp_path / "out", "--push-to-hub", "lab/vilt", code=7)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_none_is_refused(hub: Hub, advl: Command, small_corpus: Any, tmp_path: Path) -> None:
    assert "is named ORG/NAME" in advl("cache", "push", small_corpus.caches[0], "minilm", code=2)[1]
    assert (
        "name of the repository is not valid"
        in advl("cache", "pull", "a/b--c", "--output", tmp_path / "x", code=2)[1]
    )


def test_a_card_says_what_the_pages_of_the_hub_read() -> None:
    documents = {
        "pope/test@letters": EvaluationDocument(
            dataset="pope", split="test", metrics={"choice": 81.234}, protocol="letters"
        ),
        "test": EvaluationDocument(dataset="/here/mine.jsonl", split="test", metrics={"choice": 50.0}),
    }
    metadata = model_metadata(
        name="mine",
        library="transformers",
        dataset="aokvqa",
        init="hf:HuggingFaceTB/SmolVLM-256M-Instruct@7e3e67edbbed1bf9888184d9df282b700a323964",
        is_generative=True,
        documents=documents,
    )
    data = ModelCard(f"---\n{metadata}\n---\n").data
    assert data.base_model == "HuggingFaceTB/SmolVLM-256M-Instruct"
    assert data.pipeline_tag == "image-text-to-text"
    assert data.datasets == ["HuggingFaceM4/A-OKVQA"]
    assert (data.license, data.license_name) == ("other", "that-of-its-base-model-and-data")
    assert data.tags == ["vision-language", "knowledge-distillation", "advl"]
    of_set, of_own = data.eval_results
    assert (of_set.dataset_type, of_set.dataset_split, of_set.metric_value) == ("lmms-lab/POPE", "test", 81.23)
    assert of_set.metric_name == "choice, answer written, options behind letters"
    assert of_own.metric_name == "choice, likeliest candidate"
    assert of_own.dataset_name == "mine.jsonl", "no folder of this machine is told"
    bare = model_metadata(
        name="x", library="torch", dataset="mine.jsonl", init=None, is_generative=False, documents={}
    )
    assert "base_model" not in bare
    assert "model-index" not in bare
    assert "license: cc-by-sa-4.0" in cache_metadata("scienceqa")
    assert "license" not in cache_metadata("mine.jsonl")
