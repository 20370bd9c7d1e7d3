"""A type of chat model that nobody proved is tried before it is used: one conversation, here and in transformers."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from advl_pipeline.base.errors import ConfigError
from advl_pipeline.datasets.records import Candidate, Example, ImageUnit, text_unit


def require_same_likelihood(student: Any) -> None:
    """Refuse a type by which a conversation is not as likely as transformers says.

    Args:
        student: a chat model's.

    Raises:
        ConfigError: it is not, or one of the two could not compute it.
    """
    context, answer = "What is it?", "A lake."
    candidate = Candidate(text_unit=text_unit(f"{context} {answer}"), context_length=len(context))
    is_training = student.training
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "grey.png"
        Image.linear_gradient("L").convert("RGB").save(path)
        boxes = np.zeros((0, 4), np.float32)
        unit = ImageUnit(unit_id=str(path), path=path, width=256, height=256, boxes_R4=boxes, box_labels=())
        asked = Example(example_id="", task="vcr-q2a", image=unit, candidates=(candidate,), label=0)
        try:
            student.eval()
            batch = student.laid_out([asked])
            ours = student.encode(batch).answered
            assert ours is not None
            here = float(ours.log_likelihood_NK)
            place_NS = torch.arange(batch.sequence_ids_NS.shape[1])[None]
            logits = student.model(**student.prompts(batch, place_NS, place_NS >= 0)).logits[0].float()
            there = float(logits.log_softmax(-1)[batch.rows.source_Q, batch.rows.target_Q].sum())
            why = f"a conversation has the log-likelihood {here:.4g} here and {there:.4g} there"
            is_same = math.isclose(here, there, rel_tol=max(1e-3, 4 * torch.finfo(student.model.dtype).eps))
        except Exception as error:  # A type that nobody tried may raise anything.
            why, is_same = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__, False
        finally:
            student.train(is_training)
    if not is_same:
        what = f"The type {student.model.config.model_type} does not compute here what it does in transformers."
        raise ConfigError(what, why=why, next_command="choose one of the types in docs/students.md")
