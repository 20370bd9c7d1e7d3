"""Caches are read, verified and exported without torch, and what needs more says what to install, by true names."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny_extraction import tiny_extract

from advl_pipeline.base.packages import EXTRA_OF, install_extra, missing_extra
from advl_pipeline.cache.reader import open_cache

ROOT = Path(__file__).parents[1]

BARE = """
import contextlib, importlib.abc, io, json, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import numpy as np
from advl_cli.main import main
from advl_pipeline.cache.reader import open_cache

for name in ("cache", "codes"):
    text = open_cache(name).text
    values, lengths = text.token_features(list(text.ids))
    np.savez(f"{{name}}.npz", values=values, lengths=lengths)
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            main(words.split())
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue()]))
"""
"""Runs in a process to which no package of the extra `train` is there."""


packages_distributions = functools.cache(importlib.metadata.packages_distributions)


def modules_of(extra: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {item.split(">")[0].lower() for item in project["optional-dependencies"][extra]}
    distributions = packages_distributions()
    return {
        module
        for module, names in distributions.items()
        if {name.lower().replace("_", "-") for name in names} & wanted
    }


WORKS = {
    "cache info cache": "complete",
    "cache verify cache": "sound",
    "cache export cache --to safetensors --output out": "wrote",
    "cache export codes --to safetensors --output coded": "wrote",
    "cache prune cache --all-confidences --dry-run": "would remove",
    "--help": "extract",
}
NEEDS_MORE = (
    "extract --teacher minilm-l6 --dataset scenes-vcr",
    "finetune --dataset scenes-vcr --method plain --output run",
    "cache verify cache --recompute 2",
)


def test_a_cache_is_read_without_torch_and_what_needs_more_says_what_to_install(tmp_path: Path) -> None:
    tiny_extract(tmp_path / "data", tmp_path / "cache", confidence="none")
    tiny_extract(tmp_path / "data", tmp_path / "codes", confidence="none", dtype="int8")
    missing = modules_of("train")
    assert {"torch", "transformers", "timm", "PIL", "scipy"} <= missing
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(missing=missing)],
        cwd=tmp_path,
        input=json.dumps([*WORKS, *NEEDS_MORE]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("cache", "codes"):
        text = open_cache(tmp_path / name).text
        assert text is not None
        read, (values, lengths) = np.load(tmp_path / f"{name}.npz"), text.token_features(list(text.ids))
        np.testing.assert_array_equal(read["values"].view(np.uint8), values.view(np.uint8))
        np.testing.assert_array_equal(read["lengths"], lengths)
    printed = dict(zip([*WORKS, *NEEDS_MORE], map(json.loads, done.stdout.splitlines()), strict=True))
    for words, wording in WORKS.items():
        code, message = printed[words]
        assert code == 0, message
        assert wording in message
    for words in NEEDS_MORE:
        code, message = printed[words]
        assert code == 2, message
        assert str(install_extra("train")) in message
        assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_the_extras_are_what_the_project_declares() -> None:
    assert modules_of("zarr") == {module for module, extra in EXTRA_OF.items() if extra == "zarr"}
    # torch and matplotlib bring more, which nobody imports before them.
    brought = {"functorch", "torchgen", "typing_extensions", "mpl_toolkits", "pylab"}
    assert modules_of("train") - brought == set(EXTRA_OF)
    assert missing_extra(ModuleNotFoundError("no", name="nobody_has_this")) is None


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
