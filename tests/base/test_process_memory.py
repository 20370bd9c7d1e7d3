"""Peak memory is this program's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from advl_pipeline.base.compute import peak_memory_bytes

BLOCK_BYTES = 400_000_000


def test_the_peak_counts_what_was_held_and_not_what_the_parent_held() -> None:
    before = peak_memory_bytes()
    block = np.ones(BLOCK_BYTES, np.uint8)
    held = peak_memory_bytes()
    assert held >= before
    assert held >= BLOCK_BYTES
    code = "from advl_pipeline.base.compute import peak_memory_bytes; print(peak_memory_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 1_000_000 < child < len(block) // 2


FORGETTING = f"""
import numpy as np
from advl_pipeline.base.compute import forget_peak_memory, peak_memory_bytes

block = np.ones({BLOCK_BYTES}, np.uint8)
before = peak_memory_bytes()
del block
forget_peak_memory()
print(before, peak_memory_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_peak_can_be_forgotten() -> None:
    printed = subprocess.run([sys.executable, "-c", FORGETTING], check=True, capture_output=True, text=True).stdout
    before, after = map(int, printed.split())
    assert before >= BLOCK_BYTES
    assert after < before - BLOCK_BYTES // 2
