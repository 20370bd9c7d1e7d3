"""Tables and comparisons of a study stay the same to the digit, whatever becomes of the code that makes them."""

from __future__ import annotations

import json
from pathlib import Path

from golden_numbers import golden_numbers, make_golden_study

GOLDEN = Path(__file__).parents[1] / "assets" / "golden_report.json"


def test_every_number_of_the_report_is_the_one_that_it_was(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    numbers = json.loads(json.dumps(golden_numbers(make_golden_study(tmp_path))))
    assert numbers.keys() == expected.keys()
    different = {name: (numbers[name], value) for name, value in expected.items() if numbers[name] != value}
    assert not different
