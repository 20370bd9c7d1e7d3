"""A release states one version, and its page says what passed, what failed and what was not run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import release
from benchmarks.release import Check, kept_records, render_page, run_check


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def test_every_file_states_the_same_version() -> None:
    assert len(set(release.stated_versions().values())) == 1


def test_the_page_releases_nothing_before_every_check_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {
        "good": Check(
            what="tests", commands=(python("print('=== 7 passed in 1 s ====')"), python("1")), shows=release.PASSED
        ),
        "bad": Check(what="kills", commands=(python("exit('broken')"), python("print('7 left')")), shows=".*left"),
        "left": Check(what="goals", commands=(python("1"),), shows=".*"),
    }
    monkeypatch.setattr(release, "CHECKS", checks)
    records = {name: run_check(checks[name], tmp_path / f"{name}.log", commit="c0ffee") for name in ("good", "bad")}
    assert "broken" in (tmp_path / "bad.log").read_text(encoding="utf-8")
    for name, record in records.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(asdict(record)), encoding="utf-8")
    assert kept_records(tmp_path) == records
    page = render_page(records, version="0.3.0", commit="c0ffee", alike=())
    assert "**Not to be released**: 2 of 3 checks" in page
    good, bad, left = page.splitlines()[-3:]
    assert good.startswith("| good | tests | passed | 7 passed in 1 s | c0ffee | 0 | ")
    assert bad.startswith("| bad | kills | **failed** |  | c0ffee | 0 | ")
    assert left == "| left | goals | not run |  |  |  |  |"
    passed = dict.fromkeys(checks, records["good"])
    assert "All 3 checks passed" in render_page(passed, version="0.3.0", commit="c0ffee", alike=())
    # A check of an earlier commit is shown, and says nothing about this one, unless both ship the same files.
    later = render_page(passed, version="0.3.0", commit="decade", alike=())
    assert "**Not to be released**: 3 of 3 checks" in later
    assert "| passed | 7 passed in 1 s | c0ffee |" in later
    assert "All 3 checks passed" in render_page(passed, version="0.3.0", commit="decade", alike={"c0ffee"})
    checks["good"] = replace(checks["good"], reads_all=True)
    assert "1 of 3 checks" in render_page(passed, version="0.3.0", commit="decade", alike={"c0ffee"})


def test_commits_that_differ_in_pages_ship_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(tmp_path))
    commits = []
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for name in ("README.md", "notes.md", "pyproject.toml"):
        (tmp_path / name).write_text(name, encoding="utf-8")
        subprocess.run([*git, "add", name], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", name], check=True)
        commits.append(subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip())
    monkeypatch.setattr(release, "ROOT", tmp_path)
    records = {
        commit: release.Record(commit=commit, passed=True, result="", minutes=0, machine="") for commit in commits
    }
    assert release.commits_that_ship_as(commits[1], records) == {*commits[:2]}


def test_what_no_commit_states_alike_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "new.md").write_text("new", encoding="utf-8")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    stated = {"pyproject.toml": "0.3.0", "CITATION.cff": "0.3.0"}
    monkeypatch.setattr(release, "stated_versions", lambda: stated)
    with pytest.raises(SystemExit, match="commit these changes first"):
        release.commit_checked()
    stated["CITATION.cff"] = "0.2.0"
    with pytest.raises(SystemExit, match="different versions"):
        release.commit_checked()
