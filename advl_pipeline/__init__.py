"""ADVL: distil frozen vision and text experts into a vision-language model while you finetune it.

Data flows one way: datasets -> teachers -> extraction -> cache -> training -> evaluation -> reporting.
Phase 1 (`extraction`) runs each frozen teacher once over a dataset; phase 2 (`training`) streams its caches.
Only the cache connects them, and any Zarr v3 reader opens it without this package.

These functions are the public Python interface (`docs/python.md`); the modules below are private. Keyword arguments
are named after the command-line flags: `lora_rank` for `--lora-rank`. Heavy modules are imported on first use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from advl_pipeline.base.errors import AdvlError

if TYPE_CHECKING:
    from pathlib import Path

    from advl_pipeline.cache.reader import open_cache as open_cache
    from advl_pipeline.cache.torch_dataset import CachedFeatures as CachedFeatures
    from advl_pipeline.cache.torch_dataset import FeatureCollator as FeatureCollator
    from advl_pipeline.confidence.match_probe import MatchProbe as MatchProbe
    from advl_pipeline.datasets.pictures import picture_unit as picture_unit
    from advl_pipeline.datasets.records import Dataset
    from advl_pipeline.datasets.records import picture_unit_id as picture_unit_id
    from advl_pipeline.datasets.records import text_unit_id as text_unit_id
    from advl_pipeline.distillation.projected import distance as distance
    from advl_pipeline.evaluation.official_metrics import snli_ve_accuracy as snli_ve_accuracy
    from advl_pipeline.evaluation.official_metrics import vqa_accuracy as vqa_accuracy
    from advl_pipeline.evaluation.predict import AnsweringRun
    from advl_pipeline.evaluation.predict_files import PredictResult
    from advl_pipeline.evaluation.runner import EvaluateResult
    from advl_pipeline.extraction.run import ExtractResult
    from advl_pipeline.teachers.image_tower import PixelImageTower as PixelImageTower
    from advl_pipeline.teachers.interface import Teacher as Teacher
    from advl_pipeline.teachers.open_options import OpenOptions as OpenOptions
    from advl_pipeline.teachers.vision_backbone import ImageFeatures as ImageFeatures
    from advl_pipeline.teachers.vision_backbone import PixelSettings as PixelSettings
    from advl_pipeline.teachers.vision_backbone import VisionBackbone as VisionBackbone
    from advl_pipeline.training.own_loop import HiddenStates as HiddenStates
    from advl_pipeline.training.own_loop import LayerStates as LayerStates
    from advl_pipeline.training.own_loop import RelationalDistillation as RelationalDistillation
    from advl_pipeline.training.run import FinetuneResult

__version__ = "0.3.0"

_NAMES_OF = {
    "cache.reader": ("open_cache",),
    "cache.torch_dataset": ("CachedFeatures", "FeatureCollator"),
    "confidence.match_probe": ("MatchProbe",),
    "datasets.pictures": ("picture_unit",),
    "datasets.records": ("picture_unit_id", "text_unit_id"),
    "distillation.projected": ("distance",),
    "evaluation.official_metrics": ("snli_ve_accuracy", "vqa_accuracy"),
    "teachers.image_tower": ("PixelImageTower",),
    "teachers.interface": ("Teacher",),
    "teachers.open_options": ("OpenOptions",),
    "teachers.vision_backbone": ("ImageFeatures", "PixelSettings", "VisionBackbone"),
    "training.own_loop": ("HiddenStates", "LayerStates", "RelationalDistillation"),
}
"""Module -> its public names for custom loops, teachers and scores, imported on first use."""
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = ["AdvlError", "evaluate", "extract", "finetune", "load_run", "open_data", "predict", *_MODULE_OF]

Rows: TypeAlias = Iterable[Mapping[str, Any]]
Data: TypeAlias = str | os.PathLike[str] | Rows | Mapping[str, Rows]
"""A dataset name, a file or folder, rows, or split -> rows. A `datasets.Dataset` counts as rows."""

ConfigT = TypeVar("ConfigT")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def extract(*, teacher: str | Teacher, data: Data, **options: Any) -> ExtractResult:
    """Run a frozen teacher once over a split and write its cache; an interrupted extraction resumes (`advl extract`).

    Args:
        teacher: a name from `advl teachers list`, or an opened `Teacher`.
        data: a dataset name, a path, rows, or split -> rows.
        options: other options of `advl extract`, such as `split` or `output`.

    Returns:
        The `path` of the cache, the counts of encoded units, and the `cache`, opened, if it is complete.

    Raises:
        AdvlError: on any failure; states what is wrong, where, why, and what to do next.
    """
    from advl_pipeline.extraction.config import ExtractConfig
    from advl_pipeline.extraction.prepare import prepare_extract
    from advl_pipeline.extraction.run import run_extract

    opened = None if isinstance(teacher, str) else teacher
    name = getattr(teacher, "name", teacher)
    config = _configured(ExtractConfig, options | {"teacher": name}, data)
    return run_extract(prepare_extract(config, by_name=opened is None), opened)


def open_data(
    data: Data,
    split: str = "train",
    *,
    shots: int | None = None,
    seed: int = 0,
    data_root: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Open the examples of a split: `dataset[place]` has the picture, the candidates and the label.

    Args:
        data: a dataset name, a path, rows, or split -> rows.
        split: such as train, or several joined by +.
        shots: the number of labelled questions that `advl finetune --shots` trains on; None for the whole split.
        seed: of these questions.
        data_root: as for `advl finetune`.

    Raises:
        AdvlError: the data are missing or malformed, or have fewer questions.
    """
    from pathlib import Path

    from advl_pipeline.datasets.lowshot import nested_subset
    from advl_pipeline.datasets.registry import open_splits, read_dataset
    from advl_pipeline.datasets.subsets import Selected

    root = None if data_root is None else Path(data_root)
    dataset = read_dataset(_name_of(data, root), root)
    whole = open_splits(dataset, split, data_root=root)
    return whole if shots is None else Selected(whole, nested_subset(whole, shots, seed))


def finetune(*, data: Data, output: str | os.PathLike[str], **options: Any) -> FinetuneResult:
    """Finetune a student while streaming teacher caches; an interrupted run resumes (`advl finetune`).

    Args:
        data: a dataset name, a path, rows, or split -> rows.
        output: the run folder.
        options: other options of `advl finetune`, such as `cache`, `student`, `init`, `method` or `shots`.

    Returns:
        `output`, the run folder, and `summary`, the contents of its result.json.

    Raises:
        AdvlError: on any failure; states what is wrong, where, why, and what to do next.
    """
    from advl_pipeline.training.config import FinetuneConfig
    from advl_pipeline.training.prepare import prepare_finetune
    from advl_pipeline.training.run import run_finetune

    return run_finetune(prepare_finetune(_configured(FinetuneConfig, options | {"output": output}, data)))


def evaluate(run: str | os.PathLike[str], **options: Any) -> EvaluateResult:
    """Score a finished run on test and shifted sets (`advl evaluate`).

    Args:
        run: the run folder.
        options: other options of `advl evaluate`, such as `on` or `probe`.

    Returns:
        `sets`: test set -> its metrics and the other contents of its result file.

    Raises:
        AdvlError: on any failure; states what is wrong, where, why, and what to do next.
    """
    from advl_pipeline.evaluation.config import EvaluateConfig
    from advl_pipeline.evaluation.prepare import prepare_scoring
    from advl_pipeline.evaluation.runner import run_evaluate

    return run_evaluate(prepare_scoring(_configured(EvaluateConfig, options | {"run": run})))


def predict(run: str | os.PathLike[str], **options: Any) -> PredictResult:
    """Write the predictions of a finished run on a split to a file (`advl predict`).

    Args:
        run: the run folder.
        options: other options of `advl predict`, such as `on` or `output`.

    Returns:
        The `path` of the file and the number of questions.

    Raises:
        AdvlError: on any failure; states what is wrong, where, why, and what to do next.
    """
    from advl_pipeline.evaluation.config import PredictConfig
    from advl_pipeline.evaluation.predict_files import run_predict
    from advl_pipeline.evaluation.prepare import prepare_scoring

    return run_predict(prepare_scoring(_configured(PredictConfig, options | {"run": run})))


def load_run(path: str | os.PathLike[str], *, device: str = "auto") -> AnsweringRun:
    """Load a finished run to answer questions: `load_run(path).answer(picture, question, choices)`.

    Args:
        path: the run folder.
        device: such as cpu or cuda:0.

    Raises:
        AdvlError: the folder contains no finished run, or the run was trained on several tasks.
    """
    from pathlib import Path

    from advl_pipeline.evaluation.predict import open_run

    return open_run(Path(path), device=device)


def _configured(cls: type[ConfigT], options: Mapping[str, Any], data: Data | None = None) -> ConfigT:
    from pathlib import Path

    from advl_pipeline.base.configuration import build_config

    values = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    if data is None:
        return build_config(cls, values)
    # Rows are written only after everything else is validated.
    build_config(cls, values, {"dataset": "given"})
    root = values.get("data_root")
    return build_config(cls, values, {"dataset": _name_of(data, Path(root) if root else None)})


def _name_of(data: Data, root: Path | None) -> str:
    """Return the name of data; rows are written first."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    from advl_pipeline.datasets.own.kept_rows import keep_rows

    return str(keep_rows(data, pictures=root))
