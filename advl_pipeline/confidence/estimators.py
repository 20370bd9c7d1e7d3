"""Confidence of teachers in the ground truth, per example: the input of Adaptive Confidence-based Weighting.

Estimators (docs/method.md): `probe`, one cross-fitted linear head per modality; `zero-shot`, the softmax over
candidates of an aligned pair of towers. They only read stores and labels and never run a teacher. An example's
confidence depends only on the labels of other folds, and only on the given examples.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import softmax
from tqdm import tqdm

from advl_pipeline.base.errors import ConfigError, DatasetError, StorageError
from advl_pipeline.cache.confidence import ConfidenceSet, read_confidence, write_confidence
from advl_pipeline.cache.identity import digest
from advl_pipeline.confidence.probe import ProbeData, TruthConfidence, cross_fitted_confidence
from advl_pipeline.confidence.separation import outranked_candidates
from advl_pipeline.datasets.records import MULTIPLE_CHOICE_TASKS, Dataset, Example, candidate_mask, head_name

if TYPE_CHECKING:
    from advl_pipeline.cache.reader import FeatureStore, TeacherCache

Estimator = Literal["probe", "zero-shot"]

SCHEMA_VERSION = 4
"""Version; increase it when the same inputs would give other numbers, or the same numbers in another order."""

_log = logging.getLogger(__name__)


def load_or_estimate_confidence(
    *,
    caches: Sequence[TeacherCache],
    dataset: Dataset,
    example_ids: Sequence[str],
    estimator: Estimator,
    folds: int,
    seed: int,
    must_store: bool = False,
) -> dict[str, TruthConfidence]:
    """Return the teachers' probability of the ground truth, and the share of wrong alternatives that it outranks.

    Items of one picture, hence both tasks of a question, share a fold. Each task has separate heads. Estimates with
    the same identity are read from the first cache that they depend on, and new ones are stored there. If that
    cache cannot be written, the estimate is used and a warning is logged.

    Args:
        caches: caches of the examples' split.
        example_ids: n distinct ids; heads are fitted only on these.
        folds: folds of the cross-fitting, at least 2; fewer with fewer pictures, and chance for one picture.
        must_store: fail if a new estimate cannot be stored, since it only serves later commands.

    Returns:
        Modality ("vision", "text", "joint") -> confidence in the order of `example_ids`. `probe` gives
        each modality that a cache has, `zero-shot` "joint".

    Raises:
        ConfigError: these caches or tasks do not support the estimator.
        DatasetError: an example has no label. StorageError: with `must_store`, the cache cannot be written.
    """
    confidences: dict[str, TruthConfidence] = {}
    by_modality = _caches_by_modality(caches, estimator)
    examples = examples_of(dataset, sorted(example_ids))
    for modality, used in by_modality.items():
        identity = confidence_identity(used, dataset, examples, estimator, modality, folds=folds, seed=seed)
        estimate = read_confidence(used[0].path, identity)
        if estimate is None:
            estimate = _estimate(used, dataset, examples, estimator, modality, folds=folds, seed=seed)
            try:
                write_confidence(used[0].path, identity, estimate)
            except StorageError as error:
                if must_store:
                    raise
                _log.warning("Confidences were estimated but could not be stored in %s: %s", used[0].path, error)
        confidences[modality] = _in_order(estimate, example_ids)
    return confidences


def _in_order(estimate: ConfidenceSet, example_ids: Sequence[str]) -> TruthConfidence:
    """Return the confidences of a set in another order of its examples."""
    place = {name: row for row, name in enumerate(estimate.example_ids)}
    order = [place[name] for name in example_ids]
    return TruthConfidence(probability_N=estimate.probability_N[order], outranked_N=estimate.outranked_N[order])


def _estimate(
    used: Sequence[TeacherCache],
    dataset: Dataset,
    examples: Sequence[Example],
    estimator: Estimator,
    modality: Modality,
    *,
    folds: int,
    seed: int,
) -> ConfidenceSet:
    """Return the confidence of one modality, with the heads of each task fitted separately."""
    fold_N = assign_folds([example.cluster for example in examples], folds=folds, seed=seed)
    tasks = np.array([example.task for example in examples])
    probability_N, outranked_N = (np.zeros(len(examples), dtype=np.float32) for _ in range(2))
    for task in sorted(set(tasks.tolist())):
        rows = np.flatnonzero(tasks == task)
        chosen = [examples[row] for row in rows.tolist()]
        if estimator == "zero-shot":
            of_task = _zero_shot(_aligned_cache(used), chosen)
        else:
            data = probe_data(used, dataset, chosen, modality)
            # Folds without an example of this task are removed, so that every head has a validation fold.
            _, fold_of_task = np.unique(fold_N[rows], return_inverse=True)
            with tqdm(total=len(data), desc=f"confidence, {modality}: {task}", unit="item", delay=2) as bar:
                of_task = cross_fitted_confidence(data, fold_of_task.astype(np.int64), progress=bar.update)
        probability_N[rows], outranked_N[rows] = of_task.probability_N, of_task.outranked_N
    return ConfidenceSet([example.example_id for example in examples], probability_N, outranked_N)


def _caches_by_modality(caches: Sequence[TeacherCache], estimator: Estimator) -> dict[Modality, list[TeacherCache]]:
    """Return the modalities of an estimator with these caches, and the caches that each depends on.

    Raises:
        ConfigError: the caches lack what the estimator needs.
    """
    if estimator == "zero-shot":
        _aligned_cache(caches)
        return {"joint": list(caches)}
    of_modality: dict[Modality, list[TeacherCache]] = {
        "vision": [cache for cache in caches if cache.image is not None],
        "text": [cache for cache in caches if cache.text is not None],
    }
    return {modality: used for modality, used in of_modality.items() if used}


def confidence_identity(
    caches: Sequence[TeacherCache],
    dataset: Dataset,
    examples: Sequence[Example],
    estimator: Estimator,
    modality: str,
    *,
    folds: int,
    seed: int,
) -> dict[str, Any]:
    """Return everything that determines the numbers, except the order of the examples, as plain JSON types.

    Args:
        examples: of the dataset, sorted by id.
    """
    truth = [[example.example_id, example.label, [list(pair) for pair in example.soft_label]] for example in examples]
    tasks = {example.task for example in examples}
    identity: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "estimator": estimator,
        # The key of stored confidences: another one would make all of them anew.
        "view": modality,
        "dataset": dataset.identity_name,
        "split": dataset.split,
        "tasks": sorted(tasks),
        "examples": hashlib.sha256("\n".join(example.example_id for example in examples).encode()).hexdigest(),
        "truth": digest(truth),
        # A label is an index: with another order or vocabulary it is another class.
        "label_names": digest([list(dataset.label_names(task)) for task in dataset.tasks if task in tasks]),
        "caches": [cache.identity_digest for cache in caches],
    }
    if estimator != "zero-shot":
        identity |= {"folds": folds, "seed": seed}
    return identity


def probe_data(
    caches: Sequence[TeacherCache], dataset: Dataset, examples: Sequence[Example], modality: Modality
) -> ProbeData:
    """Return the input of a head: the examples' features in one modality, and their truth."""
    task = examples[0].task
    choice = task in MULTIPLE_CHOICE_TASKS
    features_NCF = probe_features(caches, examples, modality)
    valid_NC = candidate_mask(examples)
    if head_name(task) == "answers":
        num_classes = len(dataset.label_names(task))
        triples = [(row, index, score) for row, example in enumerate(examples) for index, score in example.soft_label]
        rows, columns, scores = (list(part) for part in zip(*triples, strict=True)) if triples else ([], [], [])
        score_NK = csr_array((np.array(scores, np.float32), (rows, columns)), shape=(len(examples), num_classes))
        return ProbeData(
            kind="soft-labels",
            features_NCF=features_NCF,
            valid_NC=valid_NC,
            score_NK=score_NK,
            num_classes=num_classes,
        )
    label_N = np.array([_label_of(example) for example in examples], dtype=np.int64)
    return ProbeData(
        kind="choice" if choice else "classes",
        features_NCF=features_NCF,
        valid_NC=valid_NC,
        label_N=label_N,
        num_classes=0 if choice else len(dataset.label_names(task)),
    )


def _zero_shot(cache: TeacherCache, examples: Sequence[Example]) -> TruthConfidence:
    """Return the softmax over candidates of logit_scale * cosine(image, candidate's text)."""
    if cache.image is None or cache.text is None:
        raise ValueError("an aligned cache has both modalities")
    if examples[0].task not in MULTIPLE_CHOICE_TASKS:
        raise ConfigError(
            f"Zero-shot confidence is defined for multiple choice, not for {examples[0].task}.",
            next_command="use --confidence probe",
        )
    scale = float(cache.identity["teacher"]["logit_scale"])
    image_ND = _unit_rows(cache.image.global_features([example.image.unit_id for example in examples]))
    probability_N = np.empty(len(examples), dtype=np.float32)
    outranked_N = np.empty(len(examples), dtype=np.float32)
    for row, example in enumerate(examples):
        text_CD = _unit_rows(cache.text.global_features([choice.text_unit.unit_id for choice in example.candidates]))
        score_C, label = scale * (text_CD @ image_ND[row]), _label_of(example)
        probability_N[row] = softmax(score_C)[label]
        outranked_N[row] = outranked_candidates(score_C[None], np.array([label]))[0]
    return TruthConfidence(probability_N=probability_N, outranked_N=outranked_N)


def _aligned_cache(caches: Sequence[TeacherCache]) -> TeacherCache:
    for cache in caches:
        if cache.image is not None and cache.text is not None and cache.identity["teacher"].get("logit_scale"):
            return cache
    raise ConfigError(
        "Zero-shot confidence needs a cache of an aligned pair of towers, such as clip-vit-l.",
        next_command="use --confidence probe",
    )


def examples_of(dataset: Dataset, names: Sequence[str]) -> list[Example]:
    """Return examples by id; raises `DatasetError` for an id that the split does not contain."""
    place = {name: index for index, name in enumerate(dataset.example_ids)}
    unknown = [name for name in names if name not in place]
    if unknown:
        raise DatasetError(
            "An example is not in this split.", where=f"{dataset.name}, split {dataset.split}", why=repr(unknown[0])
        )
    return [dataset[place[name]] for name in names]


def _label_of(example: Example) -> int:
    if example.label is None:
        raise DatasetError(
            "An example has no label, so no confidence in its ground truth can be estimated.",
            where=example.example_id,
            next_command="use a labelled split, or --confidence none",
        )
    return example.label


def _unit_rows(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    rows = np.asarray(values, np.float32)
    unit: npt.NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def assign_folds(groups: Sequence[str], *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of every example, (N,) in [0, number of folds).

    Examples of one group share a fold. Groups, in the order of a hash of their name and the seed, go to the fold
    with the fewest examples so far. With fewer groups than `folds`, every group is a separate fold.

    Args:
        folds: requested number of folds, at least 2.
    """
    if folds < 2:
        raise ConfigError("Cross-fitting needs at least two folds.", why=f"got {folds}")
    sizes = Counter(groups)
    loads = [0] * min(folds, len(sizes))
    fold_of: dict[str, int] = {}
    digests = {name: hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in sizes}
    for group in sorted(sizes, key=lambda name: (digests[name], name)):
        fold = loads.index(min(loads))
        fold_of[group] = fold
        loads[fold] += sizes[group]
    return np.array([fold_of[group] for group in groups], dtype=np.int64)


Array = npt.NDArray[np.float32]
Modality = Literal["vision", "text", "joint"]

SKETCH_DIM = 192
TEXT_DIM = 256
IMAGE_DIM = 64
"""Widths of the interaction, and of texts and pictures alone; features of wider teachers are randomly projected."""

_CHUNK = 512


def probe_features(caches: Sequence[TeacherCache], examples: Sequence[Example], modality: Modality) -> Array:
    """Return (N, C, F) float32, zero-padded for examples with fewer than C candidates.

    Features of several teachers are concatenated.

    Args:
        examples: examples of one task.
        modality: `vision` reads pictures and bags of words, `text` only texts.
    """
    stores = [store for cache in caches if (store := cache.image if modality == "vision" else cache.text) is not None]
    # A store's tokens are boxes if every picture has as many rows as boxes.
    boxes = {example.image.unit_id: len(example.image.boxes_R4) for example in examples}
    regions = [
        store
        for store in stores
        if modality == "vision"
        and store.has_tokens
        and any(boxes.values())
        and store.token_lengths(list(boxes)).tolist() == list(boxes.values())
    ]
    chunks = (examples[start : start + _CHUNK] for start in range(0, len(examples), _CHUNK))
    rows = [
        _picture_rows(stores, regions, chunk) if modality == "vision" else _text_rows(stores, chunk)
        for chunk in chunks
    ]
    return by_candidate(np.concatenate(rows), examples)


def by_candidate(rows_RF: Array, examples: Sequence[Example]) -> Array:
    """Return (N, C, F) from one row per candidate, in order; zeros for candidates that an example lacks."""
    valid_NC = candidate_mask(examples)
    values_NCF = np.zeros((*valid_NC.shape, rows_RF.shape[1]), np.float32)
    values_NCF[valid_NC] = rows_RF
    return values_NCF


def _text_rows(stores: Sequence[FeatureStore], examples: Sequence[Example]) -> Array:
    """Return one row per candidate, in order."""
    ids = [candidate.text_unit.unit_id for example in examples for candidate in example.candidates]
    return _project(_global_rows(stores, ids), TEXT_DIM, "text")


def _picture_rows(
    stores: Sequence[FeatureStore], regions: Sequence[FeatureStore], examples: Sequence[Example]
) -> Array:
    """Return one row per candidate, in order: picture features, and their interaction with the words."""
    words_RS = bags_of_words(examples)
    ids = [example.image.unit_id for example in examples for _ in example.candidates]
    pictures = [("image", _global_rows(stores, ids))]
    if regions:
        pictures.append(("tagged boxes", _region_rows(regions, examples, tagged=True)))
        pictures.append(("other boxes", _region_rows(regions, examples, tagged=False)))
    blocks: list[Array] = []
    for name, feature_RD in pictures:
        blocks.append(_project(feature_RD, IMAGE_DIM, name))
        blocks.append(_signs_product(feature_RD, SKETCH_DIM, f"{name} interaction") * words_RS)
    return np.concatenate(blocks, axis=1)


def bags_of_words(examples: Sequence[Example]) -> Array:
    """Return the bag of words of each candidate, in order, (R, S): of the answer alone where answers are chosen."""
    choice = examples[0].task in MULTIPLE_CHOICE_TASKS
    candidates = [candidate for example in examples for candidate in example.candidates]
    texts = [candidate.answer if choice else candidate.text for candidate in candidates]
    return np.stack([_bag_of_words(re.findall(r"\w+", text.casefold())) for text in texts])


def _bag_of_words(words: Sequence[str]) -> Array:
    """Return the sum of the words' sign vectors over the root of their number, (S,) float32; zeros without words."""
    if not words:
        return np.zeros(SKETCH_DIM, np.float32)
    digests = [hashlib.blake2b(word.encode(), digest_size=SKETCH_DIM // 8).digest() for word in words]
    bags = np.frombuffer(b"".join(digests), np.uint8).reshape(len(words), -1)
    signs = np.unpackbits(bags, axis=1).astype(np.float32) * 2 - 1
    total: Array = signs.sum(axis=0) / np.float32(np.sqrt(len(words)))
    return total


def _global_rows(stores: Sequence[FeatureStore], ids: Sequence[str]) -> Array:
    """Return the stores' standardised global features, each of about unit norm, concatenated to (rows, D)."""
    distinct = list(dict.fromkeys(ids))
    row_of = {unit_id: row for row, unit_id in enumerate(distinct)}
    parts = [
        _standardise(store.global_features(distinct), store.global_mean, store.global_variance) for store in stores
    ]
    return np.concatenate(parts, axis=1)[[row_of[unit_id] for unit_id in ids]]


def _region_rows(stores: Sequence[FeatureStore], examples: Sequence[Example], *, tagged: bool) -> Array:
    """Return, per candidate, the standardised mean over its tagged boxes, or over the other boxes; (rows, D).

    Rows without such boxes are zero.
    """
    rows_of = []
    for example in examples:
        for candidate in example.candidates:
            named = {tag.box for tag in candidate.tags}
            rows_of.append([box for box in range(len(example.image.boxes_R4)) if (box in named) == tagged])
    images_of = [example.image.unit_id for example in examples for _ in example.candidates]
    images = {example.image.unit_id: len(example.image.boxes_R4) for example in examples}
    starts = dict(zip(images, itertools.accumulate(images.values(), initial=0), strict=False))
    parts = []
    for store in stores:
        values_MD = np.asarray(store.token_features(list(images))[0], np.float32)
        pooled_RD = np.tile(np.asarray(store.token_mean, np.float32), (len(rows_of), 1))
        for row, (image, boxes) in enumerate(zip(images_of, rows_of, strict=True)):
            if boxes:
                pooled_RD[row] = values_MD[[starts[image] + box for box in boxes]].mean(axis=0)
        parts.append(_standardise(pooled_RD, store.token_mean, store.token_variance))
    return np.concatenate(parts, axis=1)


def _standardise(values: npt.NDArray[np.floating], mean_D: Array, variance_D: Array) -> Array:
    scaled: Array = (np.asarray(values, np.float32) - mean_D) / np.sqrt(variance_D + 1e-6)
    return scaled / np.float32(np.sqrt(scaled.shape[1]))


def _project(values_RD: Array, width: int, name: str) -> Array:
    """Return the values unchanged if they are narrow enough, else random projections of them."""
    return (
        values_RD
        if values_RD.shape[1] <= width
        else _signs_product(values_RD, width, name) / np.float32(np.sqrt(width))
    )


def _signs_product(values_RD: Array, width: int, name: str) -> Array:
    """Multiply by a fixed matrix of random signs that depends only on its name and shape."""
    depth = values_RD.shape[1]
    stream = hashlib.shake_256(f"{name}\0{depth}\0{width}".encode()).digest(-(-depth * width // 8))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=depth * width)
    product: Array = values_RD @ (bits.reshape(depth, width).astype(np.float32) * 2 - 1)
    return product
