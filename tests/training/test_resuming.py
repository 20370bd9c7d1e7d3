"""What a run was begun with decides whether it goes on: caches and dataset by their content, wherever they lie."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import complaint as advl
from commands import exit_code
from interrupting import interrupted_at
from run_logs import losses
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_corpus import SMALL_WORDS
from tiny_extraction import tree_bytes

from advl_pipeline.base.errors import ConfigError, Interrupted
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_json, read_log
from advl_pipeline.runs.run_folder import RunFolder
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import save_student
from advl_pipeline.students.tokenizer import embedded_tokenizer_file
from advl_pipeline.students.weight_files import write_known_words
from advl_pipeline.training import loop
from advl_pipeline.training import run as run_module
from advl_pipeline.training.checkpoint import CheckpointWriter, load_checkpoint, restore


def finetune(small_corpus: Any, output: Path, *others: object, data_root: Path | None = None) -> list[object]:
    return [
        *("finetune", "--dataset", "scenes-vcr", "--data-root", data_root or small_corpus.data_root),
        *("--task", "vcr-q2a", "--output", output, "--num-steps", 4, "--batch-size", 4, "--checkpoint-every", 1),
        *(() if "plain" in others else ("--adapt-steps", 2)),
        *(() if "--method" in others else ("--confidence-folds", 2)),
        *(() if "--student" in others else ("--student-option", *SMALL_WORDS)),
        *others,
    ]


def interrupt(capsys: pytest.CaptureFixture[str], command: list[object], *, at: int = 2) -> None:
    with interrupted_at(at):
        assert advl(capsys, *command)[0] == 130


STOPPED: dict[str, dict[str, Any]] = {
    **{name: {"student": name, "method": "plain", "cache": (), "batch_size": None}
       for name in ("villa-tiny", "vl-bert-tiny")},
    "a bridge": {"confidence": "bridge", "answer_weight": 1.0},
    "items that are visited often": {"num_steps": 4, "batch_size": 16, "adapt_steps": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", STOPPED)
def test_a_run_that_was_stopped_twice_is_the_uninterrupted_one(
    name: str, small_corpus: Any, known: Path, tmp_path: Path
) -> None:
    options = {"checkpoint_every": 1, "known_words": known, **STOPPED[name]}
    if options.get("method") == "plain":
        del options["known_words"]
    small_corpus.run(tmp_path / "whole", **options)
    for at in (2, 3):
        with interrupted_at(at), pytest.raises(Interrupted):
            small_corpus.run(tmp_path / "stopped", **options)
    small_corpus.run(tmp_path / "stopped", **options)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for file in (names.STUDENT_WEIGHTS, "heads.safetensors"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_cache_that_changed_under_a_run_is_refused(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, image = small_corpus.caches
    run, cache = tmp_path / "run", tmp_path / "cache"
    shutil.copytree(text, cache)
    command = finetune(small_corpus, run, "--cache", cache)
    interrupt(capsys, command)
    before = tree_bytes(run)
    assert "checkpoint.safetensors" in before
    small_corpus.extract(tmp_path / "wide", dtype="float32", confidence=False)
    for other, sides in (
        (tmp_path / "wide", ("cache.1.storage.dtype", '"float32"', '"float16"')),
        (image, ("cache.1.teacher.name", '"efficientnet-lite0"', '"minilm-l6"')),
    ):
        shutil.rmtree(cache)
        shutil.copytree(other, cache)
        code, stderr = advl(capsys, *command)
        assert code == 3, stderr
        assert list(sides) in [line.split() for line in stderr.splitlines()], stderr
        assert tree_bytes(run) == before
        # Wherever it lies.
        assert advl(capsys, *finetune(small_corpus, run, "--cache", other))[0] == 3
        assert tree_bytes(run) == before
    shutil.rmtree(cache)
    assert advl(capsys, *finetune(small_corpus, run, "--cache", text))[0] == 0
    assert (run / "result.json").exists()
    # A finished run is not passed off as one of another cache either.
    before = tree_bytes(run)
    assert advl(capsys, *finetune(small_corpus, run, "--cache", image))[0] == 3
    assert tree_bytes(run) == before


def test_a_dataset_that_changed_under_a_run_is_refused(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(small_corpus.data_root, tmp_path / "data")
    command = finetune(small_corpus, tmp_path / "run", "--method", "plain", data_root=tmp_path / "data")
    interrupt(capsys, command)
    before = tree_bytes(tmp_path / "run")
    (annotations,) = (tmp_path / "data").rglob("vcr/train.jsonl")
    annotations.write_text("".join(annotations.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    code, stderr = advl(capsys, *command)
    assert code == 3, stderr
    assert [line for line in stderr.splitlines() if line.split()[:1] == ["dataset.content_digest"]], stderr
    assert tree_bytes(tmp_path / "run") == before
    # The same data at another place.
    moved = finetune(small_corpus, tmp_path / "run", "--method", "plain")
    assert advl(capsys, *moved)[0] == 0


def test_a_refused_command_leaves_its_output_alone(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "one"
    text, image = small_corpus.caches
    for wrong, expected in (
        (["--student", "uniter-tny"], 2),
        (["--task", "vcr-q2b"], 2),
        (["--cache", tmp_path], 2),
        (["--cache", text], 2),
        (["--init", tmp_path / "missing"], 6),
        (["--recipe", tmp_path / "missing.toml"], 2),
        (["--tokenizer", tmp_path / "missing"], None),
        (["--student-option", "num_layer=3"], 2),
        (["--gradient-checkpointing", "--student", "lxmert-tiny"], None),
    ):
        code, stderr = advl(capsys, *finetune(small_corpus, run, "--cache", text, "--cache", image, *wrong))
        assert code not in (0, 1), stderr
        assert expected in (code, None), stderr
        assert not run.parent.exists(), wrong


@pytest.fixture(scope="module")
def whole(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the text teacher that nothing stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert exit_code(*finetune(small_corpus, run, "--cache", small_corpus.caches[0])) == 0
    return run


def test_a_run_stopped_between_the_adapt_step_and_its_readout_still_tells_it(
    small_corpus: Any,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = finetune(small_corpus, tmp_path / "stopped", "--cache", small_corpus.caches[0])
    write = RunFolder.write_json

    def stop(self: RunFolder, name: str, value: Any) -> None:
        if name == names.READOUT:
            raise KeyboardInterrupt
        write(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_json", stop)
        assert advl(capsys, *stopped)[0] == 130
    assert not (tmp_path / "stopped" / names.READOUT).exists()
    assert advl(capsys, *stopped)[0] == 0
    assert (tmp_path / "stopped" / names.READOUT).read_text() == (whole / names.READOUT).read_text()


def test_what_a_run_took_counts_all_of_its_sittings(
    small_corpus: Any, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parted = finetune(small_corpus, tmp_path / "parted", "--cache", small_corpus.caches[0])
    interrupt(capsys, parted, at=6)
    steps = read_log(tmp_path / "parted")
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4]
    slow = "".join(json.dumps(step | {"seconds": 100.0}) + "\n" for step in steps)
    (tmp_path / "parted" / names.METRICS).write_text(slow, encoding="utf-8")
    assert advl(capsys, *parted)[0] == 0
    once, twice = (read_json(run / names.RESULT) for run in (whole, tmp_path / "parted"))
    assert twice["num_texts"] == once["num_texts"] > 0
    counts = [
        {name: (phase["num_steps"], phase["num_examples"]) for name, phase in summary["phases"].items()}
        for summary in (once, twice)
    ]
    assert counts[0] == counts[1] == {"adapt": (2, 32), "finetune": (4, 16)}
    assert 200 < twice["phases"]["adapt"]["seconds"] < 300 < twice["phases"]["finetune"]["seconds"] < 400
    assert 500 < twice["seconds"] < 600
    assert twice["seconds_per_step"] > 500 / 6


def test_a_run_stopped_while_its_student_is_written_takes_no_step_again(
    small_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    small_corpus.run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_student", stop)
        with pytest.raises(Interrupted) as stopped:
            small_corpus.run(tmp_path / "stopped")
    assert "every step that was finished" in stopped.value.why
    # A step would be interrupted, too.
    monkeypatch.setattr(loop.OptimiserSteps, "take", stop)
    small_corpus.run(tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for file in (names.STUDENT_WEIGHTS, "heads.safetensors", names.SELECTED_WORDS, names.READOUT):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not (tmp_path / "stopped" / names.CHECKPOINT).exists()


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
    stopped = finetune(small_corpus, run, "--method", "plain")
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
    advised = stderr.splitlines()[-1]
    assert advl(capsys, *shlex.split(advised)[1:])[0] == 0
    assert [record["step"] for record in read_log(run)] == [0, 1, 2, 3]


def test_what_a_student_is_read_from_may_not_change_under_a_run(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init, words, tokenizer = tmp_path / "init", tmp_path / "words.json", tmp_path / "tokenizer"
    torch.manual_seed(0)
    student = build_student("vilt-tiny")
    save_student(init, student, origin={})
    write_known_words(init, {"cat": 3, "dog": 2})
    words.write_text('{"cat": 3, "dog": 2}', encoding="utf-8")
    tokenizer.mkdir()
    shutil.copy(embedded_tokenizer_file(), tokenizer / "tokenizer.json")
    options = ("--student", "vilt-tiny", "--init", init, "--known-words", words, "--tokenizer", tokenizer)
    command = finetune(small_corpus, tmp_path / "run", "--method", "plain-two-step", *options)
    interrupt(capsys, command)
    before = tree_bytes(tmp_path / "run")
    for file, entry in (
        (init / "pretraining_words.json", "init"),
        (init / "student.json", "init"),
        (words, "files.known_words"),
        (tokenizer / "tokenizer.json", "files.tokenizer"),
    ):
        content = file.read_text(encoding="utf-8")
        file.write_text(json.dumps(json.loads(content), indent=3), encoding="utf-8")
        code, stderr = advl(capsys, *command)
        assert code == 3, stderr
        assert [line for line in stderr.splitlines() if line.split()[:1] == [entry]], stderr
        assert tree_bytes(tmp_path / "run") == before
        file.write_text(content, encoding="utf-8")
    # Wherever they lie.
    for path in (init, words, tokenizer):
        path.rename(path.with_name(f"moved-{path.name}"))
    moved = [tmp_path / f"moved-{word.name}" if word in (init, words, tokenizer) else word for word in command]
    assert advl(capsys, *moved)[0] == 0


def test_others_may_read_what_a_run_wrote_as_the_umask_says_and_damage_is_named_with_what_to_do(
    small_corpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = finetune(small_corpus, run, "--method", "plain")
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
        writer.save(model, optimizer, step=3, phase="adapt", scaler=stopped)
    kept = load_checkpoint(tmp_path / "checkpoint")
    restore(kept[2], model, optimizer, resumed)
    assert resumed.state_dict() == stopped.state_dict()
    resumed.scale(torch.ones(()))
    assert resumed.get_scale() == 1024.0
