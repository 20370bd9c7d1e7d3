"""Text layouts that several students share.

`[CLS] q [SEP] a [SEP]` with type 1 from the answer on; a question and its answer before a rationale are one part.
"""

from __future__ import annotations

from advl_pipeline.students.text_rows import Part, TextRow, TextTokenizer


def pair_row(parts: list[Part], tokenizer: TextTokenizer, *, separators: int = 1) -> TextRow:
    """Lay out a pair, or a single text.

    Args:
        parts: question, answer and rationale, as far as there are.
        tokenizer: gives the special tokens.
        separators: tokens between the two sides, 2 for RoBERTa.
    """
    row = TextRow()
    row.add_special(tokenizer.cls_id)
    *context, answer = parts
    for part in context or [answer]:
        row.add_part(part)
    row.add_special(tokenizer.sep_id)
    if context:
        for _ in range(separators - 1):
            row.add_special(tokenizer.sep_id)
        row.add_part(answer, 1)
        row.add_special(tokenizer.sep_id, 1)
    return row
