"""`advl prepare`: pictures stored once, for students over pixels."""

from __future__ import annotations

import dataclasses

import click

from advl_pipeline.extraction.config import PrepareConfig, of_pictures

from .extract import say_extraction
from .options import config_options, json_option, print_json
from .own_data import say_what_it_is


@click.command("prepare")
@config_options(PrepareConfig)
@json_option
def command(config: PrepareConfig, as_json: bool) -> None:
    """Decode a split's pictures once and store them as a student over pixels sees them.

    `advl finetune`, `evaluate` and `predict` then read them in place of decoding: the same pixels, far faster.
    The same command resumes an interrupted one, and `advl cache verify` checks what is stored.

    \b
    advl prepare --dataset vcr --split train --student vilt
    advl prepare --dataset vcr --split val --size 112 --dry-run
    """
    from advl_pipeline.datasets.registry import require_names
    from advl_pipeline.students.registry import require_student

    say_what_it_is([config.dataset], config.data_root)
    require_names(config.dataset, split=config.split, data_root=config.data_root)
    if config.student is not None:
        require_student(config.student)
    from advl_pipeline.extraction.run import run_extract
    from advl_pipeline.training.stored_pictures import picture_size

    size = config.size or picture_size(
        config.student,
        config.student_option,
        dataset=config.dataset,
        split=config.split,
        data_root=config.data_root,
    )
    extraction = of_pictures(config, size)
    result = run_extract(extraction)
    if as_json:
        print_json({"size": size, **dataclasses.asdict(result)})
        return
    say_extraction(result, extraction)
