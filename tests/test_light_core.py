"""Caches are read, verified and exported without torch, and whatever needs more says what to install."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny_extraction import tiny_extract

from advl_pipeline.cache.reader import open_cache
from advl_pipeline.packages import EXTRA_OF, missing_extra

ROOT = Path(__file__).parents[1]

BARE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from advl_cli.main import main
{body}
"""


def modules_of(extra: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {item.split(">")[0].lower() for item in project["optional-dependencies"][extra]}
    found = importlib.metadata.packages_distributions()
    return {module for module, names in found.items() if {name.lower().replace("_", "-") for name in names} & wanted}


def bare(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process to which no package of the extra `train` is there."""
    missing = modules_of("train")
    assert {"torch", "transformers", "timm", "PIL", "scipy"} <= missing
    return subprocess.run(
        [sys.executable, "-c", BARE.format(missing=missing, body=body)], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    tiny_extract(folder / "data", folder / "cache", confidence=False)
    tiny_extract(folder / "data", folder / "codes", confidence=False, dtype="int8")
    return folder


@pytest.mark.parametrize("cache", ["cache", "codes"])
def test_a_cache_is_read_without_torch(folder: Path, cache: str) -> None:
    body = (
        "from advl_pipeline.cache.reader import open_cache\n"
        "import numpy as np\n"
        f"text = open_cache('{cache}').text\n"
        "values, lengths = text.token_features(list(text.ids))\n"
        "np.savez('read.npz', values=values, lengths=lengths)\n"
    )
    done = bare(folder, body)
    assert done.returncode == 0, done.stderr
    text = open_cache(folder / cache).text
    assert text is not None
    read, (values, lengths) = np.load(folder / "read.npz"), text.token_features(list(text.ids))
    np.testing.assert_array_equal(read["values"].view(np.uint8), values.view(np.uint8))
    np.testing.assert_array_equal(read["lengths"], lengths)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cache", "info", "cache"], "complete"),
        (["cache", "verify", "cache"], "sound"),
        (["cache", "export", "cache", "--to", "safetensors", "--output", "out.safetensors"], "wrote"),
        (["cache", "export", "codes", "--to", "safetensors", "--output", "codes.safetensors"], "wrote"),
        (["cache", "prune", "cache", "--all-confidences", "--dry-run"], "would remove"),
        (["--help"], "extract"),
    ],
)
def test_commands_of_a_cache_work_without_torch(folder: Path, arguments: list[str], told: str) -> None:
    done = bare(folder, f"main({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "--teacher", "minilm-l6", "--dataset", "scenes-vcr"],
        ["finetune", "--dataset", "scenes-vcr", "--method", "plain", "--output", "run"],
        ["cache", "verify", "cache", "--recompute", "2"],
    ],
)
def test_what_needs_more_says_what_to_install(folder: Path, arguments: list[str]) -> None:
    done = bare(folder, f"main({arguments!r})")
    assert done.returncode == 2, done.stderr
    # Asked where the command ran: a checkout's folder may hold what building left of the package.
    said = "from advl_pipeline.packages import install_extra; print(install_extra('train'))"
    hint = subprocess.run([sys.executable, "-c", said], cwd=folder, capture_output=True, text=True, check=True)
    assert hint.stdout.strip() in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "run").exists()


def test_the_extras_are_what_the_project_declares() -> None:
    assert modules_of("zarr") == {module for module, extra in EXTRA_OF.items() if extra == "zarr"}
    # torch and matplotlib bring two more each, which nobody imports before them.
    assert modules_of("train") - {"functorch", "torchgen", "mpl_toolkits", "pylab"} == set(EXTRA_OF)
    assert missing_extra(ModuleNotFoundError("no", name="nobody_has_this")) is None
