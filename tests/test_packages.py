"""What is missing is installed from where ADVL itself came from; no index is asked for a name it does not have."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from advl_pipeline.packages import DISTRIBUTION, install_extra

METADATA = """Metadata-Version: 2.4
Name: advl-pipeline
Version: 9
Provides-Extra: hub
Provides-Extra: uniter
Requires-Dist: numpy>=2
Requires-Dist: datasets>=4; extra == "hub"
Requires-Dist: lmdb>=1.4; extra == "uniter"
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
    monkeypatch.syspath_prepend(str(folder))
    assert shlex.split(install_extra("hub")) == [
        "pip",
        "install",
        *(word.replace("{folder}", str(folder)) for word in words),
    ]


def test_several_extras_without_a_source_are_the_packages_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "advl_pipeline-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert shlex.split(install_extra("hub", "uniter")) == ["pip", "install", "datasets>=4", "lmdb>=1.4"]
