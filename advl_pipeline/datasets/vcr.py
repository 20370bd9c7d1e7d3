"""VCR: question -> answer and question + answer -> rationale, with object tags that point at boxes.

A generator of rows: each line of the annotation file is checked, and its mixed lists of words and tags become texts
in which a tag list is one word (`vcr_text.sentence_of`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from advl_pipeline.datasets.index import PictureFacts, open_index
from advl_pipeline.datasets.indexed import IndexedDataset, Reading, Source, Variant
from advl_pipeline.datasets.problems import Malformed
from advl_pipeline.datasets.records import Candidate, Task
from advl_pipeline.datasets.roots import is_safe_name
from advl_pipeline.datasets.rows import Item, Row, RowSource
from advl_pipeline.datasets.tables import parse_object, scan_lines, text_field
from advl_pipeline.datasets.vcr_text import MASKED_TAG, TextStyle, sentence_of, tokens_of, word_candidates
from advl_pipeline.errors import ConfigError

NUM_CHOICES = 4
Conditioning = Literal["right", "all"]
"""Rationales are read given the right answer, or given each of the four answers (the test server's 20 scores)."""

_TYPE_FIELD = "question_type"
"""Field of corpora in VCR's format that say it."""

_WH_WORDS = frozenset({"why", "what", "where", "how", "who", "when", "which", "whose"})
_AUXILIARIES = frozenset(
    "is are was were am do does did can could will would should may might must has have had".split()
)


def open_vcr(
    source: Source,
    annotations: Path,
    *,
    labelled: bool,
    tasks: Sequence[Task],
    conditioning: Conditioning | None,
    style: TextStyle,
) -> IndexedDataset:
    """Open a split in the format of VCR.

    Args:
        annotations: its annotation file.
        labelled: whether its items must have labels.
        tasks: "vcr-q2a", "vcr-qa2r" or both.
        conditioning: None for "right" where there are labels, "all" elsewhere.

    Raises:
        ConfigError: rationales for the right answer, which nobody knows. DatasetError: a missing or malformed file.
    """
    if conditioning == "right" and not labelled:
        raise ConfigError(
            f"The right answers of {source.dataset} {source.split} are not public.",
            why="rationales are asked for the right answer",
            next_command="ask for all of them: conditioning all",
        )
    rows = vcr_source(annotations, pictures=source.pictures, labelled=labelled)
    index = open_index(rows, dataset=source.dataset, folder=source.index)
    reading = vcr_reading(tasks, conditioning or ("right" if labelled else "all"), style)
    return IndexedDataset(source, index, reading, digests=index.digests)


def vcr_source(annotations: Path, *, pictures: Path, labelled: bool) -> RowSource:
    """Return the rows of an annotation file; `labelled` says whether its items must have labels."""
    return RowSource(
        rows=lambda: _rows(annotations, labelled),
        pictures=pictures,
        files=(annotations,),
        version=f"vcr {labelled}",
        kind="choice",
    )


def vcr_reading(tasks: Sequence[Task], conditioning: Conditioning, style: TextStyle) -> Reading:
    """Return how rows of VCR become examples of these tasks."""
    return Reading(variants=tuple(_variants(tasks, conditioning)), text_style=style, word=partial(_word, style))


def _word(
    style: TextStyle, picture: PictureFacts, context: Sequence[str], choices: Sequence[str]
) -> tuple[Candidate, ...]:
    return word_candidates(style, picture.box_labels, [*map(tokens_of, context)], [*map(tokens_of, choices)])


def _rows(path: Path, labelled: bool) -> Iterator[Row]:
    objects_of: dict[tuple[str, str], Any] = {}
    for line in scan_lines(path):
        record: Item | Malformed
        try:
            record = _item(parse_object(line.data), labelled, objects_of)
        except Malformed as error:
            record = error
        yield Row(record, name=str(line.number), file=str(path), line=line.number)


def _item(record: Mapping[str, Any], labelled: bool, objects_of: dict[tuple[str, str], Any]) -> Item:
    annot_id = text_field(record, "annot_id")
    names = (text_field(record, "img_fn"), text_field(record, "metadata_fn"))
    if names not in objects_of:
        check_picture_fields(record)
    objects: Any = record.get("objects")
    if objects_of.get(names, objects) != objects:
        raise Malformed(f"objects differ from those of another question about {names[0]}")
    question, *choices = _sentences(record, len(objects))
    answer, rationale = vcr_labels(record, labelled)
    objects_of[names] = objects
    # Four cells in a row hold every answer label and every rationale label once.
    cell = ((rationale - answer) % NUM_CHOICES) * NUM_CHOICES + answer
    return Item(
        item_id=annot_id,
        image=names[0],
        boxes_file=names[1],
        box_labels=tuple(objects),
        texts=(question, *choices),
        num_choices=NUM_CHOICES,
        label=answer if answer >= 0 else None,
        rationale_label=rationale if rationale >= 0 else None,
        stratum=question_type(record),
        cell=cell if answer >= 0 and rationale >= 0 else 0,
    )


def question_of(example_id: str) -> str:
    """Return the `annot_id` of a VCR example id."""
    return example_id.rsplit(":", 1)[0]


def _variants(tasks: Sequence[Task], conditioning: Conditioning) -> list[Variant]:
    variants = []
    for task in tasks:
        if task == "vcr-qa2r" and conditioning == "all":
            variants += [Variant(task, "rationale", f":{task}-a{answer}", answer) for answer in range(NUM_CHOICES)]
        else:
            variants.append(Variant(task, "choice" if task == "vcr-q2a" else "rationale", f":{task}"))
    return variants


def check_picture_fields(record: Mapping[str, Any]) -> None:
    """Check the fields that say which picture a question is about.

    Raises:
        Malformed: a name leaves the folder of the pictures, or `objects` is not a list of texts.
    """
    for name in ("img_fn", "metadata_fn"):
        if not is_safe_name(record[name]):
            raise Malformed(f"{name} {record[name]!r} leaves the dataset's folder")
    objects = record.get("objects")
    if not isinstance(objects, list) or not all(isinstance(item, str) for item in objects):
        raise Malformed("field 'objects' is not a list of texts")


def _sentences(record: Mapping[str, Any], num_objects: int) -> Iterator[str]:
    """Yield question, answers and rationales as texts.

    Raises:
        Malformed: one is missing or of another type, or has a tag that no object of the picture has.
    """
    question = record.get("question")
    yield _sentence("question", question, num_objects)
    if not question:
        raise Malformed("field 'question' has no words")
    for name in ("answer_choices", "rationale_choices"):
        choices = record.get(name)
        if not isinstance(choices, list) or len(choices) != NUM_CHOICES:
            raise Malformed(f"field {name!r} is not a list of {NUM_CHOICES} choices")
        for choice in choices:
            yield _sentence(name, choice, num_objects)


def vcr_labels(record: Mapping[str, Any], labelled: bool) -> tuple[int, int]:
    """Return the labels of a question, -1 where it has none.

    Raises:
        Malformed: a label is out of range, or missing from a labelled split.
    """
    answer, rationale = (_label_of(record, name) for name in ("answer_label", "rationale_label"))
    if (answer < 0) != (rationale < 0) or (labelled and answer < 0):
        missing = "answer_label" if answer < 0 else "rationale_label"
        raise Malformed(f"field {missing!r} is missing")
    return answer, rationale


def _sentence(name: str, tokens: Any, num_objects: int) -> str:
    if tokens.__class__ is not list:
        raise Malformed(f"field {name!r} is not a list of tokens")
    # Two million sentences pass here when a full annotation file is indexed: words are put aside at once.
    for token in [token for token in tokens if token.__class__ is not str]:
        if token.__class__ is not list:
            raise Malformed(f"field {name!r} holds a token that is neither a word nor a list of tags")
        for tag in token:
            if tag.__class__ is not int or not (0 <= (tag if tag < MASKED_TAG else tag - MASKED_TAG) < num_objects):
                raise Malformed(f"field {name!r} has tag {tag!r}, the picture has {num_objects} objects")
    return sentence_of(tokens)


def _label_of(record: Mapping[str, Any], name: str) -> int:
    label = record.get(name)
    if label is None:
        return -1
    if label.__class__ is not int or not 0 <= label < NUM_CHOICES:
        raise Malformed(f"{name} is {label!r}, not one of 0 to {NUM_CHOICES - 1}")
    return int(label)


def question_type(record: Mapping[str, Any]) -> str:
    """Return the kind of a question: what its line says, or as official lines say nothing, a kind by its first word.

    That is a wh-word, "yes/no" or "other".
    """
    told, question = record.get(_TYPE_FIELD), record["question"]
    if isinstance(told, str):
        return told
    first = question[0].lower() if isinstance(question[0], str) else ""
    if first in _WH_WORDS:
        return first
    return "yes/no" if first in _AUXILIARIES else "other"
