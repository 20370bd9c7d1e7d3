"""What is missing is installed by the names of its packages; no index is asked for a name that is ours."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from advl_pipeline.base.packages import install_extra

METADATA = """Metadata-Version: 2.4
Name: advl-pipeline
Version: 9
Provides-Extra: hub
Provides-Extra: uniter
Provides-Extra: both
Requires-Dist: numpy>=2
Requires-Dist: datasets>=4; extra == "hub"
Requires-Dist: lmdb>=1.4; extra == "uniter"
Requires-Dist: advl-pipeline[hub,uniter]; extra == "both"
"""


@pytest.mark.parametrize("extras", [("hub", "uniter"), ("both",)])
def test_extras_are_their_packages_and_never_our_name(
    extras: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "advl_pipeline-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert shlex.split(install_extra(*extras)) == ["pip", "install", "datasets>=4", "lmdb>=1.4"]
