"""What one extraction is: a frozen teacher, a dataset split, and how the cache is written."""

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
from advl_pipeline.cache.config import DiskCacheOptions
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
"""A shard of pictures: 100 MB at 384 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig(DataRootOptions, ComputeConfig, DiskCacheOptions):
    """Configuration of `advl extract`."""

    teacher: str = option(help="Frozen teacher; see `advl teachers list`.", such_as="minilm-l6")
    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl")
    split: str = option("train", help="Split of the dataset, or several as one, such as train+val.")
    shots: int | None = option(
        None,
        help="Extract no more than the low-shot subset of this many questions needs, for each --seed.",
        minimum=1,
        identity="content",
    )
    ids: tuple[Path, ...] = rare_option(
        (),
        help="Extract no more than the examples of a list need, which `advl datasets subset` wrote; repeatable.",
        identity="content",
    )
    output: Location | None = option(
        None,
        help="Folder of the cache, or s3://BUCKET/PREFIX or gs://... [default: caches/TEACHER/DATASET/SPLIT, and the "
        "subset in the name where one is asked for].",
        identity="none",
        output=Output(makes="cache"),
    )
    text_style: TextStyle | None = option(
        None,
        help="How VCR's object tags become words [default: the dataset's].",
        needs=("data of VCR",),
    )
    modality: Modality = option("both", help="Towers of the teacher to run.")
    image_tokens: Literal["auto", "boxes", "grid", "none"] = option(
        "auto",
        help="Token features of a picture: one per box, or one per grid cell; auto takes boxes where the dataset "
        "gives any, else the grid.",
        needs=("pictures",),
    )
    grid_side: int = option(
        12,
        help="Most rows and columns that a grid is stored with; a larger one is averaged to so many, by area.",
        minimum=1,
        needs=("pictures", "a grid"),
    )
    dtype: Literal["float16", "float32", "int8"] = option("float16", help="How features are stored.")
    select_texts: float | None = rare_option(
        None,
        help="Store only the tokens of some texts, chosen so that all words come up, which hold this share of the "
        "words; of these texts those with a meaning. Elsewhere a word then has the mean of its stored features.",
        above=0,
        maximum=1,
        needs=("texts",),
    )
    batch_size: int | Literal["auto"] = option(
        _USUAL_BATCH,
        help="Units per forward pass; auto tries which number this machine encodes fastest.",
        minimum=1,
        identity="provenance",
    )
    shard_rows: int = rare_option(
        32768, help="Token rows per shard: the unit of commit, resume and repair.", minimum=1
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", help="What to do about malformed items and pictures that cannot be read."
    )
    confidence: bool = option(True, help="Also estimate confidences on labelled splits.", identity="provenance")
    folds: int = rare_option(
        5,
        help="Folds of the cross-fitted confidence.",
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
        help="Commit, branch or tag of the teacher's repository on the hub [default: the one that the cache "
        "was begun with, else main]. The cache records the commit.",
        identity="provenance",
        needs=("a repository of the hub",),
    )
    dry_run: bool = option(
        False,
        help="Only say what would be done: units, bytes, time, free disk, and from which epoch on a cache is "
        "cheaper than the teacher in every step. Without the teacher's weights its card tells units and bytes.",
        identity="none",
    )
    engine: Literal["local", "ray"] = option(
        "local",
        help="Work in this process, or in tasks of the Ray cluster at $RAY_ADDRESS (else one started here).",
        identity="none",
    )
    part: str | None = option(
        None,
        help="Encode part I of N of the shards: each process of a job array is given another part of the same N. The "
        "one that commits the last shard completes the cache [default: all].",
        metavar="I/N",
        identity="none",
    )
    ray_tasks: int | None = rare_option(
        None,
        help="Ray tasks that share the work [default: one per GPU for a cuda device, else one per CPU].",
        minimum=1,
        identity="none",
        needs=("ray",),
    )

    @property
    def own_part(self) -> ExtractionPart:
        """The part of the shards that this process encodes; raises `ConfigError` where `part` says none."""
        return WHOLE if self.part is None else parse_part(self.part)

    @property
    def units_per_pass(self) -> int:
        """Units per forward pass; the usual number where none was tried."""
        return _USUAL_BATCH if self.batch_size == "auto" else self.batch_size

    @property
    def stored_dtype(self) -> StoredDtype:
        """How token features are stored: pixels as they are."""
        return "uint8" if self.teacher.startswith(PICTURES) else self.dtype

    @property
    def compute_dtype(self) -> ComputeDtype:
        """What the teacher computes in, of a resolved configuration.

        Raises:
            ConfigError: fp16 is asked for.
        """
        if self.mixed_precision == "fp16":
            why = "features beyond the range of fp16 would be lost on the way"
            raise no_fp16("Teachers compute in fp32 or bf16.", why)
        return "bf16" if self.mixed_precision == "bf16" else "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig(DataRootOptions):
    """Configuration of `advl prepare`."""

    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl")
    split: str = option("train", help="Split of the dataset, or several as one, such as train+val.")
    student: str | None = option(
        None, help="Student over pixels that the pictures are for, as `advl finetune` makes it for the dataset."
    )
    student_option: tuple[str, ...] = option(
        (), help="Another setting of the student as KEY=VALUE, such as image_size=224.", metavar="KEY=VALUE"
    )
    size: int | None = option(
        None, help="Side of the stored squares in pixels [default: the student's].", minimum=1, maximum=4096
    )
    output: Location | None = option(
        None,
        help="Folder or URL of the cache of pictures [default: caches/pictures-SIZE/DATASET/SPLIT].",
        output=Output(makes="cache"),
    )
    on_error: Literal["fail", "skip"] = option("fail", help="What to do about pictures that cannot be read.")
    num_workers: int | None = option(
        None, help=f"Threads that decode [default: one per core, at most {MOST_WORKERS}].", minimum=1
    )
    dry_run: bool = option(False, help="Only say what would be done: pictures, bytes, free disk.")


@dataclass(frozen=True, kw_only=True)
class RecomputeOptions(Configuration):
    """What encodes units of a cache again: the teacher and the data that it was made from."""

    cache: Location = option(help="Folder or URL of the cache.")
    weights: Path | None = option(None, help="Local weights of the teacher, where it was made from such.")
    source: Path | None = option(None, help="Files that the features were imported from.")
    ground_truth_regions: Path | None = option(
        None, help="Region features of the dataset's own boxes, where such were imported."
    )
    data_root: Path | None = option(
        None, help="Folder of the datasets, where it was made from other than the usual one."
    )
    dataset: str | None = option(None, help="Data of your own that it was made from.", also="--data")
    ids: tuple[Path, ...] = option((), help="List of examples that it was made for; repeatable.")
    device: str | None = option(None, help="Where the teacher computes [default: where it did].")


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairConfig(RecomputeOptions, DiskCacheOptions):
    """Configuration of `advl cache repair`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig(RecomputeOptions):
    """Configuration of `advl cache verify`."""

    recompute: int = option(
        0, help="Also encode this many sampled units of each modality again and compare.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class ImportedFiles(Configuration):
    """Files that features are imported from, and how those of a detector name pictures."""

    source: Path = option(
        help="Region features of a detector: .tsv, .h5, UNITER's LMDB folder, or a folder of .npz or .json files; or "
        "a folder of .npy files named after the pictures. {split} in the path stands for the split that the pictures "
        "are filed under, such as val, or val2014 for pictures of COCO."
    )
    ground_truth_regions: Path | None = option(
        None,
        help="Region features of the dataset's own boxes, put first, likewise.",
        needs=("files of a detector",),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedExtraction(ExtractConfig, ImportedFiles):
    """An extraction whose teacher's features exist already; its cache's record holds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig(ImportedFiles, DataRootOptions):
    """Configuration of `advl cache import`."""

    name: str = option(help="Name for the teacher that the features came from.", such_as="vinvl")
    dataset: str = option(help=DATASET_HELP, also="--data", such_as="mine.jsonl")
    split: str = option("train", help="Split of the dataset.")
    output: Path | None = option(
        None, help="Folder of the cache [default: caches/import-NAME/DATASET/SPLIT].", output=Output(makes="cache")
    )
    dtype: Literal["float16", "float32", "int8"] | None = option(
        None,
        help="How features are stored [default: regions as their files hold them, in float16 or float32; arrays in "
        "float16].",
    )
    dry_run: bool = option(False, help="Only say what would be written, and the room there is.")


def default_output(teacher: str, dataset: str, split: str, *, part: str = "") -> Path:
    """Return the folder that a cache goes to by default; `part` names what of the split it is of, "" for all."""
    return default_cache(teacher, dataset_label(dataset), split + part)


def part_name(shots: int | None, seeds: Sequence[int], ids: Sequence[Path] = ()) -> str:
    """Return what a folder's name says about the part of a split that is in it; "" for the whole split."""
    if shots is not None:
        return f"-shots{shots}-seed{'-'.join(map(str, seeds))}"
    return "".join(f"-{file.stem}" for file in ids)


def of_pictures(config: PrepareConfig, size: int) -> ExtractConfig:
    """Return the extraction that stores pictures squeezed to squares of `size` pixels."""
    shared = ("dataset", "split", "output", "data_root", "on_error", "num_workers", "dry_run")
    options = {name: getattr(config, name) for name in shared}
    return ExtractConfig(teacher=f"{PICTURES}{size}", shard_rows=_PICTURE_ROWS, **options)


def without_network(config: ExtractConfig) -> ExtractConfig:
    """Return the options that an extraction has where pictures are stored; others are left as they are."""
    if not config.teacher.startswith(PICTURES):
        return config
    return dataclasses.replace(
        config, device="cpu", mixed_precision="no", modality="image", image_tokens="grid", confidence=False
    )


def location_of(config: ExtractConfig) -> Location:
    """Return where the cache of an extraction lies or is to lie."""
    part = part_name(config.shots, config.seed, config.ids)
    return config.output or default_output(config.teacher, config.dataset, config.split, part=part)
