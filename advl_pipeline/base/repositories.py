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

WEIGHTS = (("*.safetensors",), ("pytorch_model.bin", "pytorch_model-*.bin", "*/pytorch_model.bin"))
"""Weight formats; the first that a repository has is fetched."""

_LEFT_OUT = ("[!0-9]*/*", "open_clip*", "consolidated*")
"""Copies of the weights for other programs. Module folders begin with a digit."""

TAKEN_OVER = frozenset({"nomic_bert"})
"""Model types whose repositories bring code of their own, and of which transformers has the same network."""

TOKENIZER_FILE = "tokenizer.json"

HUB = "hf:"
"""Prefix of a repository name where a path is allowed too."""

LOGIN = advise(["hf", "auth", "login"], note="or set HF_TOKEN; then the same command", again=())


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
        why = obstacle or f"it has no {' or '.join(patterns[0] for patterns in weights)}"
        following = "" if obstacle else again("name a repository that holds weights")
    except Exception as error:  # The library raises whatever its dependencies do.
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            with writing(str(error.filename or "the cache of the hub")):
                raise
        why, following = refusal(error, name, obstacle)
    repository, _, revision = name.partition("@")
    download = f"hf download {repository} {f'--revision {revision} ' if revision else ''}--local-dir DIR"
    raise WeightsUnavailable(
        f"The {what} are not on this machine and could not be fetched.",
        where=f"hf:{name}",
        why=why,
        next_command=following or f"where there is a network: {download}; then {option} DIR",
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
        why, first = "its owner grants access on request", f"once {page} has granted it: "
    elif status == 401:
        why, first = "it does not know you, or no such repository", "look at the name; of a private one: "
    elif status == 404:
        why, first = "it is not there, or private and not yours", "look at the name; of a private one: "
    elif status == 403:
        why, first = "your token may not do that", "give a token that may: "
    else:
        return f"the hub answers HTTP {status}", again("run the same command again: the fetched part is kept")
    return f"{why} (HTTP {status})", advise(*LOGIN.commands, note=f"{first}{LOGIN.note}", again=())


def require_network_of_transformers(config: Mapping[str, Any], *, where: Path | str) -> None:
    """Refuse a repository that brings its own class for a network, even if transformers knows the model's type.

    Such a class exists because it computes something else, such as attention in both directions.

    Args:
        config: content of its config.json.
        where: location of that file, for errors.

    Raises:
        ConfigError: the network is another than transformers' of the same type.
    """
    kind = config.get("model_type", "an unnamed type")
    named = config.get("auto_map")
    classes = named if isinstance(named, Mapping) and kind not in TAKEN_OVER else {}
    networks = [role for role in sorted(classes) if role.startswith(("AutoConfig", "AutoModel"))]
    if networks:
        role = networks[-1]
        raise ConfigError(
            "The network of this repository is code of its own, which ADVL does not run.",
            where=str(where),
            why=f"its config.json names {classes[role]} for {role}; transformers' {kind} may be another network",
            next_command=again("name a repository without code of its own"),
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
    if not any(path for pattern in patterns for path in folder.glob(pattern)):
        return False
    suffix = patterns[0].rpartition(".")[2]
    shards = {
        (index.parent / Path(shard).name)
        for index in folder.glob(f"*.{suffix}.index.json")
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    }
    return all(shard.is_file() for shard in shards)
