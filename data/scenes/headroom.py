"""`run_headroom`: how much of what the teachers know could help a student on a task at all.

A study of distillation on data where nothing is to be gained shows nothing, whatever the method. The table has the
floor (chance, and the most frequent answer), the student that sees the text alone, the student, and the ceiling: the
same student with the teachers' features as inputs. Runs are ordinary runs of `advl finetune` and `advl evaluate`.

`given:NAME` is the student that is given features, in training and in evaluation: a measuring device and no method,
since at inference it needs what a distilled student does without. Each teacher's features of a word go through a
trained linear map and are added to the embedding of each of the word's tokens; those of a box, or of a grid's cells,
are added to the raw features of the region that lies there. The maps start at zero, so that training starts from the
student as it is.

Shapes: N sequences, L text tokens, W words, B examples, S boxes, R visual tokens, D teacher width, E width of word
embeddings, F width of raw visual features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from advl_data.scenes.config import HeadroomConfig
from advl_pipeline.cache.reader import TeacherCache, open_cache
from advl_pipeline.configuration import build_config, config_to_dict
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.records import Example
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.roots import dataset_label
from advl_pipeline.datasets.words import WordPrior
from advl_pipeline.distillation.signal import TeacherSignal
from advl_pipeline.errors import ConfigError, advise, ineffective
from advl_pipeline.evaluation.config import EvaluateConfig
from advl_pipeline.evaluation.items import METRIC_OF_TASK
from advl_pipeline.evaluation.runner import run_evaluate
from advl_pipeline.folders import default_cache
from advl_pipeline.outputs import require_outputs
from advl_pipeline.students.interface import Perturbation, Student, StudentBatch, StudentOutput
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.saved import load_student_weights, read_description
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.inputs import check_caches
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.signals import SignalSource
from advl_pipeline.training.teacher_features import TeacherFeatures, cached_teacher, joined_teacher

TRAIN = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadroomRow:
    """Percent right of one kind of answerer, by seed where seeds matter; `runs` names its run folders."""

    name: str
    per_seed: tuple[float, ...]
    runs: tuple[Path, ...] = ()

    @property
    def mean(self) -> float:
        return sum(self.per_seed) / len(self.per_seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headroom:
    """The table of one task and split. `headroom` is the student with the teachers' features minus plain, in points.

    `is_fit`: that is at least `margin`.
    """

    dataset: str
    task: str
    split: str
    shots: int
    num_items: int
    rows: tuple[HeadroomRow, ...]
    headroom: float
    margin: float
    is_fit: bool


def run_headroom(config: HeadroomConfig) -> Headroom:
    """Measure a task's headroom; finished runs in the output folder are not run again.

    Raises:
        ConfigError: no such task, caches that are missing for one of the splits, or a student whose inputs take no
            features. IdentityMismatch: caches of other data, or runs of other settings in the folder.
        WeightsUnavailable: no student in the folder. DatasetError: data that are missing.
    """
    output = config.output or Path("runs/headroom") / dataset_label(config.dataset)
    require_outputs(config, output=output)
    student = read_description(config.init)["student"]
    task = _require_inputs(config)
    # Built once before anything is written: it says whether it can be given these features.
    build_student(f"{GIVEN}{student}", weights=config.init, overrides={"caches": list(map(str, config.cache))})
    caches = ", ".join(f"'{location}'" for location in config.cache)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "text only": ("text-only", {"student": student, "hide_picture": True}),
        "plain": ("plain", {"student": student}),
        "given the teachers' features": (
            "given",
            {"student": f"{GIVEN}{student}", "student_option": (f"caches=[{caches}]",)},
        ),
    }
    metric, found, document = METRIC_OF_TASK[task], {}, {}
    for name, (label, options) in kinds.items():
        runs, percents = [], []
        for seed in range(config.seeds):
            run = output / f"{task}-{label}-{config.shots}-{seed}"
            run_finetune(
                build_config(
                    FinetuneConfig,
                    {one: getattr(config, one) for one in ("dataset", "data_root", "init", "shots", "num_steps")},
                    {"output": run, "task": (task,), "method": "plain", "seed": seed},
                    options,
                )
            )
            evaluation = EvaluateConfig(run=run, on=(config.on,), data_root=config.data_root, probe=("none",))
            document = run_evaluate(evaluation).sets[config.on]
            runs.append(run)
            percents.append(float(document["metrics"][metric]))
        found[name] = HeadroomRow(name=name, per_seed=tuple(percents), runs=tuple(runs))
    trivial = document["trivial"][metric]
    floor = [
        HeadroomRow(name=name, per_seed=(trivial[key],))
        for name, key in (("chance", "chance"), ("most frequent answer", "majority"))
    ]
    text_only, plain, given = found.values()
    return Headroom(
        dataset=config.dataset,
        task=task,
        split=config.on,
        shots=config.shots,
        num_items=document["num_items"][metric],
        rows=(*floor, text_only, plain, given),
        headroom=given.mean - plain.mean,
        margin=config.margin,
        is_fit=given.mean - plain.mean >= config.margin,
    )


def _require_inputs(config: HeadroomConfig) -> str:
    """Return the task that is measured, once both splits are there with a cache of each teacher."""
    if config.on == TRAIN:
        raise ConfigError(
            "Headroom is measured on items that nothing is fitted on.", where="--on train", next_command="--on val"
        )
    tasks = (config.task,) if config.task else ()
    train = open_dataset(config.dataset, split=TRAIN, data_root=config.data_root, tasks=tasks)
    task = train.tasks[0]
    train = open_dataset(config.dataset, split=TRAIN, data_root=config.data_root, tasks=(task,))
    answers = train.label_names(task) or None
    scored = open_dataset(config.dataset, split=config.on, data_root=config.data_root, tasks=(task,), answers=answers)
    nested_subset(train, config.shots, 0)
    by_split: dict[str, dict[str, TeacherCache]] = {TRAIN: {}, config.on: {}}
    for location in config.cache:
        cache = open_cache(location)
        split = cache.identity["dataset"]["split"]
        if split not in by_split:
            why = f"it is of {split}; read are {TRAIN} and {config.on}"
            raise ConfigError("This cache is of a split that is not read.", where=str(location), why=why)
        by_split[split][cache.teacher_name] = cache
    for name in sorted({name for of_split in by_split.values() for name in of_split}) or ["NAME"]:
        for split in (split for split, of_split in by_split.items() if name not in of_split):
            raise ConfigError(
                f"A cache is missing: of {name}, of {split}.",
                where="--cache",
                why="features are inputs in training and in evaluation",
                next_command=advise(
                    ["advl", "extract", "--teacher", name, "--dataset", config.dataset, "--split", split],
                    note="then the same command with its cache",
                    again=["--cache", str(default_cache(name, dataset_label(config.dataset), split))],
                ),
            )
    for dataset in (train, scored):
        check_caches(list(by_split[dataset.split].values()), dataset, data_root=config.data_root)
    return task


def headroom_as_dict(found: Headroom) -> dict[str, Any]:
    """Return the table as plain types, with the mean of each row."""
    document = config_to_dict(found)
    for row, told in zip(found.rows, document["rows"], strict=True):
        told["mean"] = row.mean
    return document


GIVEN = "given:"
"""Stands before the name of a student that is given its teachers' features: a measuring device, in no list."""


@dataclass(kw_only=True)
class GivenBatch(StudentBatch):
    """The student's own batch with what the teachers say of it; the common fields are those of `inner`."""

    inner: StudentBatch
    signal: TeacherSignal

    @classmethod
    def of(cls, inner: StudentBatch, signal: TeacherSignal) -> GivenBatch:
        common = {item.name: getattr(inner, item.name) for item in fields(StudentBatch)}
        return cls(**common, inner=inner, signal=signal)

    def to(self, device: torch.device) -> Self:
        self.inner = self.inner.to(device)
        self.signal = self.signal.to(device)
        for item in fields(StudentBatch):
            setattr(self, item.name, getattr(self.inner, item.name))
        return self

    def blanked(self) -> Self:
        """Return the batch with pictures that show nothing; a teacher has nothing to say of such a picture."""
        return replace(self, inner=self.inner.blanked(), signal=replace(self.signal, vision={}))


class GivenFeatures(Student):
    """A student and the linear maps from each teacher's words and regions to its inputs."""

    def __init__(self, inner: Student, caches: Sequence[TeacherCache]) -> None:
        """Args:
        inner: the student that is given features.
        caches: of all splits that will be read, those of one teacher next to one another or not.

        Raises:
            ConfigError: a student that does not say what can be added to its inputs, no cache, or no teacher among
                them with features of words or of boxes.
        """
        super().__init__()
        self.inner = inner
        self.name = f"{GIVEN}{inner.name}"
        self.hidden_size, self.pooled_size, self.places = inner.hidden_size, inner.pooled_size, inner.places
        self.caches = tuple(str(cache.path) for cache in caches)
        embedding_width, visual_width = inner.input_widths()
        by_name: dict[str, list[TeacherFeatures]] = {}
        for cache in caches:
            by_name.setdefault(cache.teacher_name, []).append(cached_teacher(cache))
        # Each teacher once, over the splits of all of its caches.
        teachers = [joined_teacher(of_teacher, of_teacher) for of_teacher in by_name.values()]
        # No word is selected here, so that none is more informative than another.
        self.source = SignalSource(teachers, prior=WordPrior(idf={}, unseen=1.0))
        widths = self.source.widths()
        self.text_teachers = [name for name, width in widths.items() if width.text_token]
        self.vision_teachers = [name for name, width in widths.items() if width.image_region]
        if not self.text_teachers and not self.vision_teachers:
            raise ConfigError(
                "None of the teachers has features of words or of boxes to give.",
                where=", ".join(self.caches) or "caches",
                next_command=advise(
                    "advl extract --image-tokens boxes --teacher NAME".split(),
                    note="or give a cache of a text teacher",
                ),
            )
        self.word_maps = _maps((widths[name].text_token for name in self.text_teachers), embedding_width)
        self.region_maps = _maps((widths[name].image_region for name in self.vision_teachers), visual_width)

    def collate(self, examples: Sequence[Example]) -> GivenBatch:
        inner = self.inner.collate(examples)
        signal = self.source.signal(examples, inner, with_confidence=False, places=self.inner.places)
        return GivenBatch.of(inner, signal)

    def encode(
        self,
        batch: StudentBatch,
        *,
        perturbation: Perturbation | None = None,
        mask_visual: bool = False,
        need_relevance: bool = False,
    ) -> StudentOutput:
        assert isinstance(batch, GivenBatch)
        if perturbation is not None:
            raise ineffective("--adversarial", why=f"{self.name} is not finetuned adversarially")
        given = Perturbation(text_NLE=self._of_words(batch), visual_NRF=self._of_regions(batch))
        return self.inner.encode(
            batch.inner, perturbation=given, mask_visual=mask_visual, need_relevance=need_relevance
        )

    def text_tokens(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.text_tokens(examples)

    @property
    def max_text_length(self) -> int | None:
        return self.inner.max_text_length

    def count_cut(self, examples: Sequence[Example]) -> int:
        return self.inner.count_cut(examples)

    def cut_texts(self) -> None:
        self.inner.cut_texts()

    def build_head(self, task: str, num_classes: int) -> nn.Module:
        return self.inner.build_head(task, num_classes)

    def config_dict(self) -> dict[str, Any]:
        return {"caches": list(self.caches), "inner": self.inner.config_dict()}

    def _of_words(self, batch: GivenBatch) -> torch.Tensor | None:
        """Return (N, L, E): the sum of the teachers' mapped features of the word that each token belongs to."""
        assert batch.signal.words is not None
        word_NL = batch.signal.words.word_of_token_NL
        mapped: list[torch.Tensor] = []
        for name, linear in zip(self.text_teachers, self.word_maps, strict=True):
            signal = batch.signal.text[name]
            assert signal.words_NWD is not None
            mapped_NWE = linear(signal.words_NWD / math.sqrt(signal.words_NWD.shape[-1]))
            if signal.word_mask_NW is not None:
                mapped_NWE = mapped_NWE * signal.word_mask_NW[..., None]
            index_NLE = word_NL.clamp(min=0)[..., None].expand(-1, -1, mapped_NWE.shape[-1])
            mapped.append(mapped_NWE.gather(1, index_NLE) * (word_NL >= 0)[..., None])
        return torch.stack(mapped).sum(0) if mapped else None

    def _of_regions(self, batch: GivenBatch) -> torch.Tensor | None:
        """Return (N, R, F): the sum of the teachers' mapped features of the place where each visual token lies."""
        repeats_B = torch.tensor(batch.num_candidates, device=batch.box_index_NR.device)
        mapped: list[torch.Tensor] = []
        for name, linear in zip(self.vision_teachers, self.region_maps, strict=True):
            signal = batch.signal.vision.get(name)
            if signal is None or signal.regions_BSD is None:
                continue
            assert signal.region_mask_BS is not None
            mapped_BSF = linear(signal.regions_BSD / math.sqrt(signal.regions_BSD.shape[-1]))
            mapped_BSF = mapped_BSF * signal.region_mask_BS[..., None]
            if signal.shares_BSR is not None:
                mapped_BSF = (signal.shares_BSR > 0).to(mapped_BSF.dtype).transpose(1, 2) @ mapped_BSF
            mapped.append(mapped_BSF.repeat_interleave(repeats_B, dim=0, output_size=batch.num_sequences))
        return torch.stack(mapped).sum(0) if mapped else None


def _maps(widths: Iterable[int | None], target: int) -> nn.ModuleList:
    """Return a linear map from each width, which gives nothing as long as it is untrained."""
    maps = [nn.Linear(width, target, bias=False) for width in widths if width is not None]
    for linear in maps:
        nn.init.zeros_(linear.weight)
    return nn.ModuleList(maps)


def build(name: str, weights: Path | None, overrides: Mapping[str, Any]) -> GivenFeatures:
    """Build the student from its own pretrained weights, or from a folder that a run of it wrote.

    Args:
        name: `given:` and the name of the student.
        overrides: `caches`, a list of folders or URLs; the rest is the student's own.

    Raises:
        ConfigError: no caches are named, or as `GivenFeatures` says.
    """
    inner_name = name.removeprefix(GIVEN)
    own = {key: value for key, value in overrides.items() if key != "caches"}
    if weights is not None and weights.is_dir() and read_description(weights)["student"] == name:
        saved, load = load_student_weights(weights, name)
        inner = build_student(inner_name, overrides=saved["inner"] | own)
    else:
        saved, load = {}, None
        inner = build_student(inner_name, weights=weights, overrides=own)
    locations = overrides.get("caches", saved.get("caches"))
    if not locations:
        raise ConfigError(
            f"{name} needs the caches that it reads.",
            where="--student-option",
            next_command="""--student-option 'caches=["caches/NAME/DATASET/train", "caches/NAME/DATASET/val"]'""",
        )
    student = GivenFeatures(inner, [open_cache(location) for location in locations])
    if load is not None:
        load(student)
    return student
