"""The model card: a student's training data, teachers, scores, and loading code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.base.inert import Markdown, inert_code, inert_markdown, inert_text
from advl_pipeline.cache.identity import PROVENANCE_FILE, digest
from advl_pipeline.datasets.cards import card_names, load_card
from advl_pipeline.datasets.roots import dataset_label, name_in_records, without_folders
from advl_pipeline.reporting import wording
from advl_pipeline.reporting.run_view import measures_of, scores_of
from advl_pipeline.reporting.tables import as_markdown
from advl_pipeline.runs import names
from advl_pipeline.runs.evaluations import read_documents, read_evaluation
from advl_pipeline.runs.results import read_caches, read_config, read_json, read_result
from advl_pipeline.sharing.hub_facts import model_metadata
from advl_pipeline.students.generative import GenerativeStudent
from advl_pipeline.students.interface import Student
from advl_pipeline.students.presets import family_of
from advl_pipeline.students.registry import StudentFamily, families
from advl_pipeline.studies.gather import gather_study
from advl_pipeline.studies.plan import studies_of
from advl_pipeline.teachers.registry import show_teacher
from advl_pipeline.training.config import config_of_run
from advl_pipeline.training.facts import finetune_command


def render_card(template: str, **values: Any) -> str:
    """Render a template of this folder; every variable must have a value, and is shown as text in Markdown."""
    finalize = inert_markdown if template.endswith(".md") else None
    page = jinja2.Environment(
        autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=finalize
    )
    source = (resources.files(__package__) / f"{template}.jinja").read_text(encoding="utf-8")
    return inert_text(page.from_string(source).render(**values))


def model_card(run: Path, student: Student, *, usage: str, model: str) -> str:
    """Return the card of a finished run as Markdown.

    Args:
        run: folder of the run; for a run of a study, the card includes the study's table of scores and controls.
        student: the trained student.
        model: name of its loader: a class of transformers, or `load_run` of this package.
    """
    config, result, identity = read_config(run), read_result(run), read_json(run / names.IDENTITY)
    study, seeds = "", list[int]()
    if (folder := next((place for place, _ in studies_of(run)), None)) is not None:
        gathered = gather_study(folder)
        seeds = sorted({each.seed for each in gathered.runs if each.state == "finished"})
        # The table's headings are nested below one of the card's.
        table = as_markdown(gathered, title=f"In the study {gathered.study.name}").strip()
        study = re.sub("^#", "###", table, flags=re.MULTILINE)
    # Read completely, so that a damaged evaluation is refused.
    documents = {
        name: evaluation.document for name in read_documents(run) if (evaluation := read_evaluation(run, name))
    }
    family = families().get(family_of(student.name), StudentFamily())
    is_ours = model.startswith("advl_pipeline.")
    # lmms-eval's names of the public test sets.
    known = (load_card(name).facts.get("lmms_eval") for name in card_names())
    lmms_eval = list(dict.fromkeys(task for task in known if task))
    environment = read_json(run / names.ENVIRONMENT)
    return render_card(
        "card.md",
        metadata=Markdown(
            model_metadata(
                name=student.name,
                library="advl" if is_ours else "transformers",
                dataset=str(config["dataset"]),
                init=config.get("init"),
                is_generative=isinstance(student, GenerativeStudent),
                documents=documents,
            )
        ),
        is_ours=is_ours,
        student=student.name,
        title=family.title,
        model=model,
        usage=inert_code(usage),
        lmms_eval=lmms_eval if isinstance(student, GenerativeStudent) and not is_ours else (),
        notes=[*result.caveats, *(f"Not proven: {item}." for item in [family.unproven] if item)],
        dataset=identity["dataset"] | {"name": dataset_label(config["dataset"])},
        tasks=", ".join(config["task"]),
        num_labelled=result.num_labelled,
        shots=config["shots"],
        seed=config["seed"],
        seeds=seeds,
        teachers=[_teacher(cache) for cache in read_caches(run)],
        method=config["method"],
        recipe=result.recipe,
        command=inert_code(finetune_command(config_of_run(without_folders(config), where=str(run / names.CONFIG)))),
        scores=scores_of(documents),
        measures=measures_of(documents),
        written=wording.WRITTEN.removeprefix(", "),
        by_type=[
            f"{test_set}, {wording.metric_name(metric)}: "
            + ", ".join(f"{kind or 'others'} {part.accuracy:.1f} of {part.num_items}" for kind, part in kinds.items())
            for test_set, document in documents.items()
            for metric, kinds in document.by_question_type.items()
            if len(kinds) > 1
        ],
        study=Markdown(study),
        libraries=", ".join(f"{name} {version}" for name, version in environment["libraries"].items()),
    )


def _teacher(cache: Mapping[str, Any]) -> dict[str, str]:
    identity = cache["identity"]
    name = str(identity["teacher"]["name"])
    try:
        licence = show_teacher(name).summary.licence
    except ConfigError:
        licence = ""
    provenance = Path(cache["path"]) / PROVENANCE_FILE
    called = name_in_records(identity, read_json(provenance) if provenance.exists() else {})
    split = f"{called}/{identity['dataset']['split']}"
    return {"name": name, "licence": licence, "split": split, "identity": digest(identity)}
