"""Load published checkpoints safely: keys are mapped by declared rules, and every key is reported.

Files are read with `torch.load(weights_only=True)` or safetensors, without arbitrary unpickling. Training frameworks
wrap the same tensors differently. `read_checkpoint` unwraps them, and `map_keys` renames them by the student's
`KeyRules`. `load_into` loads them, and its `LoadReport` lists every missing, unexpected, resized or ignored key.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from advl_pipeline.base.errors import ConfigError, WeightsUnavailable, advise
from advl_pipeline.base.packages import read_tables
from advl_pipeline.base.tensors import load_tensors

StateDict = dict[str, torch.Tensor]
Resizer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(tensor of the file, freshly initialised tensor of the model) -> tensor of the model's shape."""

Prepare = Callable[[StateDict], StateDict]

WRAPPER_KEYS = ("state_dict", "model_state", "model_state_dict", "model", "module")
"""Entries under which training frameworks store the weights: Lightning, UNITER, several, fairseq, DeepSpeed."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every name."""

INERT_GLOBALS: dict[str, type[Any]] = {
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
    "sacred.config.custom_containers.ReadOnlyDict": OrderedDict,
    "sacred.config.custom_containers.ReadOnlyList": list,
}
"""Containers of hyper-parameters in Lightning checkpoints, read as plain ones without importing their classes."""

OLD_NAMES = ((re.compile(r"(^|\.)gamma$"), r"\1weight"), (re.compile(r"(^|\.)beta$"), r"\1bias"))
"""Former names of LayerNorm's weight and bias, with their replacements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRules:
    """Rules that map the names of a checkpoint to the names of a student.

    `rename` pairs (regular expression, replacement) are applied in order, each with `re.sub`. Keys that match
    `ignore` belong to parts that the student does not have, such as pretraining heads; they are listed, not loaded.
    `resize` maps a regular expression of *student* names to the rule that resizes a table of another size. *Student*
    names that match `optional` may be missing in the file; they keep their initial values. `prepare` rewrites the
    tensors first, for cases where renaming is not enough.
    """

    rename: tuple[Sequence[str], ...] = ()
    ignore: tuple[str, ...] = ()
    resize: tuple[tuple[str, Resizer], ...] = ()
    optional: tuple[str, ...] = ()
    prepare: Prepare | None = None


def published_keys(
    family: str, *, resize: Mapping[str, Resizer] = MappingProxyType({}), prepare: Prepare | None = None
) -> KeyRules:
    """Return the rules for a family's published checkpoints, from `data/checkpoint_keys.toml`."""
    keys = {name: tuple(values) for name, values in read_tables("checkpoint_keys.toml")[family].items()}
    return KeyRules(**keys, resize=tuple(resize.items()), prepare=prepare)


def rules_below(prefix: str) -> KeyRules:
    """Return the rules that select the keys below a prefix, a regular expression, and strip it."""
    return KeyRules(rename=((rf"^{prefix}\.", ""),), ignore=(rf"^(?!{prefix}\.)",))


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """The result of loading a checkpoint, by key.

    `reinitialised` keys differ in shape and have no resize rule; the student keeps its initial values. `resized` keys
    were resized by a declared rule. `fresh` keys are optional and were missing.
    """

    source: str
    num_loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    reinitialised: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every parameter came from the file and every key of the file was used or ignored."""
        return not (self.missing or self.unexpected or self.reinitialised)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        return {**asdict(self), "complete": self.complete}


def read_checkpoint(path: Path) -> StateDict:
    """Return the tensors of a checkpoint file or folder by name, unwrapped and in float32.

    Raises:
        WeightsUnavailable: the file is missing, truncated, or a Git LFS pointer.
        ConfigError: the file contains more than tensors and plain containers, or no tensors at all.
    """
    content: dict[str, Any] = {}
    for file in _files_of(path):
        content |= _read(file)
    # Descend into the entry with the weights until names map to tensors.
    while wrapped := [content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]:
        content = dict(wrapped[0])
    raw = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not raw:
        raise ConfigError(
            "The checkpoint holds no tensors.", where=str(path), why=f"top-level keys: {', '.join(map(str, content))}"
        )
    state: StateDict = {}
    for name, value in raw.items():
        while name.startswith(WRAPPER_PREFIXES):
            name = name.split(".", maxsplit=1)[1]
        for pattern, replacement in OLD_NAMES:
            name = pattern.sub(replacement, name)
        state[name] = value.float() if value.is_floating_point() else value
    if len(state) != len(raw):
        raise ConfigError("Two keys of the checkpoint are the same without their prefixes.", where=str(path))
    return state


def map_keys(state: Mapping[str, torch.Tensor], rules: KeyRules) -> tuple[StateDict, tuple[str, ...]]:
    """Rename keys by rules. Return the renamed tensors and the names of ignored keys.

    Raises:
        ConfigError: two keys get the same name.
    """
    renames = [(re.compile(pattern), replacement) for pattern, replacement in rules.rename]
    ignores = [re.compile(pattern) for pattern in rules.ignore]
    mapped: StateDict = {}
    ignored: list[str] = []
    for name, value in state.items():
        if any(pattern.search(name) for pattern in ignores):
            ignored.append(name)
            continue
        new_name = name
        for pattern, replacement in renames:
            new_name = pattern.sub(replacement, new_name)
        if new_name in mapped:
            raise ConfigError("Two keys of the checkpoint map to one parameter.", where=new_name, why=name)
        mapped[new_name] = value
    return mapped, tuple(sorted(ignored))


def load_into(module: nn.Module, state: Mapping[str, torch.Tensor], rules: KeyRules, *, source: str) -> LoadReport:
    """Map keys, load those that fit, and report the rest. Missing or unexpected keys raise no error."""
    prepared = rules.prepare(dict(state)) if rules.prepare else state
    mapped, ignored = map_keys(prepared, rules)
    module_state = module.state_dict()
    resizers = [(re.compile(pattern), rule) for pattern, rule in rules.resize]
    fitted: StateDict = {}
    resized: list[str] = []
    reinitialised: list[str] = []
    for name in module_state.keys() & mapped.keys():
        value, target = mapped[name], module_state[name]
        if value.shape == target.shape:
            fitted[name] = value
            continue
        rule = next((rule for pattern, rule in resizers if pattern.search(name)), None)
        if rule is None:
            reinitialised.append(f"{name} (file {tuple(value.shape)}, student {tuple(target.shape)})")
        else:
            fitted[name] = rule(value, target)
            resized.append(f"{name} ({tuple(value.shape)} -> {tuple(target.shape)})")
    module.load_state_dict(fitted, strict=False)
    absent = sorted(module_state.keys() - mapped.keys())
    fresh = tuple(name for name in absent if any(re.search(pattern, name) for pattern in rules.optional))
    return LoadReport(
        source=source,
        num_loaded=len(fitted),
        missing=tuple(name for name in absent if name not in fresh),
        unexpected=tuple(sorted(mapped.keys() - module_state.keys())),
        ignored=ignored,
        resized=tuple(sorted(resized)),
        reinitialised=tuple(sorted(reinitialised)),
        fresh=fresh,
    )


def load_file(module: nn.Module, path: Path, rules: KeyRules, *, must_fit: bool = True) -> LoadReport:
    """Read a checkpoint and load it into a module (`read_checkpoint`, then `load_into`).

    Raises:
        ConfigError: no key fits, and `must_fit` is true.
    """
    state = read_checkpoint(path)
    report = load_into(module, state, rules, source=path.name)
    if must_fit and not report.num_loaded:
        held, wanted = (", ".join(sorted(keys)[:3]) for keys in (state, module.state_dict()))
        raise ConfigError(
            "No key of the checkpoint fits this student.",
            where=str(path),
            why=f"the file holds {held}, ...; the student has {wanted}, ...",
            next_command=advise(["advl", "students", "list"]),
        )
    return report


def grow_rows(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Keep the table's rows; additional rows keep their initial values (UNITER's person tokens)."""
    return torch.cat([value[: len(target)].to(target.dtype), target[len(value) :]])


def grow_rows_from_first(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Keep the table's rows and start new rows as copies of row 0 (UNITER's token types for VCR)."""
    kept = value[: len(target)]
    return torch.cat([kept, value[:1].expand(len(target) - len(kept), -1)])


def interpolate_grid(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Interpolate position embeddings of a square patch grid to another grid, bicubically.

    Both are (1 + side * side, H) or (1, 1 + side * side, H), with the class token's row first, as in CLIP and ViT.
    """
    table, wanted = value.reshape(-1, value.shape[-1]), target.reshape(-1, target.shape[-1])
    side, new_side = (math.isqrt(len(rows) - 1) for rows in (table, wanted))
    if side**2 + 1 != len(table) or new_side**2 + 1 != len(wanted):
        raise ConfigError(
            "The position embeddings do not form a square grid.", why=f"{len(table)} rows for {len(wanted)}"
        )
    grid_1HSS = table[1:].T.reshape(1, table.shape[1], side, side)
    fitted_1HSS = nn.functional.interpolate(grid_1HSS, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], fitted_1HSS.flatten(2)[0].T]).reshape(target.shape)


def _files_of(path: Path) -> list[Path]:
    """Return the files of a checkpoint: the file itself, or those of a folder saved by transformers or ADVL."""
    if path.is_file():
        return [path]
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if index.is_file():
            try:
                shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                # The index is untrusted: only file names inside the folder are used.
                return [path / Path(shard).name for shard in sorted(shards)]
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise unreadable_weights(index, error) from None
        if (path / name).is_file():
            return [path / name]
    raise WeightsUnavailable(
        "The checkpoint is not there.",
        where=str(path),
        next_command="give --init a .pt, .bin, .ckpt or .safetensors file, or a folder that holds one",
    )


def _read(file: Path) -> dict[str, Any]:
    inert: list[Any] = [(container, name) for name, container in INERT_GLOBALS.items()]
    try:
        with torch.serialization.safe_globals(inert):
            content: object = load_tensors(file)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if asked is None:
            raise unreadable_weights(path=file, error=error) from None
        raise ConfigError(
            "The checkpoint holds more than tensors, and ADVL does not run code from checkpoints.",
            where=str(file),
            why=f"it asks for {asked.group(1)}",
            next_command="save its state_dict() alone, or as safetensors, on a machine where you trust the file",
        ) from None
    if not isinstance(content, Mapping):
        raise ConfigError(
            "The checkpoint is not a mapping of names to tensors.", where=str(file), why=type(content).__name__
        )
    return dict(content)


def unreadable_weights(path: Path, error: Exception) -> WeightsUnavailable:
    """Return the error for weights that a library cannot read."""
    why = str(error).strip().split("\n", maxsplit=1)[0]
    return WeightsUnavailable(
        "The checkpoint cannot be read.", where=str(path), why=why, next_command="download it again"
    )
