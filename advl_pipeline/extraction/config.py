"""Configurations of extraction: the frozen teacher, the dataset split, and how the cache is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from advl_pipeline.base.compute import MOST_WORKERS, ComputeConfig, no_fp16
from advl_pipeline.base.configuration import Configuration, Output, option, rare_option
from advl_pipeline.base.folders import default_cache
from advl_pipeline.base.locations import Location
from advl_pipeline.cache.parts import WHOLE, ExtractionPart, parse_part
from advl_pipeline.datasets.config import DataRootOptions
from advl_pipeline.datasets.roots import DATASET_HELP, dataset_label
from advl_pipeline.datasets.vcr_text import TextStyle
from advl_pipeline.teachers.open_options import PICTURES, ComputeDtype

if TYPE_CHECKING:
    from advl_pipeline.cache.quantise import StoredDtype

Modality = Literal["both", "image", "text"]

_USUAL_BATCH = 32

_PICTURE_ROWS = 1 << 18
"""Rows per shard of pictures: 100 MB at 384 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig(DataRootOptions, ComputeConfig):
    """Configuration of `advl extract`."""

    teacher: str = option(help="Frozen teacher; see `advl teachers list`.", such_as="minilm-l6")
    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl")
    split: str = option("train", help="Split of the dataset, or several joined, such as train+val.")
    shots: int | None = option(
        None,
        help="Extract only the features that a low-shot subset of this many questions in all needs, for each --seed.",
        minimum=1,
        identity="content",
    )
    ids: tuple[Path, ...] = rare_option(
        (),
        help="Extract only the features that the examples of a list from `advl datasets subset` need; repeatable.",
        identity="content",
    )
    output: Location | None = option(
        None,
        help="Folder of the cache, or s3://BUCKET/PREFIX or gs://... [default: caches/TEACHER/DATASET/SPLIT, with "
        "the subset in the name if there is one].",
        identity="none",
        output=Output(makes="cache"),
    )
    text_style: TextStyle | None = option(
        None,
        help="How VCR's object tags are turned into words [default: the dataset's].",
        needs=("tags without words",),
    )
    modality: Modality = option("both", help="Towers of the teacher to run.")
    image_tokens: Literal["auto", "boxes", "grid", "none"] = option(
        "auto",
        help="Token features of a picture: one per box, or per patch of a grid; auto uses boxes if the dataset has "
        "any, else the grid.",
        needs=("pictures",),
    )
    grid_side: int = option(
        12,
        help="Maximum number of rows and columns of a stored grid; a larger grid is averaged by area.",
        minimum=1,
        needs=("pictures", "a grid"),
    )
    dtype: Literal["float16", "float32", "int8"] = option("float16", help="Data type of stored features.")
    select_texts: float | None = rare_option(
        None,
        help="Store only the tokens of texts that have this share of the words, selected to cover all words, and of "
        "these texts only content words. Elsewhere a word has the mean of its stored features.",
        above=0,
        maximum=1,
        needs=("texts",),
    )
    batch_size: int | Literal["auto"] = option(
        _USUAL_BATCH,
        help="Units per forward pass; auto measures which size is fastest on this machine.",
        minimum=1,
        identity="provenance",
    )
    shard_rows: int = rare_option(
        32768, help="Token rows per shard, the unit of commit, resume and repair.", minimum=1
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", help="What to do with malformed items and unreadable pictures."
    )
    confidence: Literal["probe", "none"] = option(
        "probe",
        help="probe: also estimate confidences on labelled splits by linear heads, and what the teacher adds to the "
        "default student.",
        when_off="none",
        identity="provenance",
    )
    confidence_folds: int = rare_option(
        5,
        help="Folds of the cross-fitted probe.",
        formerly="--folds",
        minimum=2,
        identity="provenance",
        needs=("confidences",),
    )
    seed: tuple[int, ...] = option(
        (0,),
        help="Seed of the subset and of the folds; repeatable, for runs of several seeds.",
        minimum=0,
        identity="content",
    )
    weights: Path | None = option(
        None, help="Local weights of the teacher instead of the known source.", identity="provenance"
    )
    revision: str | None = rare_option(
        None,
        help="Commit, branch or tag of the teacher's repository on the hub [default: that of the existing cache, "
        "else main]. The cache records the commit.",
        identity="provenance",
        needs=("a repository of the hub",),
    )
    dry_run: bool = option(
        False,
        help="Only print what would be done: units, bytes, time, free disk space, and the epoch from which a cache "
        "is cheaper than the teacher in every step. Without the teacher's weights, units and bytes come from its "
        "card.",
        identity="none",
    )
    engine: Literal["local", "ray"] = option(
        "local",
        help="Run in this process, or in tasks of the Ray cluster at $RAY_ADDRESS (if unset, of one started here).",
        identity="none",
    )
    part: str | None = option(
        None,
        help="Encode part I of N of the shards. Give each process of a job array a different part of the same N; the "
        "process that commits the last shard completes the cache [default: all].",
        metavar="I/N",
        identity="none",
    )
    ray_tasks: int | None = rare_option(
        None,
        help="Number of Ray tasks [default: one per GPU for a cuda device, else one per CPU].",
        minimum=1,
        identity="none",
        needs=("ray",),
    )

    @property
    def own_part(self) -> ExtractionPart:
        """The part of the shards that this process encodes; raises `ConfigError` if `part` is invalid."""
        return WHOLE if self.part is None else parse_part(self.part)

    @property
    def units_per_pass(self) -> int:
        """Units per forward pass; the default number if `auto` is unresolved."""
        return _USUAL_BATCH if self.batch_size == "auto" else self.batch_size

    @property
    def estimates_confidences(self) -> bool:
        """Whether confidences are estimated once the cache is complete."""
        return self.confidence != "none"

    @property
    def stored_dtype(self) -> StoredDtype:
        """Dtype of stored token features; pixels are not converted."""
        return "uint8" if self.teacher.startswith(PICTURES) else self.dtype

    @property
    def compute_dtype(self) -> ComputeDtype:
        """The teacher's compute dtype, for a resolved configuration.

        Raises:
            ConfigError: fp16 is requested.
        """
        if self.mixed_precision == "fp16":
            raise no_fp16(
                "Teachers compute in fp32 or bf16.", "features beyond the range of fp16 would be lost on the way"
            )
        return "bf16" if self.mixed_precision == "bf16" else "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig(DataRootOptions):
    """Configuration of `advl prepare`."""

    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl")
    split: str = option("train", help="Split of the dataset, or several joined, such as train+val.")
    student: str | None = option(
        None, help="Student that will read the pictures, as in `advl finetune`; it must read pixels."
    )
    student_option: tuple[str, ...] = option(
        (), help="Setting of the student as KEY=VALUE, such as image_size=224.", metavar="KEY=VALUE"
    )
    size: int | None = option(
        None, help="Side of the stored squares in pixels [default: the student's].", minimum=1, maximum=4096
    )
    output: Location | None = option(
        None,
        help="Folder or URL of the cache of pictures [default: caches/pictures-SIZE/DATASET/SPLIT].",
        output=Output(makes="cache"),
    )
    on_error: Literal["fail", "skip"] = option("fail", help="What to do with unreadable pictures.")
    num_workers: int | None = option(
        None, help=f"Threads that decode [default: one per core, at most {MOST_WORKERS}].", minimum=1
    )
    dry_run: bool = option(False, help="Only print what would be done: pictures, bytes, free disk space.")


@dataclass(frozen=True, kw_only=True)
class RecomputeOptions(Configuration):
    """The teacher and the data of a cache whose units are encoded again."""

    cache: Location = option(help="Folder or URL of the cache.")
    weights: Path | None = option(None, help="Local weights of the teacher, if the cache was made from such.")
    source: Path | None = option(None, help="Files from which the features were imported.")
    ground_truth_regions: Path | None = option(
        None, help="Region features of the dataset's own boxes, if such were imported."
    )
    data_root: Path | None = option(
        None, help="Folder of the datasets, if the cache was made from another than the default."
    )
    dataset: str | None = option(None, help="Your own data, if the cache was made from them.", also="--data")
    ids: tuple[Path, ...] = option((), help="List of examples, if the cache was made for one; repeatable.")
    device: str | None = option(None, help="Device of the teacher [default: the device of the extraction].")


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairConfig(RecomputeOptions):
    """Configuration of `advl cache repair`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig(RecomputeOptions):
    """Configuration of `advl cache verify`."""

    recompute: int = option(
        0, help="Also encode this many random units of each modality again and compare them.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class ImportedFiles(Configuration):
    """Source files of imported features, and the naming of pictures in a detector's files."""

    source: Path = option(
        help="Region features of a detector: .tsv, .h5, UNITER's LMDB folder, or a folder of .npz or .json files; or "
        "a folder of .npy files named after the pictures. {split} in the path is replaced by the split under which "
        "the pictures are filed, such as val, or val2014 for pictures of COCO."
    )
    ground_truth_regions: Path | None = option(
        None,
        help="Region features of the dataset's own boxes, in the same form; they come first.",
        needs=("files of a detector",),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedExtraction(ExtractConfig, ImportedFiles):
    """An extraction from existing features; it is stored in the cache's record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig(ImportedFiles, DataRootOptions):
    """Configuration of `advl cache import`."""

    name: str = option(help="Name of the teacher that made the features.", such_as="vinvl")
    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl")
    split: str = option("train", help="Split of the dataset, or several joined, such as train+val.")
    output: Path | None = option(
        None, help="Folder of the cache [default: caches/import-NAME/DATASET/SPLIT].", output=Output(makes="cache")
    )
    dtype: Literal["float16", "float32", "int8"] | None = option(
        None,
        help="Data type of stored features [default: for regions that of their files, float16 or float32; for arrays "
        "float16].",
    )
    dry_run: bool = option(False, help="Only print what would be written, and the free disk space.")


def default_output(teacher: str, dataset: str, split: str, *, part: str = "") -> Path:
    """Return the default folder of a cache; `part` names the part of the split, "" for all of it."""
    return default_cache(teacher, dataset_label(dataset), split + part)


def part_name(shots: int | None, seeds: Sequence[int], ids: Sequence[Path] = ()) -> str:
    """Return the suffix of a folder's name for a part of a split; "" for the entire split."""
    if shots is not None:
        return f"-shots{shots}-seed{'-'.join(map(str, seeds))}"
    return "".join(f"-{file.stem}" for file in ids)


def of_pictures(config: PrepareConfig, size: int) -> ExtractConfig:
    """Return the extraction that stores pictures resized to squares of `size` pixels."""
    shared = ("dataset", "split", "output", "data_root", "on_error", "num_workers", "dry_run")
    options = {name: getattr(config, name) for name in shared}
    return ExtractConfig(teacher=f"{PICTURES}{size}", shard_rows=_PICTURE_ROWS, **options)


def without_network(config: ExtractConfig) -> ExtractConfig:
    """Return an extraction of pictures without the options of a network; other extractions are unchanged."""
    if not config.teacher.startswith(PICTURES):
        return config
    return dataclasses.replace(
        config, device="cpu", mixed_precision="no", modality="image", image_tokens="grid", confidence="none"
    )


def location_of(config: ExtractConfig) -> Location:
    """Return the location of an extraction's cache, existing or not."""
    part = part_name(config.shots, config.seed, config.ids)
    return config.output or default_output(config.teacher, config.dataset, config.split, part=part)
