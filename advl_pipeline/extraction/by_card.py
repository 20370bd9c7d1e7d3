"""What an extraction will take by the sizes that a teacher's card states, where its weights are not at hand."""

from __future__ import annotations

import numpy as np

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.words import word_spans
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.estimate import Estimate, estimate_untimed
from advl_pipeline.extraction.sources import TokenCounts, image_tokens_of, repeated, units_to_encode
from advl_pipeline.teachers.registry import card_of
from advl_pipeline.teachers.teacher_cards import TeacherCard
from advl_pipeline.teachers.text_units import candidate_starts

_PIECES_PER_WORD = 1.15
"""Word pieces of a word or mark of plain English, about."""

_WORDED_TEXTS = 2_000


def card_with_sizes(teacher: str) -> TeacherCard | None:
    """Return the card that states the sizes of a teacher's features; None where there is none.

    Args:
        teacher: any name that opens one; a control with random weights has the sizes of what it is a control of.
    """
    card = card_of(teacher.removeprefix("random:").partition("@")[0])
    return card if card is not None and card.states_sizes else None


def estimates_by_card(config: ExtractConfig, card: TeacherCard, dataset: Dataset) -> tuple[Estimate, ...]:
    """Return the cost of each modality but for its time. Rows of texts are told by their words.

    Args:
        card: as `card_with_sizes` returns it.
        dataset: what is to be extracted.

    Raises:
        ConfigError, DatasetError: as `units_to_encode`.
    """
    pictures, texts = units_to_encode(config, dataset, teacher=config.teacher, towers=card.modalities)
    found = []
    if pictures:
        kind = image_tokens_of(config, dataset)
        cells = min(card.grid_shape[0], config.grid_side) * min(card.grid_shape[1], config.grid_side)
        rows = {"grid": cells, "none": 0}
        lengths_N = np.array([rows.get(kind, len(unit.boxes_R4)) for unit in pictures], np.int32)
        counts = TokenCounts(lengths_N=lengths_N, num_counted=len(pictures))
        found.append(("image", counts, None if kind == "none" else card.grid_dim, card.image_dim))
    if texts:
        drawn = np.random.default_rng(0).choice(len(texts), min(len(texts), _WORDED_TEXTS), replace=False)
        starts = candidate_starts(config.text_units, dataset)
        lengths = []
        for place in np.sort(drawn).tolist():
            whole, start = texts[place].text, starts.get(texts[place].unit_id, 0)
            readings = {"question": [whole], "candidate": [whole[start:]], "both": [whole, whole[start:]]}
            lengths.append(sum(_about_num_pieces(text, card, config) for text in readings[config.text_units]))
        worded = repeated(np.array(lengths, np.int32), len(texts))
        counts = TokenCounts(lengths_N=worded.lengths_N, num_counted=0, margin=None)
        found.append(("text", counts, card.token_dim, card.text_dim))
    return tuple(
        estimate_untimed(
            modality,
            counts,
            token_dim=token_dim,
            global_dim=global_dim,
            stored=config.stored_dtype,
            shard_rows=config.shard_rows,
            batch_size=config.batch_size,
        )
        for modality, counts, token_dim, global_dim in found
    )


def _about_num_pieces(text: str, card: TeacherCard, config: ExtractConfig) -> int:
    pieces = min(len(word_spans(text)) * _PIECES_PER_WORD, card.max_length or float("inf"))
    return max(1, round(pieces * (config.select_tokens or 1.0)))
