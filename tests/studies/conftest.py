"""Make the synthetic executor importable by name in this folder's tests and in the processes that they start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
