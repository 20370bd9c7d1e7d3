"""Students by name: the command, the guide's plug-in, and those of the hub as a stranger meets them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

import pytest
import torch
from commands import completed
from fake_hub.models import files_of
from fake_hub.server import served_models
from fake_hub.teachers import LFS_POINTER
from fake_hub.tokenizers import Files, as_json, vocabulary_size
from made_examples import picture, question
from references import ASSETS
from small_corpus import SmallCorpus
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from advl_pipeline.base import repositories
from advl_pipeline.base.errors import WeightsUnavailable
from advl_pipeline.datasets.pictures import read_square
from advl_pipeline.datasets.records import Candidate, Example, text_unit
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.evaluation.predict import load_finished
from advl_pipeline.runs.results import read_json
from advl_pipeline.students import abilities, registry
from advl_pipeline.students.checkpoints import read_checkpoint
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import Student, StudentBatch, StudentOutput
from advl_pipeline.students.presets import family_of
from advl_pipeline.students.registry import build_student, families, list_students
from advl_pipeline.students.saved import builder, save_student
from advl_pipeline.students.text_student import TextStudent
from advl_pipeline.students.weight_files import located

Advl = Callable[..., CompletedProcess[str]]


@pytest.fixture
def advl() -> Advl:
    """Run `advl students ...` in this process: importing torch once is enough."""
    return partial(completed, "students")


def test_list_names_every_student_and_each_has_a_proof(advl: Advl) -> None:
    result = advl("list", "--json")
    assert result.returncode == 0, result.stderr
    listed = json.loads(result.stdout)
    assert [item["name"] for item in listed] == [item.name for item in list_students()]
    assert {family_of(item["name"]) for item in listed} == set(families())
    for item in listed:
        assert item["proof"]
        assert item["unproven"]
        assert (item["largest"] or 0.0) < 2e-5


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
    with pytest.raises(WeightsUnavailable, match="not on this machine") as missing:
        student.collate_texts([])
    assert missing.value.why == "no network"
    # RoBERTa counts its positions from the padding's id, which its tokenizer says.
    with pytest.raises(WeightsUnavailable):
        build_student("meter-tiny", overrides={"tokenizer": "nobody/nothing"})
    shown = advl("show", "meter-tiny", "--tokenizer", "minilm-l6", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["config"]["tokenizer"] == "minilm-l6"


GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-student.md"


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the guide's example as a module with entry points."""
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "late_fusion_example.py"
    path.write_text(code.group(1), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("late_fusion_example", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "late_fusion_example", module)
    spec.loader.exec_module(module)
    points = [
        EntryPoint(name=name, value="late_fusion_example:build", group="advl.students")
        for name in ("late-fusion", "late-fusion-tiny")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "advl.students" else [])


@pytest.mark.usefixtures("plugged_in")
def test_the_guides_student_is_found_encodes_and_saves(tmp_path: Path) -> None:
    assert "late-fusion-tiny" in registry.student_names()
    student = registry.build_student("late-fusion-tiny").eval()
    shown = picture(tmp_path / "p.png", 40, 30, boxes=[[1, 2, 20, 22]])
    batch = student.collate([question(shown, "Why is it red?", "vcr-q2a", ["Rust.", "No idea."])])
    with torch.no_grad():
        output = student.encode(batch)
        hidden = student.encode(batch, mask_visual=True)
    assert output.pooled_NP.shape == (2, student.pooled_size)
    assert (hidden.pooled_NP - output.pooled_NP).abs().max() > 1e-4
    assert student.build_head("choice", 1)(output.pooled_NP).shape == (2, 1)
    save_student(tmp_path / "saved", student, origin={})
    again = registry.build_student("late-fusion-tiny", weights=tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again.encode(batch).pooled_NP, output.pooled_NP)


def test_the_guide_names_what_only_some_students_can_do() -> None:
    protocols = [name for name, value in vars(abilities).items() if getattr(value, "_is_protocol", False)]
    named = set(re.findall(r"`(\w+)`", GUIDE.read_text(encoding="utf-8")))
    assert {"Perturbable", "Generates"} <= set(protocols) <= named | {"Protocol"}


@dataclass(frozen=True, kw_only=True)
class PlainConfig:
    hidden_size: int = 16


class PlainStudent(Student[StudentBatch]):
    """Three methods and no ability: words by their hash, and the mean colour of a picture."""

    config_class = PlainConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"plain-student": {}}

    def __init__(self, name: str, config: PlainConfig) -> None:
        super().__init__()
        self.name = name
        self.config = config
        self.hidden_size = self.pooled_size = config.hidden_size
        self.words = nn.Embedding(256, config.hidden_size)
        self.colour = nn.Linear(3, config.hidden_size)

    def collate(self, examples: Sequence[Example]) -> StudentBatch:
        texts = [candidate.text for example in examples for candidate in example.candidates]
        spans = [torch.tensor(word_spans(text)) for text in texts]
        ids = [
            torch.tensor([zlib.crc32(text[slice(*span)].encode()) % 256 for span in word_spans(text)])
            for text in texts
        ]
        ids_NL = pad_sequence(ids, batch_first=True, padding_value=-1)
        colours = [torch.tensor(read_square(example.image, 8).mean((0, 1))) for example in examples]
        return ColourBatch(
            num_candidates=tuple(len(example.candidates) for example in examples),
            token_ids_NL=ids_NL.clamp(min=0),
            token_mask_NL=ids_NL >= 0,
            char_spans_NL2=pad_sequence(spans, batch_first=True),
            visual_mask_NR=torch.ones(len(texts), 1, dtype=torch.bool),
            box_index_NR=torch.full((len(texts), 1), -1),
            colours_B3=torch.stack(colours).float() / 255,
        )

    def encode(self, batch: Any, *, mask_visual: bool = False, **_: Any) -> StudentOutput:
        words_NLH = self.words(batch.token_ids_NL) * batch.token_mask_NL[..., None]
        colour_NH = batch.per_sequence(self.colour(batch.colours_B3))
        said_NH = words_NLH.sum(1)
        return StudentOutput(
            text_states_NLH=words_NLH,
            visual_states_NRH=colour_NH[:, None],
            pooled_NP=said_NH if mask_visual else said_NH + said_NH * colour_NH,
        )

    def build_head(self, kind: str, num_classes: int) -> nn.Module:
        return nn.Linear(self.hidden_size, num_classes)


@dataclass(kw_only=True)
class ColourBatch(StudentBatch):
    picture_field: ClassVar[str] = "colours_B3"
    colours_B3: torch.Tensor


def test_three_methods_are_enough_for_a_run(
    small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student without any ability learns from its teachers, is saved, and is scored without its pictures."""
    point = EntryPoint(name="plain-student", value="elsewhere:build", group="advl.students")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "load_plugin", lambda *_: builder(PlainStudent))
    small_corpus.run(tmp_path / "run", student="plain-student")
    sets = small_corpus.evaluate(tmp_path / "run")
    assert set(sets["test"].use_of_vision["q2a"]) == {"swapped", "blanked", "removed"}
    assert load_finished(tmp_path / "run").student.config == PlainConfig()


PUBLISHED_NAMES = read_json(ASSETS / "published_names.json")

STUDENTS = {
    "dandelin/vilt-b32-mlm": ("vilt-tiny", "vilt"),
    "unc-nlp/lxmert-base-uncased": ("lxmert-tiny", "lxmert"),
    "uclanlp/visualbert-vcr-coco-pre": ("visualbert-tiny", "visualbert"),
    "BridgeTower/bridgetower-base": ("bridgetower-tiny", "bridgetower"),
    "ModernVBERT/modernvbert": ("modernvbert-tiny", "modernvbert"),
    "HuggingFaceTB/SmolVLM-256M-Instruct": ("smolvlm-256m", "smolvlm-256m"),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": ("smolvlm-256m", "smolvlm-256m"),
    "lab/idefics3-of-today": ("chat", ""),
    "Qwen/Qwen3-VL-2B-Instruct": ("qwen3-vl-2b", "qwen3-vl-2b"),
    "Qwen/Qwen3-VL-4B-Instruct": ("qwen3-vl-4b", "qwen3-vl-2b"),
}
"""Repository -> the student, and whose list of published names its own are held against."""

AGAIN = ("dandelin/vilt-b32-mlm", "HuggingFaceTB/SmolVLM-256M-Instruct")
"""One that scores classes and one that answers in words: both are finetuned once more, without a network."""

TEXT = "How  many   12 dogs\n\n34 are there in picture 3, isn't it? person_1"


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "AWQ": ({"model_type": "qwen2_5_vl", "quantization_config": {"quant_method": "awq"}}, "are quantised"),
    "its own code": ({"model_type": "internvl", "auto_map": {"AutoModel": "m.Net"}}, "m.Net for AutoModel"),
    "another kind": ({"model_type": "vilt"}, "no chat model of transformers"),
    "no picture tokens": ({"model_type": "idefics2"}, "does not tell where picture tokens stand"),
    "an encoder of texts": ({"model_type": "florence2"}, "is no stack of layers in front of words"),
}
"""Repositories that are no chat student -> what their config.json says, and the refusal."""


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_student_is_refused_before_its_weights_are_fetched(
    kind: str, advl: Advl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, why = REFUSED[kind]
    with served_models(tmp_path / "hub", monkeypatch) as hub:
        hub.repositories["models/lab/net"] = {"config.json": as_json(config), "model.safetensors": b"too large"}
        refused = advl("load-check", "chat", "hf:lab/net")
    assert refused.returncode == 2
    assert why in refused.stderr
    assert any("config.json" in line for line in hub.asked)
    assert not any("model.safetensors" in line for line in hub.asked)


def test_a_damaged_description_is_named(advl: Advl, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"[" * 100_000)
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused = advl("load-check", "chat", tmp_path)
    assert refused.returncode == 6
    assert "The description of a model is damaged." in refused.stderr


def test_pointers_of_git_lfs_are_named(advl: Advl, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(LFS_POINTER)
    for given in (tmp_path, tmp_path / "model.safetensors"):
        refused = advl("load-check", "vilt-tiny", given)
        assert refused.returncode == 6
        assert "Git LFS left pointers" in refused.stderr
        assert f"git -C {tmp_path} lfs pull" in refused.stderr


def without_numbers(names: Iterable[str]) -> set[str]:
    return {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names}


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # The library has read the environment already.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def finetune(corpus: SmallCorpus, repository: str, files: Files, output: Path, *more: object) -> Any:
    """Finetune by the command for two steps; return the student of the run."""
    name, _ = STUDENTS[repository]
    if "tokenizer.json" in files and name.endswith("-tiny"):
        # The last row of ModernVBERT's words is the picture's.
        rows = vocabulary_size(files) + (name == "modernvbert-tiny")
        more += ("--student-option", f"vocab_size={rows}")
    if name in ("lxmert-tiny", "visualbert-tiny"):
        more += ("--regions", "pixels")
    process = completed(
        *("finetune", "--dataset", "scenes-vcr", "--data-root", corpus.data_root, "--task", "vcr-q2a"),
        *("--student", name, "--init", f"hf:{repository}", "--method", "plain", "--num-steps", 2),
        *("--batch-size", 2, "--output", output, *more),
    )
    assert process.returncode == 0, process.stderr
    return load_finished(output).student


def pieces(student: Any, text: str) -> list[int]:
    if isinstance(student, GenerativeStudent):
        token_ids: list[int] = student.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids
    assert isinstance(student, TextStudent)
    ((part,),) = student.tokenizer.encode([Candidate(text_unit=text_unit(text))])
    return part.token_ids


def test_every_family_with_weights_on_the_hub_is_here() -> None:
    published = {family for family, facts in families().items() if facts.weights.startswith("transformers")}
    assert {family_of(student) for student, _ in STUDENTS.values()} == published


@pytest.mark.parametrize("repository", list(STUDENTS))
def test_from_an_empty_cache_and_without_a_network(
    repository: str, small_corpus: SmallCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(repository)
    with served_models(tmp_path / "hub", monkeypatch) as hub:
        hub.repositories[f"models/{repository}"] = files
        commit = hub.sha(f"models/{repository}")
        near = finetune(small_corpus, repository, files, tmp_path / "near")
    assert read_json(tmp_path / "near" / "config.json")["init"] == f"hf:{repository}@{commit}"
    go_offline(monkeypatch)
    if repository in AGAIN:
        far = finetune(small_corpus, repository, files, tmp_path / "far")
        after = far.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in near.state_dict().items())
    assert located(Path(f"hf:{repository}")).name == commit
    if isinstance(near, GenerativeStudent):
        checked = completed("students", "load-check", near.name, f"hf:{repository}")
        assert f"fills {near.name}" in checked.stdout, checked.stderr
    if "tokenizer.json" in files:
        published = Tokenizer.from_buffer(files["tokenizer.json"])
        # Texts of data have single spaces; those of a chat template need not.
        text = TEXT if isinstance(near, GenerativeStudent) else text_unit(TEXT).text
        assert pieces(near, text) == published.encode(text, add_special_tokens=False).ids
    if listed := STUDENTS[repository][1]:
        (folder,) = (tmp_path / "hub").glob("models--*/snapshots/*")
        names = read_checkpoint(folder)
        assert without_numbers(names) == without_numbers(PUBLISHED_NAMES[listed]["names"])
