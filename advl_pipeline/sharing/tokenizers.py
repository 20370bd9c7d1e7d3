"""A student's tokenizer and picture reader as transformers has them: they lay out texts as the student did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, ViltProcessor, ViTImageProcessor

from advl_pipeline.students.pixel_student import PixelStudent
from advl_pipeline.students.text_rows import Part, TextRow, TextTokenizer

_FIRST, _SECOND = -1, -2
"""Stand for the tokens of a text, and of the text that follows it, in a row."""

BICUBIC = 3


@runtime_checkable
class LaysOutTexts(Protocol):
    """A student that reads rows of a tokenizer's tokens."""

    @property
    def max_text_length(self) -> int: ...

    @property
    def tokenizer(self) -> TextTokenizer: ...

    def num_special_of(self, num_parts: int) -> int: ...

    def lay_out(self, parts: list[Part], task: str) -> TextRow: ...


def shared_tokenizer(
    student: LaysOutTexts, task: str, *, image_tokens: Sequence[int] = (), types: bool = True
) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the student's special tokens around a text, and around a pair of texts.

    Args:
        student: whose rows it lays out.
        task: its head (`records.head_name`), which may decide about special tokens.
        image_tokens: ids that stand for the picture, put after the first token.
        types: whether the model takes token types.
    """
    tokenizer = student.tokenizer
    core = tokenizer.copy()
    rows = [
        student.lay_out([Part(token_ids=[mark], spans=[(0, 0)]) for mark in marks], task)
        for marks in ((_FIRST,), (_FIRST, _SECOND))
    ]
    templates = []
    special: dict[str, int] = {}
    for row in rows:
        pieces = []
        for position, (token, kind) in enumerate(zip(row.token_ids, row.types, strict=True)):
            if token in (_FIRST, _SECOND):
                pieces.append(f"${'A' if token == _FIRST else 'B'}:{kind}")
                continue
            for index in (token, *(image_tokens if position == 0 else ())):
                name = core.id_to_token(index) or "<image>"
                special[name] = index
                pieces.append(f"{name}:{kind}")
        templates.append(pieces)
    core.post_processor = TemplateProcessing(
        single=templates[0], pair=templates[1], special_tokens=[*special.items()]
    )
    is_pair = task == "vcr"
    # The student may keep room for three parts; what it cuts is cut here at the same length.
    room = student.max_text_length - student.num_special_of(1 + is_pair) + len(image_tokens)
    names = {
        f"{role}_token": core.id_to_token(getattr(tokenizer, f"{role}_id")) for role in ("pad", "cls", "sep", "mask")
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=room + sum(token >= 0 for token in rows[is_pair].token_ids),
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
        **names,
    )


def shared_processor(student: PixelStudent, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a processor of pictures and texts: pictures are squeezed to the student's square."""
    side = student.config.image_size
    images = ViTImageProcessor(
        size={"height": side, "width": side},
        resample=BICUBIC,
        image_mean=list(student.pixel_mean),
        image_std=list(student.pixel_std),
    )
    return ViltProcessor(images, tokenizer)
