"""Safe and complete loading of transformers models from a folder or the hub.

Repository code is never run, files are never unpickled (`weights_only`), and a missing weight is an error, never a
random number.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.errors import ConfigError, WeightsUnavailable
from advl_pipeline.base.packages import install_extra
from advl_pipeline.base.repositories import (
    TOKENIZER_FILE,
    WEIGHTS,
    fetch,
    lacks_vocabulary,
    open_tokenizer,
    pinned,
    require_downloaded,
)
from advl_pipeline.datasets.problems import first_line
from advl_pipeline.teachers.open_options import OpenOptions

_POOLER = "pooler."


def transformers_folder(repository: str, options: OpenOptions) -> Path:
    """Return a folder with a model's descriptions: `--weights` if given, else one commit of ORG/MODEL[@REVISION].

    Its weights are fetched by `load_model`, once the descriptions are found to be supported.

    Raises:
        WeightsUnavailable: `--weights` is not a folder with a config.json, or one with pointers of Git LFS; or the
            repository cannot be fetched.
    """
    if options.weights is None:
        return fetch_teacher(repository, options, weights=())
    if not (options.weights / "config.json").is_file():
        raise options.bad_weights(
            "are not where --weights says",
            options.weights,
            "a transformers model is a folder with config.json, weights, and tokenizer or processor files",
        )
    require_downloaded(options.weights, what=f"weights of teacher {options.name!r}")
    return options.weights


def fetch_teacher(repository: str, options: OpenOptions, *, weights: Sequence[Sequence[str]]) -> Path:
    """Return the folder of a teacher's repository, at the options' revision if they name one.

    Raises:
        WeightsUnavailable: as `fetch`.
    """
    name = f"{repository.partition('@')[0]}@{options.revision}" if options.revision else repository
    return fetch(name, what=f"weights of teacher {options.name!r}", option="--weights", weights=weights)


def load_part(load: Callable[..., Any], folder: Path, options: OpenOptions, **settings: Any) -> Any:
    """Call `from_pretrained` of a config, processor or model on the files of a folder only.

    Raises:
        WeightsUnavailable: files are missing, damaged, or need a package that is not installed.
        ConfigError: the installed transformers does not support the model.
    """
    try:
        with _quiet():
            return load(str(folder), local_files_only=True, **settings)
    except OSError as error:
        raise options.bad_weights("are incomplete", folder, first_line(error)) from None
    except ImportError as error:
        raise _needs_package(folder, options, first_line(error)) from None
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"Teacher {options.name!r} cannot be opened by the installed transformers.",
            where=str(folder),
            why=first_line(error),
        ) from None
    except Exception as error:  # The library of tokenizers raises nothing narrower.
        raise options.bad_weights("are damaged or belong to another network", folder, first_line(error)) from None


def _needs_package(folder: Path, options: OpenOptions, why: str) -> WeightsUnavailable:
    following = install_extra("sentencepiece")
    return options.bad_weights("need a package that is not installed", folder, why, next_command=following)


def load_tokenizer(folder: Path, options: OpenOptions, *, num_states: int) -> Any:
    """Load a tokenizer from files that contain its vocabulary.

    Args:
        num_states: rows of the network's word embeddings; a tokenizer has at most as many pieces.

    Raises:
        WeightsUnavailable: as `load_part`, or the vocabulary is missing or belongs to another network.
    """
    is_sentencepiece = not (folder / TOKENIZER_FILE).is_file() and any(folder.glob("*.model"))
    if is_sentencepiece and importlib.util.find_spec("sentencepiece") is None:
        raise _needs_package(folder, options, "its tokenizer is a SentencePiece model")
    tokenizer = load_part(open_tokenizer, folder, options)
    num_pieces = tokenizer.vocab_size
    why = lacks_vocabulary(tokenizer, folder)
    if not why and num_states / 10 < num_pieces <= num_states:
        return tokenizer
    raise options.bad_weights(
        "hold no tokenizer of this network",
        folder,
        why or f"its tokenizer has {num_pieces} pieces, and the network has states for {num_states}",
    )


def load_model(
    model_class: Any, config: Any, repository: str, folder: Path, options: OpenOptions, *, keep_pooler: bool = False
) -> Any:
    """Load a model in fp32, or build it with random weights if the options ask for them.

    A top-level `pooler` is dropped unless it is kept: no teacher uses it, and files may lack it.

    Args:
        repository: its hub name, from which missing weights are fetched into the folder.
        folder: as from `transformers_folder`.

    Raises:
        WeightsUnavailable: as `load_part`, or the files lack weights that the network uses.
    """
    if options.random_seed is not None:
        with drawing(options.random_seed):
            build = getattr(model_class, "from_config", None) or model_class._from_config
            model = build(config, dtype=torch.float32)
    else:
        if options.weights is None:
            fetch_teacher(pinned(repository, folder), replace(options, revision=None), weights=WEIGHTS)
        model, loaded = load_part(
            model_class.from_pretrained,
            folder,
            options,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
        missing = sorted(name for name in loaded["missing_keys"] if keep_pooler or not name.startswith(_POOLER))
        if missing:
            raise options.bad_weights(
                "lack weights of the network", folder, f"{len(missing)} tensors, such as {', '.join(missing[:3])}"
            )
    if not keep_pooler and getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the weight reports of transformers: relevant problems are checked and raised here."""
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
