"""Make the helpers of this folder, and the synthetic executor of the studies' tests, importable by name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "studies")]
