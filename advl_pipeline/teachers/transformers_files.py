"""Loads transformers models from a folder or the hub, safely and completely.

Code of a repository is never run, files are never unpickled (`weights_only`), and a weight that the files lack is
an error, never a random number.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from advl_pipeline.errors import ConfigError, WeightsUnavailable
from advl_pipeline.locations import hub_obstacle
from advl_pipeline.packages import install_extra
from advl_pipeline.teachers.open_options import OpenOptions

_POOLER = "pooler."


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersSource:
    """A local folder (`local` true) or a repository of the hub, at a revision."""

    place: str
    revision: str | None = None
    local: bool = False


def transformers_source(repository: str, options: OpenOptions) -> TransformersSource:
    """Return where a model's files are: the folder of `--weights` when given, else ORG/MODEL or ORG/MODEL@REVISION.

    Raises:
        WeightsUnavailable: `--weights` names no folder with a config.json.
    """
    if options.weights is None:
        place, _, revision = repository.partition("@")
        return TransformersSource(place=place, revision=revision or None)
    if not (options.weights / "config.json").is_file():
        raise WeightsUnavailable(
            f"The weights of teacher {options.name!r} are not where --weights says.",
            where=str(options.weights),
            why="a transformers model is a folder with config.json, weights, and tokenizer or processor files",
        )
    return TransformersSource(place=str(options.weights), local=True)


def load_part(load: Callable[..., Any], source: TransformersSource, options: OpenOptions, **settings: Any) -> Any:
    """Call a `from_pretrained` for a config, tokenizer, processor or model; what is cached is used without a network.

    Raises:
        WeightsUnavailable: files are missing, damaged, or need a package that is not installed.
        ConfigError: the files are of a model that the installed transformers does not know.
    """
    for local_only in [True] if source.local else [True, False]:
        if not local_only and (obstacle := hub_obstacle()):
            raise _unavailable(source, options, obstacle)
        try:
            with _quiet():
                return load(source.place, revision=source.revision or "main", local_files_only=local_only, **settings)
        except OSError as error:
            if local_only and not source.local:
                continue
            raise _unavailable(source, options, first_line(error)) from None
        except (ImportError, RuntimeError, UnpicklingError, ValueError, KeyError) as error:
            where, why = source.place, first_line(error)
            if isinstance(error, ImportError):
                what = f"Teacher {options.name!r} needs a package that is not installed."
                needed = install_extra("sentencepiece")
                raise WeightsUnavailable(what, where=where, why=why, next_command=needed) from None
            if isinstance(error, (ValueError, KeyError)):
                what = f"Teacher {options.name!r} cannot be opened by the installed transformers."
                raise ConfigError(what, where=where, why=why) from None
            what = f"The files of teacher {options.name!r} are damaged or belong to another model."
            raise WeightsUnavailable(what, where=where, why=why) from None
    raise AssertionError("unreachable: the last attempt returns or raises")


def load_model(
    model_class: Any, config: Any, source: TransformersSource, options: OpenOptions, *, keep_pooler: bool = False
) -> Any:
    """Load a model in fp32, or build it with random weights where the options say so.

    A top-level `pooler` is dropped unless it is kept: no teacher runs it, and files may lack it.

    Raises:
        WeightsUnavailable: as `load_part`, or the files lack weights that the network runs.
    """
    if options.random_seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.random_seed)
            build = getattr(model_class, "from_config", None) or model_class._from_config
            model = build(config, dtype=torch.float32)
    else:
        model, loaded = load_part(
            model_class.from_pretrained,
            source,
            options,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
        missing = sorted(name for name in loaded["missing_keys"] if keep_pooler or not name.startswith(_POOLER))
        if missing:
            raise WeightsUnavailable(
                f"The files of teacher {options.name!r} lack weights of the network.",
                where=source.place,
                why=f"{len(missing)} tensors, such as {', '.join(missing[:3])}",
            )
    if not keep_pooler and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def read_beside(source: TransformersSource, name: str) -> Any:
    """Return what a JSON file beside the model's config holds, or None when there is none.

    Where the hub cannot be reached, a file that is not in its cache counts as none.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path: Any = Path(source.place) / name
    if not source.local:
        path = try_to_load_from_cache(source.place, name, revision=source.revision)
        if path is None and not hub_obstacle():
            with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
                path = hf_hub_download(source.place, name, revision=source.revision)
    # The library's cache also knows, by an object, which files a repository lacks.
    there = isinstance(path, str | Path) and Path(path).is_file()
    return json.loads(Path(path).read_text(encoding="utf-8")) if there else None


def _unavailable(source: TransformersSource, options: OpenOptions, why: str) -> WeightsUnavailable:
    if source.local:
        return WeightsUnavailable(
            f"The files of teacher {options.name!r} are incomplete.", where=source.place, why=why
        )
    return WeightsUnavailable(
        f"The weights of teacher {options.name!r} are not on this machine and could not be fetched.",
        where=f"hub repository {source.place}",
        why=why,
        next_command=f"where there is a network: hf download {source.place} --local-dir DIR; then --weights DIR",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing reports about weights: what matters is checked and raised here."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
