"""What docs/caches.md says about reading a cache works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "caches.md"
PLACE = '"caches/minilm-l6/scenes-vcr/train"'


def test_reading_as_the_page_says(pristine: Path) -> None:
    plain, ours, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in (plain, ours):
        assert block.count(PLACE) == 1
    where = repr(str(pristine / "cache"))
    exec(plain.replace(PLACE, where), {})
    names: dict[str, Any] = {}
    exec(ours.replace(PLACE, where), names)
    store, values, lengths = names["cache"].text, names["values"], names["lengths"]
    assert values.shape == (lengths.sum(), store.token_dim)
    assert names["vectors"].shape == (3, store.global_dim)
