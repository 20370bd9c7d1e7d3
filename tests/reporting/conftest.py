"""Make the synthetic executor of the studies' tests importable here too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
