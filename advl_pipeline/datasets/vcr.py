"""VCR: question -> answer and question + answer -> rationale, with object tags that refer to boxes.

The reader is a generator of rows. It checks each line of the annotation file and keeps the mixed lists of words and
tags as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from advl_pipeline.datasets.indexed import IndexedDataset
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.reading import Reading, RowVariant
from advl_pipeline.datasets.records import Candidate
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.row_files import text_field
from advl_pipeline.datasets.rows import Item, PictureFacts, RowSource, checked_rows
from advl_pipeline.datasets.spec import ReadOptions
from advl_pipeline.datasets.split_files import SplitFiles
from advl_pipeline.datasets.vcr_text import MASKED_TAG, TextStyle, word_candidates

NUM_CHOICES = 4
_WH_WORDS = frozenset({"why", "what", "where", "how", "who", "when", "which", "whose"})
_AUXILIARIES = frozenset(
    "is are was were am do does did can could will would should may might must has have had".split()
)


class VcrFiles(SplitFiles):
    """Questions with four answers and four rationales each."""

    tasks = ("vcr-q2a", "vcr-qa2r")

    def open(self, options: ReadOptions) -> IndexedDataset:
        annotations, is_labelled = self.named("annotations"), self.facts["labelled"]
        rows = RowSource(
            rows=lambda: checked_rows(annotations, partial(_item, labelled=is_labelled, objects_of={})),
            pictures=self.pictures,
            files=(annotations,),
            version=f"vcr {is_labelled}",
            kind="choice",
        )
        variants = []
        for task in options.tasks:
            # A split without labels has no right answers.
            if task == "vcr-qa2r" and (options.every_answer or not is_labelled):
                variants += [RowVariant(task, f":{task}-a{answer}", answer) for answer in range(NUM_CHOICES)]
            else:
                variants.append(RowVariant(task, f":{task}"))
        style = options.text_style or self.card.facts["text_style"]
        reading = VcrReading(variants=tuple(variants), text_style=style)
        return IndexedDataset(self.index_of(rows), reading, split=self.split, on_error=options.on_error)


@dataclass(frozen=True, kw_only=True)
class VcrReading(Reading):
    """Rules for converting questions to examples; `text_style` is the wording of object tags."""

    text_style: TextStyle

    def word(self, picture: PictureFacts, context: Sequence[str], choices: Sequence[str]) -> tuple[Candidate, ...]:
        """Return a candidate for each choice; each text is a JSON list of words and tags."""
        return word_candidates(
            self.text_style, picture.box_labels, [*map(orjson.loads, context)], [*map(orjson.loads, choices)]
        )


def _item(record: Mapping[str, Any], labelled: bool, objects_of: dict[tuple[str, str], Any]) -> Item:
    image, metadata = text_field(record, "img_fn"), text_field(record, "metadata_fn")
    objects: Any = record.get("objects")
    if objects_of.get((image, metadata), objects) != objects:
        raise Malformed(f"objects differ from those of another question about {image}")
    if (image, metadata) not in objects_of:
        for name in (image, metadata):
            if not is_safe_name(name):
                raise Malformed(f"name {name!r} leaves the dataset's folder")
        if not isinstance(objects, list) or not all(isinstance(item, str) for item in objects):
            raise Malformed("field 'objects' is not a list of texts")
    question = record.get("question")
    texts = [_sentence("question", question, len(objects))]
    if not question:
        raise Malformed("field 'question' has no words")
    for name in ("answer_choices", "rationale_choices"):
        choices = record.get(name)
        if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
            raise Malformed(f"field {name!r} is not a list of {NUM_CHOICES} choices")
        texts += [_sentence(name, choice, len(objects)) for choice in choices]
    answer, rationale = vcr_labels(record, labelled)
    objects_of[image, metadata] = objects
    return Item(
        item_id=text_field(record, "annot_id"),
        image=image,
        boxes_file=metadata,
        box_labels=tuple(objects),
        texts=tuple(texts),
        num_choices=NUM_CHOICES,
        label=None if answer < 0 else answer,
        rationale_label=None if rationale < 0 else rationale,
        stratum=_question_type(record),
        # Four consecutive cells contain every answer label and every rationale label once.
        cell=0 if answer < 0 else ((rationale - answer) % NUM_CHOICES) * NUM_CHOICES + answer,
    )


def _sentence(name: str, tokens: Any, num_objects: int) -> str:
    if tokens.__class__ is not list:
        raise Malformed(f"field {name!r} is not a list of tokens")
    # A full annotation file has two million sentences: plain words are skipped at once.
    for token in [token for token in tokens if token.__class__ is not str]:
        if token.__class__ is not list:
            raise Malformed(f"field {name!r} holds a token that is neither a word nor a list of tags")
        for tag in token:
            if tag.__class__ is not int or not (0 <= (tag if tag < MASKED_TAG else tag - MASKED_TAG) < num_objects):
                raise Malformed(f"field {name!r} has tag {tag!r}, the picture has {num_objects} objects")
    return orjson.dumps(tokens).decode()


def vcr_labels(record: Mapping[str, Any], labelled: bool) -> tuple[int, int]:
    """Return the labels of a question, -1 for missing ones.

    Raises:
        Malformed: a label is out of range, missing from a labelled split, or present without the other one.
    """
    labels: dict[str, Any] = {name: record.get(name) for name in ("answer_label", "rationale_label")}
    is_there = labelled or any(label is not None for label in labels.values())
    for name, label in labels.items():
        if label is None and is_there:
            raise Malformed(f"field {name!r} is missing")
        if label is not None and (label.__class__ is not int or not 0 <= label < NUM_CHOICES):
            raise Malformed(f"{name} is {label!r}, not one of 0 to {NUM_CHOICES - 1}")
    answer, rationale = labels.values()
    return (int(answer), int(rationale)) if is_there else (-1, -1)


def _question_type(record: Mapping[str, Any]) -> str:
    """Return the type of a question: the one in its line, else (official lines have none) a type by its first word.

    The types by first word are the wh-words, "yes/no" and "other".
    """
    question_type, first = record.get("question_type"), record["question"][0]
    if isinstance(question_type, str):
        return question_type
    first = first.lower() if isinstance(first, str) else ""
    if first in _WH_WORDS:
        return str(first)
    return "yes/no" if first in _AUXILIARIES else "other"


def annotation_of(example_id: str) -> str:
    """Return the `annot_id` of a VCR example id."""
    return example_id.rsplit(":", 1)[0]
