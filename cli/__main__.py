"""`python -m advl_cli`: the same as `advl`."""

from __future__ import annotations

from .main import main

main()
