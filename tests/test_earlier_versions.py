"""Caches and runs that earlier versions wrote are verified, repaired, trained on and evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import advised, complaint, printed

EARLIER = Path(__file__).parent / "assets" / "earlier"
VERSIONS = ("0.2", "4702fbcc", "4cdf63c0")
SHARD = Path("caches/text/text/tokens/values/c/0/0")
STUDENT = (
    "--student uniter-tiny --tokenizer words --student-option vocab_size=14 --student-option hidden_size=8 "
    "--student-option num_layers=1 --student-option num_heads=2 --student-option intermediate_size=8 "
    "--student-option feature_size=8 --data mine.jsonl --cache caches/text --batch-size 4"
).split()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A version, with a copy of its cache and its run in the working folder."""
    name = str(request.param)
    for path in EARLIER.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    shutil.copytree(EARLIER / "words", tmp_path / "words")
    shutil.copytree(EARLIER / name / "cache", tmp_path / "caches/text")
    shutil.copytree(EARLIER / name / "run", tmp_path / "runs/done")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.usefixtures("version")
def test_a_cache_and_a_run_of_an_earlier_version_are_used_as_those_of_this_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = SHARD.read_bytes()
    assert "sound: 46 files" in printed(capsys, "cache", "verify", "caches/text")[0]
    SHARD.write_bytes(whole[:3000] + b"xx" + whole[3002:])
    assert "its content changed" in printed(capsys, "cache", "verify", "caches/text", code=4)[1]
    printed(capsys, "cache", "repair", "caches/text", "--data", "mine.jsonl")
    assert (
        "2 units computed again"
        in printed(capsys, "cache", "verify", "caches/text", "--data", "mine.jsonl", "--recompute", "2")[0]
    )
    printed(capsys, "finetune", *STUDENT, "--num-steps", "2", "--adapt-steps", "1", "--output", "runs/new")
    out, _ = printed(capsys, "evaluate", "runs/done", "--on", "test", "--json")
    assert json.loads(out)
    # Heads were named after the benchmark that they were published for.
    assert json.loads(Path("runs/done/heads.json").read_text(encoding="utf-8")).keys() == {"vcr"}
    again = ("--init", "runs/done", "--num-steps", "1", "--adapt-steps", "1", "--output", "runs/again")
    assert "head choice: checkpoint" in printed(capsys, "finetune", *STUDENT, *again)[1]
    code, message = complaint(
        capsys, "finetune", *STUDENT, "--num-steps", "4", "--adapt-steps", "2", "--output", "runs/done"
    )
    # The default of the number of steps changed since, so that no run of an earlier version goes on.
    assert (code, "a run of another version, which this version cannot resume" in message) == (3, True)
    assert "the run in it can still be evaluated" in message


def test_a_run_of_an_earlier_version_without_a_student_starts_over_as_is_advised(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("runs/done")
    (run / "model.safetensors").unlink()
    _, message = printed(capsys, "evaluate", run, "--on", "test", code=6)
    assert "trains it again; another version wrote it" in message
    (starts_over,) = advised(message)
    if version != "0.2":  # It was not scored.
        (run / "evaluation/test.json").write_bytes(b"torn")
    _, message = printed(capsys, "report", run, code=2)
    trains, scores = advised(message)
    assert trains == starts_over
    printed(capsys, *trains[1:])
    printed(capsys, *scores[1:])
    printed(capsys, "report", run)


@pytest.mark.parametrize("name", ["select_tokens = 0.3", "text_units = 'choice'"])
def test_an_option_that_went_and_changed_the_numbers_is_refused(name: str) -> None:
    from advl_pipeline.base.errors import ConfigError
    from advl_pipeline.extraction.config import RepairConfig
    from advl_pipeline.extraction.recompute import recorded_extraction

    key, _, value = name.partition(" = ")
    recorded = {"teacher": "minilm-l6", key: json.loads(value.replace("'", '"'))}
    with pytest.raises(ConfigError, match="cannot be encoded again") as refused:
        recorded_extraction(recorded, RepairConfig(cache=Path("caches/text")), command="cache repair")
    assert name in refused.value.why
