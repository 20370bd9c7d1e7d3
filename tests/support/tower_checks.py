"""What every vision tower must do, whatever its family."""

from __future__ import annotations

import dataclasses

import torch
from PIL import Image

from advl_pipeline.datasets.records import ImageUnit
from advl_pipeline.teachers.interface import ImageTower


def require_same_in_a_batch(tower: ImageTower, picture: ImageUnit) -> None:
    """Encode a picture alone and behind another one: the same features, within the range of float16."""
    other = picture.path.with_name("other.png")
    Image.open(picture.path).transpose(Image.Transpose.ROTATE_180).save(other)
    unlike = tower.prepare(dataclasses.replace(picture, unit_id="other", path=other))
    prepared = tower.prepare(picture)
    alone, together = tower.encode([prepared]), tower.encode([unlike, prepared])
    largest = max(float(values.abs().max()) for values in [together.global_ND, *together.token_values])
    assert largest < 65504
    assert not torch.allclose(together.global_ND[0], together.global_ND[1])
    tolerance = {"atol": 1e-5 * max(largest, 1.0), "rtol": 1e-4}
    torch.testing.assert_close(alone.global_ND[0], together.global_ND[1], **tolerance)
    torch.testing.assert_close(alone.token_values[0], together.token_values[1], **tolerance)
