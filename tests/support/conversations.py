"""Conversations about made-up pictures, as a student of ours and as transformers' processor reads them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from advl_pipeline.datasets.records import Candidate, Example
from advl_pipeline.students.generative import GenerativeStudent, model_config

Asked = tuple[Example, Candidate, str | None]
"""An example, one of its candidates, and the answer where the candidate is none itself."""


def turns(
    student: GenerativeStudent, example: Example, candidate: Candidate, answer: str | None
) -> list[dict[str, Any]]:
    """Return the conversation as a user of transformers writes it."""
    is_choice = example.task == "vcr-q2a"
    asked = candidate.text[: candidate.context_length] if is_choice else candidate.text
    if instruction := student.instruction(example.task):
        asked = f"{asked}\n{instruction}"
    if is_choice:
        answer = candidate.text[candidate.answer_start :]
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    if answer is not None:
        conversation.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return conversation


def processed(student: GenerativeStudent, pairs: list[Asked], side: str = "right") -> Any:
    """Return what transformers' processor makes of conversations."""
    processor = student.processor
    texts = [
        processor.apply_chat_template(
            turns(student, *pair), add_generation_prompt=len(turns(student, *pair)) == 1, tokenize=False
        )
        for pair in pairs
    ]
    pictures = [[Image.open(example.image.path).convert("RGB")] for example, _, _ in pairs]
    return processor(text=texts, images=pictures, padding=True, padding_side=side, return_tensors="pt")


def theirs(student: GenerativeStudent) -> Any:
    """Return transformers' model with the student's weights."""
    model = AutoModelForImageTextToText.from_config(model_config(student.config)).eval()
    model.load_state_dict(student.model.state_dict())
    return model


def pairs_of(examples: list[Example]) -> list[Asked]:
    return [(example, candidate, None) for example in examples for candidate in example.candidates]


def labels_on_answers(student: GenerativeStudent, inputs: Any, prompts: list[int]) -> torch.Tensor:
    """Return labels on the answers and the token that ends them, -100 elsewhere; rows are padded on the right."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, (ids, start) in enumerate(zip(inputs["input_ids"].tolist(), prompts, strict=True)):
        end = ids.index(student.chat.end_id, start) + 1
        labels[row, start:end] = inputs["input_ids"][row, start:end]
    return labels
