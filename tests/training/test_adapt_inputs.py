"""The adapt step's inputs: other splits beside the one that is trained on, and what is refused about them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered_dataset import AlteredDataset
from run_logs import losses

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.datasets.views import JoinedDataset
from advl_pipeline.errors import ConfigError
from advl_pipeline.extraction.config import ExtractConfig
from advl_pipeline.extraction.run import run_extract
from advl_pipeline.training import inputs
from advl_pipeline.training.run import run_finetune
from advl_pipeline.training.teacher_features import cached_teacher, joined_teacher

OTHER = "scenes-vcr/train-shift"


@pytest.fixture(scope="module")
def other_caches(small_corpus: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("other")
    found = []
    for teacher in ("minilm-l6", "efficientnet-lite0"):
        output = folder / teacher
        run_extract(
            ExtractConfig(
                teacher=teacher,
                dataset="scenes-vcr",
                split="train-shift",
                data_root=small_corpus.data_root,
                output=output,
            )
        )
        found.append(output)
    return tuple(found)


def test_inputs_of_another_split_join_the_adapt_step_and_their_labels_do_not(
    small_corpus: Any, other_caches: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = (*small_corpus.caches, *other_caches)
    options = {"cache": caches, "adapt_on": ("inputs", OTHER), "shots": 4}
    alone = run_finetune(small_corpus.config(tmp_path / "alone", shots=4)).summary
    joined = run_finetune(small_corpus.config(tmp_path / "joined", **options)).summary
    assert (alone["num_adapt_inputs"], joined["num_adapt_inputs"]) == (16, 24)
    assert losses(tmp_path / "joined") != losses(tmp_path / "alone")

    def relabelled(name: str, **settings: Any) -> Any:
        dataset: Any = open_dataset(name, **settings)
        return AlteredDataset(dataset, lambda example: replace(example, label=(example.label + 1) % 4))

    monkeypatch.setattr(inputs, "open_dataset", relabelled)
    run_finetune(small_corpus.config(tmp_path / "wrong", **options))
    assert losses(tmp_path / "wrong") == losses(tmp_path / "joined")


@pytest.mark.parametrize("more", [{"landmarks": "known"}, {"landmarks": "all"}, {"distance": "mse"}])
def test_inputs_of_another_split_need_no_labels(
    small_corpus: Any,
    other_caches: tuple[Path, ...],
    known: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
) -> None:
    options = {"cache": (*small_corpus.caches, *other_caches), "adapt_on": ("inputs", OTHER), "known_words": known}
    if more == {"landmarks": "known"}:
        options["answer_weight"] = 1.0
    run_finetune(small_corpus.config(tmp_path / "labelled", **options, **more))

    def unlabelled(name: str, **settings: Any) -> Any:
        dataset: Any = open_dataset(name, **settings)
        return AlteredDataset(dataset, lambda example: replace(example, label=None))

    monkeypatch.setattr(inputs, "open_dataset", unlabelled)
    run_finetune(small_corpus.config(tmp_path / "bare", **options, **more))
    assert losses(tmp_path / "bare") == losses(tmp_path / "labelled")


def test_the_joined_split_keeps_own_ids_and_names_the_others(small_corpus: Any) -> None:
    own, other = (
        open_dataset("scenes-vcr", split=split, data_root=small_corpus.data_root, tasks=("vcr-q2a",))
        for split in ("train", "train-shift")
    )
    joined = JoinedDataset([own, other])
    assert len(joined) == len(own) + len(other)
    assert list(joined.example_ids[: len(own)]) == list(own.example_ids)
    assert joined.other_ids == {f"{OTHER}:{name}" for name in other.example_ids}
    for index in (0, len(own) - 1, len(own), len(joined) - 1):
        assert joined[index].example_id == joined.example_ids[index]
    assert joined[len(own)].image == other[0].image
    assert len({unit.unit_id for unit in joined.text_units()}) == len(joined.text_units())
    assert joined.content_digest() != own.content_digest()


def test_a_joined_teacher_gives_each_unit_what_its_own_cache_gives(
    small_corpus: Any, other_caches: tuple[Path, ...]
) -> None:
    for own_path, other_path in zip(small_corpus.caches, other_caches, strict=True):
        own, other = (cached_teacher(open_cache(path)) for path in (own_path, other_path))
        joined = joined_teacher([own, other], [own, other])
        for tower in ("text", "image"):
            if (store := getattr(own, tower)) is None:
                assert getattr(joined, tower) is None
                continue
            both, second = getattr(joined, tower), getattr(other, tower)
            only = [unit for unit in second.ids if not store.contains([unit])[0]]
            mixed = [only[0], store.ids[0], only[1], store.ids[1]]
            sources = [second, store, second, store]
            expected = [source.global_features([unit])[0] for source, unit in zip(sources, mixed, strict=True)]
            np.testing.assert_array_equal(both.global_features(mixed), np.stack(expected))
            if store.has_tokens:
                rows, lengths = both.token_features(mixed)
                each = [source.token_features([unit])[0] for source, unit in zip(sources, mixed, strict=True)]
                np.testing.assert_array_equal(rows, np.concatenate(each))
                assert lengths.tolist() == [len(one) for one in each]
            if tower == "text":
                spans = [source.char_spans([unit]) for source, unit in zip(sources, mixed, strict=True)]
                np.testing.assert_array_equal(both.char_spans(mixed), np.concatenate(spans))


@pytest.mark.parametrize(
    ("adapt_on", "message"),
    [
        ((), "must be named"),
        (("inputs", "subset"), "must be named"),
        ((OTHER, OTHER), "must be named"),
        (("everything",), "cannot take its inputs"),
        (("inputs", "scenes-snli-ve/train"), "another kind"),
    ],
)
def test_inputs_that_cannot_be_had_are_refused(
    adapt_on: tuple[str, ...], message: str, small_corpus: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_finetune(small_corpus.config(tmp_path / "run", adapt_on=adapt_on))


def test_a_split_without_its_dataset_is_answered_with_the_option() -> None:
    with pytest.raises(ConfigError, match="'train-shift'") as caught:
        inputs.other_splits(("inputs", "train-shift"))
    assert str(caught.value.next_command).startswith("--adapt-on DATASET/train-shift")


def test_a_missing_cache_is_named_with_the_command_that_makes_it(small_corpus: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no cache of them") as caught:
        run_finetune(small_corpus.config(tmp_path / "run", adapt_on=("inputs", OTHER)))
    assert "advl extract --teacher minilm-l6 --dataset scenes-vcr --split train-shift" in caught.value.next_command
