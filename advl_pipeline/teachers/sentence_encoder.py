"""The global feature of a sentence encoder, as its files define it: pooling, dense layers, length and prompt.

Every version of sentence-transformers since 2020 writes `modules.json`; version 5.4 changed the pooling keys.

Shapes: N texts, D width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from advl_pipeline.base.compute import drawing
from advl_pipeline.base.errors import ConfigError, WeightsUnavailable
from advl_pipeline.base.tensors import load_tensors
from advl_pipeline.datasets.problems import first_line

Pooling = Literal["mean over all tokens", "first token", "last token"]
"""All tokens include special ones; the first token is [CLS] or <s>; the last token is the last before padding."""

_POOLINGS: dict[str, Pooling] = {
    "mean": "mean over all tokens",
    "mean_tokens": "mean over all tokens",
    "cls": "first token",
    "cls_token": "first token",
    "lasttoken": "last token",
}
"""Pooling by its name in each version."""

_ACTIVATIONS = {name: getattr(nn, name) for name in ("Identity", "Tanh", "ReLU", "GELU", "SiLU")}

_OF_DOCUMENTS = ("document", "passage", "corpus")
"""Names of the document prompt, in the order in which sentence-transformers tries them."""


_NETWORKS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
"""Networks that the name of their settings' file may name, in the order of sentence-transformers."""


@dataclass(frozen=True, kw_only=True)
class SentenceRecipe:
    """How a text's global feature is computed from its token states, and what happens to the text before.

    `prompt` is put before the text, and `lower_case` tells whether both are lower-cased. `dense` maps the pooled
    state (N, D) to the feature, None for the identity; its weights are random until `load_dense` reads them from the
    folders `layers`. `max_length` counts tokens.
    """

    pooling: Pooling
    dense: nn.Sequential | None = None
    unit_length: bool = False
    layers: tuple[Path, ...] = ()
    prompt: str = ""
    lower_case: bool = False
    max_length: int | None = None


def read_beside(folder: Path, name: str) -> Any:
    """Return the contents of a JSON file next to the model's config, or None if it is missing."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def sentence_recipe(folder: Path, *, random_seed: int | None) -> SentenceRecipe | None:
    """Return the recipe in a folder with descriptions, None for a model that is not a sentence encoder.

    The prompt is the folder's default, else its document prompt: the texts of examples are content, not queries.

    Args:
        random_seed: for the random weights of the dense layers.

    Raises:
        ConfigError: the encoder has unsupported parts.
    """
    modules = read_beside(folder, "modules.json")
    if modules is None:
        return None
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    # A file name in a repository must not leave its folder.
    places = [folder / Path(str(module["path"])).name for module in modules]
    stages = kinds[1:-1] if kinds[-1] == "Normalize" else kinds[1:]
    if kinds[0] != "Transformer" or stages[:1] != ["Pooling"] or set(stages[1:]) - {"Dense"}:
        raise _unsupported(folder, f"its modules are {', '.join(kinds)}")
    pooling_settings = read_beside(places[1], "config.json") or {}
    modes = _modes(pooling_settings)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise _unsupported(
            folder,
            f"{', '.join(modes) or 'no pooling'}; supported are the mean of the tokens, the first and the last token",
        )
    settings = read_beside(folder, "config_sentence_transformers.json") or {}
    prompts = settings.get("prompts") or {}
    named = [settings.get("default_prompt_name"), *_OF_DOCUMENTS]
    prompt = next((str(prompts[name]) for name in named if name in prompts), "")
    if prompt and not pooling_settings.get("include_prompt", True):
        raise _unsupported(folder, "its pooling leaves out the prompt")
    of_network = (read_beside(folder, f"sentence_{kind}_config.json") for kind in _NETWORKS)
    network: dict[str, Any] = next(filter(None, of_network), {})
    layers = tuple(place for place, kind in zip(places, kinds, strict=True) if kind == "Dense")
    with drawing(random_seed or 0):
        dense = [_dense(layer) for layer in layers]
    return SentenceRecipe(
        pooling=_POOLINGS[modes[0]],
        dense=nn.Sequential(*dense) if dense else None,
        layers=layers,
        unit_length=kinds[-1] == "Normalize",
        prompt=prompt,
        lower_case=bool(network.get("do_lower_case")),
        max_length=network.get("max_seq_length"),
    )


def _modes(settings: dict[str, Any]) -> list[str]:
    """Return the names of the enabled poolings, from the current keys or the older ones."""
    if (mode := settings.get("pooling_mode")) is not None:
        return [mode] if isinstance(mode, str) else list(mode)
    return [
        name.removeprefix("pooling_mode_") for name, on in settings.items() if name.startswith("pooling_mode_") and on
    ]


def _dense(folder: Path) -> nn.Sequential:
    settings = read_beside(folder, "config.json") or {}
    library, _, activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(
        "."
    )
    if not library.startswith("torch.nn.") or activation not in _ACTIVATIONS:
        raise _unsupported(folder, f"the activation {library}.{activation}")
    linear = nn.Linear(settings["in_features"], settings["out_features"], bias=bool(settings.get("bias", True)))
    return nn.Sequential(linear, _ACTIVATIONS[activation]())


def load_dense(recipe: SentenceRecipe) -> None:
    """Load the weights of a recipe's dense layers, in place.

    Raises:
        WeightsUnavailable: the weights of a layer are missing or damaged.
    """
    for folder, layer in zip(recipe.layers, recipe.dense or (), strict=True):
        safe, older = folder / "model.safetensors", folder / "pytorch_model.bin"
        try:
            state = load_tensors(safe if safe.is_file() else older)
            named = {name.removeprefix("linear."): value.float() for name, value in state.items()}
            layer.get_submodule("0").load_state_dict(named)
        except Exception as error:  # Both libraries raise whatever their dependencies do.
            raise WeightsUnavailable(
                "The weights of a sentence encoder's layer are missing or damaged.",
                where=str(folder),
                why=first_line(error),
            ) from None


def _unsupported(folder: Path, why: str) -> ConfigError:
    return ConfigError("This sentence encoder has parts that are not supported.", where=str(folder), why=why)
