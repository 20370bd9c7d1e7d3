"""A stopped run goes on to the bit if what it reads is what it was; checkpoints are written while it steps."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from commands import complaint as advl
from interrupting import interrupted_at
from run_logs import losses, metrics
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_extraction import tree_bytes

from advl_pipeline.base.errors import AdvlError, ConfigError, StorageError
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json, read_log
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.students.known_words import write_known_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student
from advl_pipeline.students.tokenizer import embedded_tokenizer_file
from advl_pipeline.training import checkpoint, loop
from advl_pipeline.training import run as run_module
from advl_pipeline.training.checkpoint import CheckpointWriter, load_checkpoint, restore


def test_a_checkpoint_names_heads_after_benchmarks_or_kinds() -> None:
    model = torch.nn.ModuleDict({"heads": torch.nn.ModuleDict({"choice": torch.nn.Linear(2, 1)})})
    weights = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    restore({f"model/heads.vcr.{name}": value for name, value in weights.items()}, model)
    assert all(torch.equal(model.state_dict()[f"heads.choice.{name}"], value) for name, value in weights.items())


def interrupt(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with interrupted_at(2):
        assert advl(capsys, *command)[0] == 130


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def require_equal(run: Path, whole: Path, *more: str) -> None:
    assert losses(run) == losses(whole)
    for file in (names.STUDENT_WEIGHTS, names.HEADS_WEIGHTS, *more):
        assert (run / file).read_bytes() == (whole / file).read_bytes()


PLAIN = {"method": "plain", "cache": (), "batch_size": None}
STOPPED: dict[str, dict[str, Any]] = {
    **{name: {"student": name, **PLAIN} for name in ("villa-tiny", "vl-bert-tiny")},
    "a bridge, over items that are visited often": {"confidence": "bridge", "answer_weight": 1.0, "batch_size": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_a_run_that_was_stopped_twice_is_the_uninterrupted_one(
    name: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    options = {"checkpoint_every": 1, **STOPPED[name]}
    if options.get("method") != "plain":
        options["known_words"] = known
    small_corpus.run(tmp_path / "whole", **options)
    for at in (2, 3):
        with interrupted_at(at), pytest.raises(KeyboardInterrupt):
            small_corpus.run(tmp_path / "stopped", **options)
    small_corpus.run(tmp_path / "stopped", **options)
    require_equal(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_that_goes_on_with_another_number_of_threads_says_so(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = small_corpus.command(tmp_path / "run", checkpoint_every=1, **PLAIN)
    said = []
    for threads, at in ((1, 2), (2, 3), (2, None)):
        with patch.object(torch, "get_num_threads", lambda threads=threads: threads):
            if at is None:
                code, messages = advl(capsys, *command)
            else:
                with interrupted_at(at):
                    code, messages = advl(capsys, *command)
        assert code == (0 if at is None else 130)
        said.append("computed on 1 threads, the others are on 2" in messages)
    assert said == [False, True, False]
    assert read_json(tmp_path / "run" / names.ENVIRONMENT)["num_threads"] == 2


@pytest.fixture(scope="module")
def whole(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    run: Path = small_corpus.run(tmp_path_factory.mktemp("whole") / "run", checkpoint_every=1).output
    return run


@pytest.mark.slow
def test_a_run_stopped_while_its_readout_or_its_student_is_written_takes_no_step_again(
    small_corpus: Any, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = tmp_path / "run", RunFolder.write_json

    def stop_at_the_readout(self: RunFolder, name: str, value: Any) -> None:
        (stop if name == names.READOUT else write)(self, name, value)

    with patch.object(RunFolder, "write_json", stop_at_the_readout), pytest.raises(KeyboardInterrupt):
        small_corpus.run(run)
    assert not (run / names.READOUT).exists()
    with patch.object(run_module, "save_student", stop), pytest.raises(KeyboardInterrupt) as stopped:
        small_corpus.run(run)
    assert "every step that was finished" in str(stopped.value)
    assert not isinstance(stopped.value, AdvlError), "a loop over runs that goes on after an error would go on"
    # A step would be interrupted, too.
    monkeypatch.setattr(loop.OptimiserSteps, "take", stop)
    small_corpus.run(run)
    require_equal(run, whole, names.SELECTED_WORDS, names.READOUT)
    assert not (run / names.CHECKPOINT).exists()


@pytest.mark.slow
def test_what_a_run_took_counts_all_of_its_sittings(small_corpus: Any, whole: Path, tmp_path: Path) -> None:
    with interrupted_at(6), pytest.raises(KeyboardInterrupt):
        small_corpus.run(tmp_path, checkpoint_every=1)
    steps = read_log(tmp_path)
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4]
    slow = "".join(json.dumps(step | {"seconds": 100.0}) + "\n" for step in steps)
    (tmp_path / names.METRICS).write_text(slow, encoding="utf-8")
    small_corpus.run(tmp_path, checkpoint_every=1)
    once, twice = (read_json(run / names.RESULT) for run in (whole, tmp_path))
    assert twice["num_texts"] == once["num_texts"] > 0
    counts = [
        {name: (stage["num_steps"], stage["num_examples"]) for name, stage in summary["phases"].items()}
        for summary in (once, twice)
    ]
    assert counts[0] == counts[1] == {"adapt": (2, 8), "finetune": (4, 16)}
    assert 200 < twice["phases"]["adapt"]["seconds"] < 300 < twice["phases"]["finetune"]["seconds"] < 400
    assert 500 < twice["seconds"] < 600
    assert twice["seconds_per_step"] > 500 / 6


@pytest.mark.slow
def test_a_cache_that_changed_under_a_run_is_refused(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, image = small_corpus.caches
    run, cache = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(text, cache)
    command = small_corpus.command(run, cache=(cache,), checkpoint_every=1)
    interrupt(capsys, command)
    before = tree_bytes(run)
    assert "checkpoint.safetensors" in before
    small_corpus.extract(tmp_path / "wide", dtype="float32", confidence="none")
    for other, sides in (
        (tmp_path / "wide", ["cache.1.storage.dtype", '"float32"', '"float16"']),
        (image, ["cache.1.teacher.name", '"efficientnet-lite0"', '"minilm-l6"']),
    ):
        shutil.rmtree(cache)
        shutil.copytree(other, cache)
        # Wherever it lies.
        for words in (command, small_corpus.command(run, cache=(other,))):
            code, stderr = advl(capsys, *words)
            assert code == 3, stderr
            assert sides in [line.split() for line in stderr.splitlines()], stderr
            assert tree_bytes(run) == before
    assert advl(capsys, *small_corpus.command(run, cache=(text,)))[0] == 0
    # A finished run is not passed off as one of another cache either.
    before = tree_bytes(run)
    assert advl(capsys, *small_corpus.command(run, cache=(image,)))[0] == 3
    assert tree_bytes(run) == before


def test_what_a_run_reads_may_move_and_not_change(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, init, words, tokenizer = (tmp_path / name for name in ("data", "init", "words.json", "tokenizer"))
    shutil.copytree(small_corpus.data_root, data)
    (annotations,) = data.rglob("vcr/train.jsonl")
    torch.manual_seed(0)
    save_student(init, build_student("vilt-tiny"), origin={})
    write_known_words(init, {"cat": 3, "dog": 2})
    words.write_text('{"cat": 3, "dog": 2}', encoding="utf-8")
    tokenizer.mkdir()
    shutil.copy(embedded_tokenizer_file(), tokenizer / "tokenizer.json")
    options = {"student": "vilt-tiny", "init": init, "known_words": words, "tokenizer": str(tokenizer)}
    options |= {"method": "plain-two-step", "cache": (), "data_root": data}
    command = small_corpus.command(tmp_path / "run", checkpoint_every=1, **options)
    interrupt(capsys, command)
    before = tree_bytes(tmp_path / "run")
    for file, entry in (
        (annotations, "dataset.content_digest"),
        (init / "pretraining_words.json", "init"),
        (init / "student.json", "init"),
        (words, "files.known_words"),
        (tokenizer / "tokenizer.json", "files.tokenizer"),
    ):
        content = file.read_text(encoding="utf-8")
        a_line_less = content.rstrip().rpartition("\n")[0]
        file.write_text(a_line_less if file == annotations else f"{content}\n", encoding="utf-8")
        code, stderr = advl(capsys, *command)
        assert code == 3, stderr
        assert [line for line in stderr.splitlines() if line.split()[:1] == [entry]], stderr
        assert tree_bytes(tmp_path / "run") == before
        file.write_text(content, encoding="utf-8")
    moved = {str(path): path.rename(path.with_name(f"moved-{path.name}")) for path in (data, init, words, tokenizer)}
    assert advl(capsys, *(moved.get(word, word) for word in command))[0] == 0


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


def edit_the_step(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | {"step": "4", "phase": "finetune"}
    save_file(load_file(file), file, metadata=metadata)


def test_a_checkpoint_that_is_not_what_was_written_is_refused_and_the_advice_starts_over(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "stopped"
    stopped = small_corpus.command(run, method="plain", cache=(), checkpoint_every=1)
    interrupt(capsys, stopped)
    written = (run / names.CHECKPOINT).read_bytes()
    for damage in (flip_a_bit, edit_the_step):
        (run / names.CHECKPOINT).write_bytes(written)
        damage(run / names.CHECKPOINT)
        before = tree_bytes(run)
        code, stderr = advl(capsys, *stopped)
        assert code == 4, stderr
        assert names.CHECKPOINT in stderr
        assert tree_bytes(run) == before
    *_, removing, command = stderr.splitlines()
    assert f"next:  rm {run / names.CHECKPOINT}   (" in removing
    (run / names.CHECKPOINT).unlink()
    assert advl(capsys, *shlex.split(command)[1:])[0] == 0
    assert [record["step"] for record in read_log(run)] == [0, 1, 2, 3]


def test_others_may_read_what_a_run_wrote_as_the_umask_says_and_damage_is_named_with_what_to_do(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = small_corpus.command(run, method="plain", cache=())
    before = os.umask(0o027)
    try:
        assert advl(capsys, *command)[0] == 0
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in run.rglob("*") if file.is_file()} == {oct(0o640)}
    evaluate = ("evaluate", run, "--on", "val", "--data-root", small_corpus.data_root)
    assert advl(capsys, *evaluate)[0] == 0
    for name, content, asked, expected in (
        (names.RESULT, '{"status":', command, 2),
        (names.RESULT, "[1]", command, 2),
        (names.CONFIG, '{"dataset":', evaluate, 2),
        # What is read of a student has digests.
        (names.HEADS, "[", evaluate, 3),
        (names.METRICS, "[1]\n", ("report", run, "--output", tmp_path / "page.html"), 2),
    ):
        before = (run / name).read_bytes()
        (run / name).write_text(content, encoding="utf-8")
        code, stderr = advl(capsys, *asked)
        assert code == expected, stderr
        assert str(run / name) in stderr
        assert "--no-resume" not in stderr.splitlines()[-1], "only one of these commands has it"
        (run / name).write_bytes(before)


def test_only_the_last_line_of_a_log_may_be_torn(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"ste', encoding="utf-8")
    folder.keep_metrics_before(2)
    assert [record["step"] for record in read_log(tmp_path)] == [0, 1]
    folder.metrics.write_text('{"step": 0}\n[1]\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        folder.keep_metrics_before(2)


def test_the_scale_of_half_precision_goes_on_where_it_was(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    stopped, resumed = (torch.amp.GradScaler("cpu") for _ in range(2))
    stopped.load_state_dict(stopped.state_dict() | {"scale": 1024.0, "_growth_tracker": 7})
    with CheckpointWriter(tmp_path / "checkpoint") as writer:
        writer.save(model, optimizer, step=3, stage="adapt", scaler=stopped)
    kept = load_checkpoint(tmp_path / "checkpoint")
    restore(kept[2], model, optimizer, resumed)
    assert resumed.state_dict() == stopped.state_dict()
    resumed.scale(torch.ones(()))
    assert resumed.get_scale() == 1024.0


class Gate:
    """Holds every write until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.steps: list[int] = []
        self.written: list[Any] = []
        write = checkpoint._write

        def held(path: Path, tensors: Any, *, step: int, stage: str) -> None:
            assert self.opened.wait(60)
            self.steps.append(step)
            self.written.append(tensors)
            write(path, tensors, step=step, stage=stage)

        monkeypatch.setattr(checkpoint, "_write", held)


def a_model() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=1.0)


def test_what_is_written_is_the_state_as_it_was_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, (model, optimizer) = Gate(monkeypatch), a_model()
    before = model.weight.detach().clone()
    with CheckpointWriter(tmp_path / "checkpoint") as writer:
        writer.save(model, optimizer, step=1, stage="adapt")
        with torch.no_grad():
            model.weight.add_(1.0)
        assert not (tmp_path / "checkpoint").exists()
        threading.Timer(0.2, gate.opened.set).start()
        writer.save(model, optimizer, step=2, stage="adapt")
        assert gate.steps[:1] == [1]
    assert gate.steps == [1, 2]
    assert torch.equal(gate.written[0]["model/weight"], before)
    kept = load_checkpoint(tmp_path / "checkpoint")
    assert kept[0] == 2
    assert torch.equal(kept[2]["model/weight"], before + 1.0)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_write_that_failed_is_raised(saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(checkpoint, "_write", full)
    model, optimizer = a_model()

    def save() -> None:
        with CheckpointWriter(tmp_path / "checkpoint") as writer:
            for step in range(saves):
                writer.save(model, optimizer, step=step, stage="adapt")

    with pytest.raises(StorageError, match="full"):
        save()


def test_steps_go_on_while_a_checkpoint_is_written(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, taken = Gate(monkeypatch), list[bool]()
    take = loop.OptimiserSteps.take

    def watched(*arguments: Any, **options: Any) -> Any:
        taken.append(gate.opened.is_set())
        # Two steps after the checkpoint of the third.
        if len(taken) == 5:
            gate.opened.set()
        return take(*arguments, **options)

    monkeypatch.setattr(loop.OptimiserSteps, "take", watched)
    small_corpus.run(tmp_path / "run", method="plain", cache=(), num_steps=6, checkpoint_every=3)
    assert taken == [False] * 5 + [True]
    assert gate.steps == [3, 6]
    assert len(metrics(tmp_path / "run")) == 6
