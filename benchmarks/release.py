"""`make release`: run every check of a release, and write the results into one page, `docs/release.md`.

python -m benchmarks.release [CHECK ...]

Checks take hours, so they may be run one at a time: `build/release` keeps the last record of each. The page shows the
commit of each check. A check counts if its commit ships the same files as the commit to release; `test`, which also
holds pages and tests, only if it is that commit. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import advl_pipeline
from benchmarks.rows import describe_machine

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path("build/release")
PAGE = Path("docs/release.md")

SHIPPED = ("advl_pipeline", "cli", "data", "pyproject.toml", "constraints.txt", "README.md")
"""What the checks other than `test` depend on, beside their own code."""

SOURCE = str(KEPT / "source")
TOOLS = str(KEPT / "tools/bin/python")
DISTRIBUTION = f"dist/advl_pipeline-{advl_pipeline.__version__}"
WHEEL = f"{DISTRIBUTION}-py3-none-any.whl"


@dataclass(frozen=True, kw_only=True)
class Check:
    """Commands that must all succeed; `shows` matches the lines of their output that are the result.

    `reads_all` says that the result depends on every file of the checkout, not only on those that are shipped.
    """

    what: str
    commands: tuple[tuple[str, ...], ...]
    shows: str
    reads_all: bool = False


def _of_wheel(mode: str) -> tuple[tuple[str, ...], ...]:
    return ((sys.executable, "tests/check_wheel.py", mode, "--wheel", WHEEL),)


PASSED = r"(?:=+ )?\d+ passed.*"

CHECKS: Mapping[str, Check] = {
    "build": Check(
        what="sdist and wheel of a clone; metadata and README's rendering",
        commands=(
            ("rm", "-rf", SOURCE, "dist"),
            # What building leaves in a checkout would be taken for an installed package.
            ("git", "clone", "--quiet", ".", SOURCE),
            (sys.executable, "-m", "venv", "--clear", str(KEPT / "tools")),
            (TOOLS, "-m", "pip", "install", "--quiet", "build", "twine", "readme-renderer[md]"),
            (TOOLS, "-m", "build", "--outdir", "dist", SOURCE),
            (TOOLS, "-m", "twine", "--no-color", "check", "--strict", WHEEL, f"{DISTRIBUTION}.tar.gz"),
        ),
        shows=r"Checking .*",
    ),
    "light": Check(what="the wheel alone", commands=_of_wheel("--light"), shows="light core.*"),
    "extras": Check(what="the wheel with each extra", commands=_of_wheel("--extras"), shows=r"\[.*"),
    "tutorial": Check(what="the tutorial, from the wheel", commands=_of_wheel("--tutorial"), shows="the tutorial.*"),
    "test": Check(
        what="lint, types, tests, README's lines", commands=(("make", "test"),), shows=PASSED, reads_all=True
    ),
    "oldest": Check(what="the oldest libraries of models", commands=(("make", "oldest"),), shows=PASSED),
    "numerics": Check(
        what="numbers with each of torch's kernels", commands=(("make", "numerics"),), shows=f"ATEN.*|{PASSED}"
    ),
    "chaos": Check(what="kills, stops and damage", commands=(("make", "chaos"),), shows=r"\d+ of \d+ .*"),
    "bench": Check(
        what="goals of [performance](performance.md)", commands=(("make", "bench"),), shows=r"\d+ goals: .*"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of a check of a commit."""

    commit: str
    passed: bool
    result: str
    minutes: float
    machine: str


def stated_versions() -> dict[str, str]:
    """Return the version that each file states."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = {"advl_pipeline": advl_pipeline.__version__, "pyproject.toml": str(project["version"])}
    for name, pattern in (("CITATION.cff", r"^version: (.*)$"), ("CHANGELOG.md", r"^## (\S+)")):
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        stated[name] = "" if match is None else match[1]
    return stated


def commit_checked() -> str:
    """Return the commit of the checkout; exit if it has changes, or if its files state several versions."""
    versions = stated_versions()
    if len(set(versions.values())) > 1:
        sys.exit(f"the files state different versions: {versions}")
    # `make bench` and this program write these two pages.
    pages = (":!docs/performance.md", f":!{PAGE}")
    status = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", *pages], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if status.stdout:
        sys.exit(f"commit these changes first:\n{status.stdout}")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return head.stdout.strip()


def run_check(check: Check, log: Path, *, commit: str) -> Record:
    """Run the commands of a check up to the first that fails, and keep what they print in a log."""
    began, passed, printed = time.monotonic(), True, ""
    machine = describe_machine(quick=False)
    for command in check.commands:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        printed += done.stdout
        passed = done.returncode == 0
        if not passed:
            break
    log.write_text(printed, encoding="utf-8")
    result = "; ".join(re.findall(rf"^(?:{check.shows})$", printed, re.MULTILINE))
    minutes = (time.monotonic() - began) / 60
    return Record(commit=commit, passed=passed, result=result, minutes=minutes, machine=machine)


def kept_records(folder: Path) -> dict[str, Record]:
    """Return the last records by the names of their checks."""
    files = {name: folder / f"{name}.json" for name in CHECKS}
    return {
        name: Record(**json.loads(file.read_text(encoding="utf-8"))) for name, file in files.items() if file.is_file()
    }


def commits_that_ship_as(commit: str, records: Mapping[str, Record]) -> set[str]:
    """Return the commits of records that ship the same files as a commit."""
    recorded = {record.commit for record in records.values()}
    unlike = ["git", "diff", "--quiet", commit]
    return {
        other
        for other in recorded
        if not subprocess.run([*unlike, other, "--", *SHIPPED], cwd=ROOT, check=False).returncode
    }


def checks_left(records: Mapping[str, Record], *, commit: str, alike: Collection[str]) -> list[str]:
    """Return the checks that did not pass on a commit; `alike` are the commits that ship the same files."""
    return [
        name
        for name, check in CHECKS.items()
        if not (name in records and records[name].passed)
        or (records[name].commit != commit and (check.reads_all or records[name].commit not in alike))
    ]


def render_page(records: Mapping[str, Record], *, version: str, commit: str, alike: Collection[str]) -> str:
    """Return the page: whether the version may be released, and the result and the commit of each check.

    Args:
        alike: the commits that ship the same files.
    """
    verdict = f"All {len(CHECKS)} checks passed, on this commit or on one that ships the same files."
    if left := checks_left(records, commit=commit, alike=alike):
        verdict = f"**Not to be released**: {len(left)} of {len(CHECKS)} checks did not pass on this commit."
    lines = [
        f"# Release {version}",
        "",
        f"{verdict} `make release` wrote this page, for commit {commit[:12]}. It uploads nothing.",
        "",
        "| check | of what | | found | commit | minutes | on |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, check in CHECKS.items():
        record = records.get(name)
        cells = ["not run", "", "", "", ""]
        if record is not None:
            outcome = "passed" if record.passed else "**failed**"
            # pytest rules its last line off with equals signs.
            result = re.sub(" ?={3,} ?", "", record.result).replace("|", "\\|")
            cells = [outcome, result, record.commit[:12], f"{record.minutes:.0f}", record.machine]
        lines.append("| " + " | ".join([name, check.what, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run checks and write the page; exit code 1 if any check of the commit is missing or failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"{', '.join(CHECKS)} [default: all].")
    asked = parser.parse_args().checks or [*CHECKS]
    if unknown := set(asked) - CHECKS.keys():
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    commit, folder = commit_checked(), ROOT / KEPT
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked:
        record = run_check(CHECKS[name], folder / f"{name}.log", commit=commit)
        (folder / f"{name}.json").write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        outcome = record.result if record.passed else f"FAILED, see {KEPT / name}.log"
        print(f"{name}: {outcome} ({record.minutes:.1f} min)", flush=True)
        records = kept_records(folder)
        alike = commits_that_ship_as(commit, records)
        page = render_page(records, version=advl_pipeline.__version__, commit=commit, alike=alike)
        (ROOT / PAGE).write_text(page, encoding="utf-8")
    return 1 if checks_left(records, commit=commit, alike=alike) else 0


if __name__ == "__main__":
    sys.exit(main())
