"""Export a finished run with its model card, as a folder for transformers or for this package.

The tokenizer and the image processor are classes of transformers that produce the same text rows as the student.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ViltProcessor, ViTImageProcessor

from advl_pipeline.base.atomic import give_usual_mode, replacing
from advl_pipeline.base.compute import drawing
from advl_pipeline.base.configuration import json_text
from advl_pipeline.base.errors import ConfigError, enumeration
from advl_pipeline.base.outputs import require_outputs
from advl_pipeline.base.packages import read_tables
from advl_pipeline.base.tensors import save_tensors
from advl_pipeline.datasets.roots import without_folders
from advl_pipeline.evaluation.predict import FinishedRun, load_finished
from advl_pipeline.runs import names
from advl_pipeline.runs.results import read_config, read_json
from advl_pipeline.sharing.card import model_card, render_card
from advl_pipeline.sharing.config import ExportRunConfig
from advl_pipeline.sharing.push_pull import CARD_FILE, open_repository, upload
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.heads import described_heads
from advl_pipeline.students.interface import Student
from advl_pipeline.students.modernvbert import ModernVBert
from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.presets import family_facts, family_of
from advl_pipeline.students.tokenizer import TokenPart
from advl_pipeline.students.weight_files import run_files

_FIRST, _SECOND = -1, -2
"""Placeholders in a row for the tokens of a text and of the next text."""

BICUBIC = 3


def shared_tokenizer(
    student: Any, kind: str, *, image_tokens: Sequence[int] = (), types: bool = True
) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the student's special tokens around a text, and around a pair of texts.

    Args:
        student: a student with a tokenizer and text rows.
        kind: that of its head (`records.head_name`), on which special tokens may depend.
        image_tokens: ids of the picture's placeholders, inserted after the first token.
        types: whether the model has token types as input.
    """
    tokenizer = student.tokenizer
    core = tokenizer.copy()
    rows = [
        student.lay_out([TokenPart(token_ids=[mark], spans=[(0, 0)]) for mark in marks], kind)
        for marks in ((_FIRST,), (_FIRST, _SECOND))
    ]
    templates = []
    special: dict[str, int] = {}
    for row in rows:
        pieces = []
        for position, (token, token_type) in enumerate(zip(row.token_ids, row.types, strict=True)):
            if token in (_FIRST, _SECOND):
                pieces.append(f"${'A' if token == _FIRST else 'B'}:{token_type}")
                continue
            for index in (token, *(image_tokens if position == 0 else ())):
                name = core.id_to_token(index) or "<image>"
                special[name] = index
                pieces.append(f"{name}:{token_type}")
        templates.append(pieces)
    core.post_processor = TemplateProcessing(
        single=templates[0], pair=templates[1], special_tokens=[*special.items()]
    )
    is_pair = kind == "choice"
    # The student may reserve space for three parts; texts are truncated here at the same length.
    room = student.max_text_length - student.num_special_of(1 + is_pair) + len(image_tokens)
    names = {
        f"{role}_token": core.id_to_token(getattr(tokenizer, f"{role}_id")) for role in ("pad", "cls", "sep", "mask")
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=room + sum(token >= 0 for token in rows[is_pair].token_ids),
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
        **names,
    )


def shared_processor(student: PixelStudent, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a processor of pictures and texts; pictures are resized to the student's square."""
    side = student.config.image_size
    images = ViTImageProcessor(
        size={"height": side, "width": side},
        resample=BICUBIC,
        image_mean=list(student.pixel_mean),
        image_std=list(student.pixel_std),
    )
    return ViltProcessor(images, tokenizer)


HEAD_FILE = "head.safetensors"

OURS = "advl_pipeline.load_run"
"""Loader of folders that transformers cannot load."""


def transformers_form(student: Student) -> Mapping[str, Any] | None:
    """Return the mapping from a student to a model of transformers; None if transformers has no such model.

    `data/students.toml` contains it by family. `model` is the name of the class, or of one class per head; it is ""
    if the student already contains the model. `size` is the configuration's name of the number of classes. `body`
    replaces the prefix "model." of the student's names. `head` maps prefixes of the head's names to transformers'.
    Without `head`, transformers has no such head, and the head is saved in a file next to the model. `types` is
    whether the model has token types as input. Usage examples are in `usage.py.jinja`, by family and by input
    `reads`: pictures, regions or words.
    """
    form: Mapping[str, Any] | None = family_facts(student.name).get("transformers")
    return form


def transformers_model(form: Mapping[str, Any], student: Any, head: nn.Module, task: str) -> PreTrainedModel:
    """Return the transformers model with the weights of the student and its head.

    Args:
        form: output of `transformers_form`.

    Raises:
        ConfigError: the weights do not fit the model.
    """
    kind = form["model"] if isinstance(form["model"], str) else form["model"][task]
    config, names_of_head = copy.deepcopy(student.model.config), form.get("head", {})
    if names_of_head:
        config.update({form.get("size", "num_labels"): num_classes_of(head)})
    model: PreTrainedModel = (getattr(transformers, kind) if kind else type(student.model))(config)
    body = form.get("body", "")
    weights = {body + key.removeprefix("model."): value for key, value in student.state_dict().items()}
    for key, value in head.state_dict().items():
        weights |= {
            theirs + key.removeprefix(ours): value for ours, theirs in names_of_head.items() if key.startswith(ours)
        }
    try:
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise ConfigError(
            f"The weights of {student.name} do not fill its class of transformers.", why=str(error)
        ) from None
    return model.eval()


def num_classes_of(head: nn.Module) -> int:
    """Return the number of outputs of a head's last layer; 0 if answers are words."""
    return next((int(part.out_features) for part in reversed([*head.modules()]) if isinstance(part, nn.Linear)), 0)


Write = Callable[[Path], object]

Prepared = tuple[str, str, Sequence[Write]]
"""The loader of an export, the usage code of its card, and the functions that write its files."""


def run_export(config: ExportRunConfig) -> tuple[str, str | None]:
    """Export a run and its model card as a folder that transformers or this package loads.

    Everything is built in memory, and the repository is opened, before a file is written. Returns the name of the
    loader, and the URL of the upload, if any.

    Raises:
        ConfigError: the run does not exist, the output exists, or the student does not support the format.
        WeightsUnavailable: the run is not finished. StorageError: the disk or the hub refuses.
    """
    require_outputs(config)
    run = config.run
    # A detector's regions come from a cache, which users of the folder provide themselves.
    finished = load_finished(run, overrides={"regions": None} if read_config(run).get("regions") else None)
    if finished.hides_picture:
        raise ConfigError(
            "The run trained a student that was never shown a picture.",
            where=str(run),
            why="--hide-picture is a control; the folder would show it pictures",
            next_command="export a run without --hide-picture",
        )
    if len(finished.heads) != 1:
        raise ConfigError("A run of several heads cannot be exported.", where=str(run), why=", ".join(finished.heads))
    refusal = _not_for_transformers(run, finished)
    if config.to == "transformers" and refusal is not None:
        raise refusal
    is_ours = config.to == "safetensors" or refusal is not None
    model, usage, writes = (_for_this_package if is_ours else _for_transformers)(run, finished)
    card = model_card(run, finished.student, usage=usage, model=model)
    repository = config.push_to_hub
    info = None if repository is None else open_repository(repository, kind="model", private=config.private)
    url = None
    with replacing(config.output, SafetensorError) as partial:
        partial.mkdir(parents=True)
        for write in writes:
            write(partial)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        for file in (path for path in partial.rglob("*") if path.is_file()):
            give_usual_mode(file)
        if repository is not None and info is not None:
            url = upload(repository, info, partial, message="A student of ADVL")
    return model, url


def _not_for_transformers(run: Path, finished: FinishedRun) -> ConfigError | None:
    """Return the error if no class of transformers computes the run's outputs; None if there is one."""
    student, form = finished.student, transformers_form(finished.student)
    if form is None:
        what = f"transformers has no class for {student.name}."
        of_transformers = [name for name, facts in read_tables("students.toml").items() if "transformers" in facts]
        why = f"it has one for {enumeration(of_transformers)}"
    elif not isinstance(form["model"], str) and not finished.heads.keys() <= form["model"].keys():
        what = "transformers' class would not compute what this run does."
        why = "a run on choices places each tagged region at the words that name it, and that class cannot"
    else:
        return None
    return ConfigError(what, where=str(run), why=why, next_command="use --to safetensors, which this package loads")


def _for_transformers(run: Path, finished: FinishedRun) -> Prepared:
    student: Any = finished.student
    ((name, head),) = finished.heads.items()
    is_choice = name == "choice"
    form = transformers_form(student)
    assert form is not None
    with drawing():
        model: Any = transformers_model(form, student, head, name)
    labels = finished.label_names[name]
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    if isinstance(student, GenerativeStudent):
        reader: Any = student.processor
    else:
        in_text = (student.config.vocab_size - 1,) * student.num_visual if isinstance(student, ModernVBert) else ()
        tokenizer = shared_tokenizer(student, name, image_tokens=in_text, types=form.get("types", True))
        reader = shared_processor(student, tokenizer) if isinstance(student, PixelStudent) else tokenizer
    writes: list[Write] = [model.save_pretrained, reader.save_pretrained]
    has_own_head = "head" not in form and bool(head.state_dict())
    if has_own_head:
        writes.append(lambda folder: save_tensors(folder / HEAD_FILE, head.state_dict()))
    words: dict[str, Any] = {}
    answers = ["red", "blue"] if is_choice else []
    if isinstance(student, GenerativeStudent):
        answers = answers or list(labels[:3])
        instruction = student.instruction(described_heads(run)[name]["task"])
        closing = f"\n{instruction}" if instruction else ""
        normalised = student.config.length_normalised
        summed = normalised == "none" or (normalised == "choices" and not is_choice)
        over = "sum" if summed else "mean"
        words = {"closing": repr(closing), "lead": repr(student.chat.lead), "over_words": over}
        words |= {"end": repr(student.chat.end), "lays_out": bool(student.facts.template)}
    kind = type(model).__name__
    usage = render_card(
        "usage.py",
        reads=form["reads"],
        model=kind,
        family=family_of(student.name),
        has_own_head=has_own_head,
        texts=["Which colour is it?"] * max(1, len(answers)),
        answers=answers or None,
        **words,
    )
    return kind, usage, writes


def _for_this_package(run: Path, finished: FinishedRun) -> Prepared:
    options = without_folders(read_config(run)) | {"output": "."}
    result = read_json(run / names.RESULT)

    def write(folder: Path) -> None:
        for name in (*run_files(run), names.STUDENT_WEIGHTS, names.ADAPTER_WEIGHTS):
            if (run / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run / name, folder / name)
        (folder / names.CONFIG).write_text(json_text(options, sort_keys=True) + "\n", encoding="utf-8")
        finished_with = result | {"files": run_files(folder)}
        (folder / names.RESULT).write_text(json_text(finished_with, sort_keys=True) + "\n", encoding="utf-8")

    ((name, _),) = finished.heads.items()
    usage = render_card("usage.py", model=OURS, choices=["red", "blue"] if name == "choice" else None)
    return OURS, usage, [write]
