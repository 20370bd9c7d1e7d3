"""Word vectors that start from a language model."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file

from advl_data.scenes.students.small import DEVIATION, WORD_TABLE, language_model_words
from advl_pipeline.students.registry import build_student
from advl_pipeline.students.tokenizer import embedded_tokenizer_file

SIZE = 128


def test_reduced_words_are_the_principal_components_of_the_whole_table() -> None:
    table_VD = load_file(embedded_tokenizer_file().with_name("model.safetensors"))[WORD_TABLE].double().numpy()
    centred_VD = table_VD - table_VD.mean(axis=0)
    values, vectors_DD = np.linalg.eigh(np.cov(centred_VD.T))
    found_VE = language_model_words(SIZE).double().numpy()
    scale = DEVIATION / (centred_VD @ vectors_DD[:, -SIZE:]).std()
    for component in range(SIZE):
        loading_D = vectors_DD[:, -1 - component]
        loading_D = loading_D * np.sign(loading_D[np.abs(loading_D).argmax()])
        np.testing.assert_allclose(found_VE[:, component], scale * (centred_VD @ loading_D), atol=2e-4)
    assert values[-SIZE:].sum() / values.sum() > 0.3


def test_the_student_starts_from_them_and_the_plain_one_does_not() -> None:
    words_VE = build_student("scenes-small-lm").word_table()[0].weight.detach()
    assert torch.equal(words_VE, language_model_words(SIZE))
    assert not torch.allclose(build_student("scenes-small").word_table()[0].weight, words_VE, atol=0.1)
    unit_VE = torch.nn.functional.normalize(words_VE, dim=1)
    vocabulary = embedded_tokenizer_file().with_name("vocab.txt").read_text(encoding="utf-8").split("\n")
    cat, dog, hammer = (unit_VE[vocabulary.index(word)] for word in ("cat", "dog", "hammer"))
    assert cat @ dog > cat @ hammer + 0.1
