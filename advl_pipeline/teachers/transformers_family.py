"""Opening a transformers model as a teacher, by its model type: text encoders, vision encoders, aligned pairs."""

from __future__ import annotations

from advl_pipeline.teachers.interface import Teacher
from advl_pipeline.teachers.options import OpenOptions
from advl_pipeline.teachers.text_families import open_text_tower
from advl_pipeline.teachers.transformers_files import load_part, transformers_source


def open_transformers(repository: str, options: OpenOptions) -> Teacher:
    """Open ORG/MODEL[@REVISION], or the folder of `options.weights`.

    Raises:
        WeightsUnavailable: files are missing or incomplete.
        ConfigError: a model type that is not supported.
    """
    import transformers

    source = transformers_source(repository, options)
    config = load_part(transformers.AutoConfig.from_pretrained, source, options, trust_remote_code=False)
    return Teacher(name=options.name, text=open_text_tower(source, config, options))
