"""Hub repositories: one commit is fetched into one folder, and models are opened only from there.

Nothing is loaded by name: a library that requests files one by one replaces missing ones by defaults. Without a
network the same files are read from the hub's cache.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advl_pipeline.base.atomic import writing
from advl_pipeline.base.errors import ConfigError, WeightsUnavailable, advise, again
from advl_pipeline.base.locations import hub_obstacle

DESCRIPTIONS = ("*.json", "*.txt", "*.jinja", "*.model")
"""Configurations, tokenizers and processors, including those of a sentence encoder's modules."""

_OF_MODULES = "[0-9]*/pytorch_model.bin"
"""Layers of sentence encoders, which may be in the older format beside a network in the newer one."""

WEIGHTS = (("*.safetensors", _OF_MODULES), ("pytorch_model.bin", "pytorch_model-*.bin", _OF_MODULES))
"""Weight formats; the first that a repository has is fetched."""

_LEFT_OUT = ("[!0-9]*/*", "open_clip*", "consolidated*")
"""Copies of the weights for other programs. Module folders begin with a digit."""

TAKEN_OVER = frozenset({"nomic_bert"})
"""Model types whose repositories bring code of their own, and of which transformers has the same network."""

TOKENIZER_FILE = "tokenizer.json"

HUB_PREFIX = "hf:"
"""Prefix of a repository name where a path is allowed too."""


def fetch(name: str, *, what: str, option: str, weights: Sequence[Sequence[str]] = WEIGHTS) -> Path:
    """Fetch one commit of a repository and return its folder, which is named after the commit.

    A branch or tag is resolved by the hub; without a network, to its last known commit.

    Args:
        name: ORG/MODEL, or ORG/MODEL@REVISION.
        what: for errors, such as "weights of teacher 'roberta-l'".
        option: for errors, the option that accepts a folder with files fetched elsewhere.
        weights: file patterns by weight format; the first available is fetched. Empty for descriptions only.

    Raises:
        WeightsUnavailable: files are missing and cannot be fetched.
        StorageError: the disk is full or failed.
    """
    obstacle = hub_obstacle()
    try:
        folder = _snapshot(name, DESCRIPTIONS, is_local=bool(obstacle))
        for patterns in weights:
            _snapshot(pinned(name, folder), patterns, is_local=bool(obstacle))
            if _is_complete(folder, patterns):
                return folder
        if not weights:
            return folder
        why, following = obstacle, ""
        if not obstacle:
            missing = [shard.name for patterns in weights for shard in _missing_shards(folder, patterns)]
            why = f"it has no {' or '.join(patterns[0] for patterns in weights)}"
            if missing:
                why = f"it lacks {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}, which its index names"
            following = again("name a repository that holds weights")
    except Exception as error:  # The library raises whatever its dependencies do.
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            with writing(str(error.filename or "the cache of the hub")):
                raise
        why, following = refusal(error, name, obstacle)
    repository, _, revision = name.partition("@")
    raise WeightsUnavailable(
        f"The {what} are not on this machine and could not be fetched.",
        where=f"hf:{name}",
        why=why,
        next_command=following
        or f"where there is a network: hf download {repository} {f'--revision {revision} ' if revision else ''}"
        f"--local-dir DIR; then {option} DIR",
    ) from None


def is_at_hand(name: str) -> bool:
    """Return whether a repository's weights and descriptions are in the hub's cache; nothing is fetched."""
    try:
        folder = _snapshot(name, DESCRIPTIONS, is_local=True)
        return any(
            _is_complete(_snapshot(pinned(name, folder), patterns, is_local=True), patterns) for patterns in WEIGHTS
        )
    except (OSError, ValueError):
        return False


def pinned(name: str, folder: Path) -> str:
    """Return a repository's name with the commit of its folder."""
    return f"{name.partition('@')[0]}@{folder.name}"


def refusal(error: BaseException, name: str, obstacle: str = "") -> tuple[str, str]:
    """Return why a hub request failed and what to do, for an error of the hub's library.

    Args:
        obstacle: why the hub was not contacted; then there is nothing to do here.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RevisionNotFoundError

    # The library wraps the hub's response in other errors.
    causes = [error]
    while (behind := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(behind)
    repository, _, revision = name.partition("@")
    answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if isinstance(error, HFValidationError):
        return str(error).partition("\n")[0], again("name a repository as ORG/MODEL")
    if obstacle:
        return obstacle, ""
    if isinstance(answer, RevisionNotFoundError):
        return f"it has no revision {revision}", again(f"leave out @{revision}, or name another commit")
    if answer is None:
        cause = causes[-1]
        why = f"the transfer broke: {type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        return why, again("run the same command again: the fetched part is kept")
    status = answer.response.status_code
    page = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/{repository}"
    if isinstance(answer, GatedRepoError):
        why, first = "its owner grants access on request", f"once {page} grants you access"
    elif status == 401:
        why, first = "it does not know you, or no such repository", "if its name is right and it is private"
    elif status == 404:
        why, first = "it is not there, or private and not yours", "if its name is right and it is private"
    elif status == 403:
        why, first = "your token may not do that", "with a token that may"
    else:
        return f"the hub answers HTTP {status}", again("run the same command again: the fetched part is kept")
    login = ["hf", "auth", "login"]
    return f"{why} (HTTP {status})", advise(login, note=f"{first}; or set HF_TOKEN to your token", again=())


_POINTER = b"version https://git-lfs"


def require_downloaded(path: Path, *, what: str) -> None:
    """Refuse a file, or a folder with files, in whose place Git LFS left a pointer.

    Args:
        what: for the error, such as "weights of teacher 'roberta-l'".

    Raises:
        WeightsUnavailable: there is a pointer.
    """
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file() or file.stat().st_size > 1024 or not file.read_bytes().startswith(_POINTER):
            continue
        raise WeightsUnavailable(
            f"The {what} are not here: Git LFS left pointers in place of large files.",
            where=str(file),
            why="a repository was cloned without them",
            next_command=advise(["git", "-C", str(file.parent), "lfs", "pull"], again=()),
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json, empty if there is none.

    Raises:
        WeightsUnavailable: it is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
        why = "" if isinstance(config, dict) else "it is no object of names and values"
    except (ValueError, RecursionError) as error:
        config, why = {}, f"{type(error).__name__}: {error}"
    if why:
        raise WeightsUnavailable(
            "The description of a model is damaged.", where=str(file), why=why, next_command="download it again"
        )
    return dict(config)


def require_plain_network(config: Mapping[str, Any], *, where: Path | str) -> None:
    """Refuse a repository that is quantised, or brings its own class for a network of a type that transformers knows.

    Such a class exists because it computes something else, such as attention in both directions.

    Args:
        config: content of its config.json.
        where: location of that file, for errors.

    Raises:
        ConfigError: the network is another than transformers' of the same type, or its weights are quantised.
    """
    kind = config.get("model_type", "an unnamed type")
    named = config.get("auto_map")
    classes = named if isinstance(named, Mapping) and kind not in TAKEN_OVER else {}
    networks = [role for role in sorted(classes) if role.startswith(("AutoConfig", "AutoModel"))]
    if networks:
        role = networks[-1]
        raise ConfigError(
            "The model needs code from its repository, and ADVL does not run code from repositories.",
            where=str(where),
            why=f"its config.json names {classes[role]} for {role}; transformers' {kind} may be another network",
            next_command="give a repository whose model is a class of transformers",
        )
    if "quantization_config" in config:
        raise ConfigError(
            "The weights are quantised.",
            where=str(where),
            why="weights in float32, bfloat16 or float16 are read",
            next_command="name the repository of the model before it was quantised",
        )


def open_tokenizer(folder: Path | str, **settings: Any) -> Any:
    """Open a folder's tokenizer with transformers; its `tokenizer.json` decides how a text is split.

    Without that file, the class that the folder names decides. That class gives the roles of special tokens too.

    Args:
        settings: for `from_pretrained`.

    Raises:
        ImportError: there is no `tokenizer.json`, and the class needs a package that is not installed.
        Exception: whatever else the library raises.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_published = (Path(folder) / TOKENIZER_FILE).is_file()
    tokenizer: Any = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    except ImportError:
        if not is_published:
            raise
    if is_published and not (tokenizer and tokenizer.is_fast):
        # A class in Python may need packages, and gives no character offsets.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **settings)
    take_published_parts(tokenizer, folder)
    return tokenizer


def take_published_parts(tokenizer: Any, folder: Path | str) -> None:
    """Give a loaded tokenizer all parts of its folder's `tokenizer.json`, if there is one, in place.

    transformers rebuilds many tokenizers from their class, whose normaliser, pre-tokeniser and post-processor may
    differ from the published ones.

    Raises:
        Exception: the library cannot read the file.
    """
    from tokenizers import Tokenizer

    file = Path(folder) / TOKENIZER_FILE
    if file.is_file():
        published, opened = Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
        for part in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder"):
            setattr(opened, part, getattr(published, part))


def lacks_vocabulary(tokenizer: Any, folder: Path) -> str:
    """Return why a loaded tokenizer does not match the files of its folder, or "" if it does.

    Without a vocabulary file, the library builds a tokenizer of a few special tokens from the model's type.
    """
    files = {TOKENIZER_FILE, *(getattr(tokenizer, "vocab_files_names", None) or {}).values()}
    # Byte and character tokenizers have no vocabulary file.
    if len(files) == 1 or any((folder / name).is_file() for name in files):
        return ""
    return f"there is no vocabulary, none of {', '.join(sorted(files))}"


def _snapshot(name: str, patterns: Sequence[str], *, is_local: bool) -> Path:
    """Return the folder of a commit with the files that match some patterns.

    Raises:
        OSError, ValueError: files are missing and could not be fetched.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    with _quiet():
        folder = snapshot_download(
            repository,
            revision=revision or None,
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=is_local,
            allow_patterns=list(patterns),
            ignore_patterns=list(_LEFT_OUT),
        )
    return Path(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's warnings about missing weight formats, and invisible progress bars."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity, shows_bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if shows_bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if shows_bars:
            enable_progress_bars()


def _is_complete(folder: Path, patterns: Sequence[str]) -> bool:
    """Return whether a folder has weights that match some patterns, with every shard of their index."""
    are_there = any(path for pattern in patterns if "/" not in pattern for path in folder.glob(pattern))
    return are_there and not _missing_shards(folder, patterns)


def _missing_shards(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files that an index of the format of some patterns names, and that are not there."""
    suffix = patterns[0].rpartition(".")[2]
    shards = {
        (index.parent / Path(shard).name)
        for index in folder.glob(f"*.{suffix}.index.json")
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    }
    return sorted(shard for shard in shards if not shard.is_file())
