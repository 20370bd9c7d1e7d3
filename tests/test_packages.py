"""What is missing is installed from where ADVL itself came from; no index is asked for a name it does not have."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from advl_pipeline.packages import DISTRIBUTION, install_extra

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
REPOSITORY = "https://example.org/advl.git"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"url": "file://{folder}", "dir_info": {"editable": True}}, ["--editable", "{folder}[hub]"]),
        ({"url": "file://{folder}", "dir_info": {}}, ["{folder}[hub]"]),
        ({"url": "file://{folder}/gone.whl", "archive_info": {}}, ["datasets>=4"]),
        (
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            [f"{DISTRIBUTION}[hub] @ git+{REPOSITORY}@abc"],
        ),
        (
            {"url": "https://user:secret@example.org/advl.whl", "archive_info": {}},
            [f"{DISTRIBUTION}[hub] @ https://example.org/advl.whl"],
        ),
        (None, ["datasets>=4"]),
    ],
)
def test_an_extra_comes_from_where_the_package_came(
    source: dict[str, object] | None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a checkout"
    info = folder / "advl_pipeline-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    if source is not None:
        text = json.dumps(source).replace("{folder}", str(folder).replace(" ", "%20"))
        (info / "direct_url.json").write_text(text)
    monkeypatch.setattr(sys, "path", [str(folder)])
    assert shlex.split(install_extra("hub")) == [
        "pip",
        "install",
        *(word.replace("{folder}", str(folder)) for word in words),
    ]


@pytest.mark.parametrize("extras", [("hub", "uniter"), ("both",)])
def test_extras_without_a_source_are_their_packages_and_never_our_name(
    extras: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "advl_pipeline-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert shlex.split(install_extra(*extras)) == ["pip", "install", "datasets>=4", "lmdb>=1.4"]


def test_what_building_leaves_in_a_checkout_is_not_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "advl_pipeline.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text(METADATA)
    before = str(install_extra("hub"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(install_extra("hub")) == before
