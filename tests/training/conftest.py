"""What runs on the small corpus share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advl_pipeline.datasets.words import is_function_word, word_spans


@pytest.fixture(scope="module")
def known(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second word of the inputs with a meaning, as if pretraining had seen it often."""
    dataset = small_corpus.dataset()
    texts = [candidate.text for index in range(len(dataset)) for candidate in dataset[index].candidates]
    words = sorted({text[start:end].lower() for text in texts for start, end in word_spans(text)})
    path = tmp_path_factory.mktemp("known") / "words.json"
    path.write_text(json.dumps(dict.fromkeys([word for word in words if not is_function_word(word)][::2], 50)))
    return path
