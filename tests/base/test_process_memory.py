"""Peak memory is this program's own, and can be forgotten."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from advl_pipeline.base.compute import peak_memory_bytes

BLOCK_BYTES = 400_000_000
PROGRAM = f"""
import numpy as np
from advl_pipeline.base.compute import forget_peak_memory, peak_memory_bytes

begun = peak_memory_bytes()
block = np.ones({BLOCK_BYTES} // 2, np.uint8)
before = peak_memory_bytes()
del block
forget_peak_memory()
print(begun, before, peak_memory_bytes())
"""


def test_the_peak_counts_what_was_held_and_not_what_the_parent_held() -> None:
    block = np.ones(BLOCK_BYTES, np.uint8)
    assert peak_memory_bytes() >= len(block)
    printed = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    begun, before, after = map(int, printed.split())
    assert 1_000_000 < begun < len(block) // 2 <= before
    if sys.platform == "linux":  # It alone lets a process forget its peak.
        assert after < before - len(block) // 4
