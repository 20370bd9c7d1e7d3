"""Every format that is measured gives back what was written, and a run's figures fill the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from advl_pipeline.cache.order import epoch_order
from benchmarks.corpus import texts
from benchmarks.formats import FORMATS, Format, RandomAccess
from benchmarks.page import BEGIN, END, render, write_page
from benchmarks.peers import PEERS


@pytest.mark.parametrize("kind", [*FORMATS, *PEERS], ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore")
def test_formats_give_back_what_was_written(kind: type[Format], tmp_path: Path) -> None:
    if not kind.is_available():
        pytest.skip(f"{kind.needs} is not installed")
    corpus = texts(40)
    expected = [rows.tobytes() for rows in corpus.units()]
    kind().build(tmp_path, corpus)
    item = kind()
    item.open(tmp_path, corpus)
    order = epoch_order(len(corpus), seed=0, epoch=0)
    found = [np.asarray(rows).tobytes() for batch in item.batches(order, 16) for rows in batch]
    item.close()
    if issubclass(kind, RandomAccess):
        assert found == [expected[unit] for unit in order]
    else:  # A stream chooses its own order.
        assert sorted(found) == sorted(expected)


def test_the_page_takes_the_tables_of_a_run(tmp_path: Path) -> None:
    figures = {
        "machine": "two cores",
        "sizes": "quick",
        "reading": {"texts": [{"name": "ours", "warm": 41_234.0, "cold": 9_000.0}]},
        "skipped": ["MDS (streaming is not installed)"],
        "variants": [{"name": "int8", "num_bytes": 5e6, "units_per_second": 2e4, "cosine_error": 1e-4}],
    }
    goal = {"name": "warm", "value": 1.22, "target": 1.5, "at_least": True, "is_met": False}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    for _ in range(2):
        write_page(page, render(figures, [goal]))
    content = page.read_text()
    assert content.startswith("before")
    assert content.endswith("after\n")
    assert "stale" not in content
    assert content.count("| ours | 41.2 | 9.0 |") == 1
    assert "| warm | 1.22 (at least 1.5) | FAIL |" in content
    assert "MDS (streaming is not installed)" in content
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        write_page(tmp_path / "bare.md", "x")
