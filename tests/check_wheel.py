"""Build the wheel and run `advl --help` and `--version` from it, outside the tree.

The wheel is unpacked beside nothing else of the project; its dependencies come from this environment. It proves that
the packages, their data files and the entry point are in the wheel.

With `--light` it is installed with its core dependencies into an environment of its own, which is weighed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import sys
sys.path.insert(0, {site!r})
from importlib.resources import files
import advl_cli.main, advl_pipeline
assert advl_pipeline.__file__.startswith({site!r}), advl_pipeline.__file__
assert any(path.name.endswith(".toml") for path in files("advl_data").iterdir()), "no dataset card in the wheel"
try:
    advl_cli.main.main(["--help"])
finally:
    loaded = {{"torch", "zarr", "transformers", "timm"}} & set(sys.modules)
    assert not loaded, f"advl --help imported {{loaded}}"
"""


LIGHT_MB = 100
"""What an environment that reads caches may take, without pip."""


def check_light(wheel: Path, scratch: Path) -> None:
    """Install the wheel without extras into a fresh environment, weigh it, and read its help."""
    environment = scratch / "light"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", str(wheel)]
    subprocess.run(install, check=True)
    size = (
        sum(path.stat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6
    )
    subprocess.run([python, "-c", "import advl_pipeline.cache.reader"], cwd=scratch, check=True)
    subprocess.run([environment / "bin" / "advl", "cache", "info", "--help"], cwd=scratch, check=True)
    print(f"light core: {size:.0f} MB (at most {LIGHT_MB})")
    if size > LIGHT_MB:
        sys.exit("the core is too heavy")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, str(ROOT)]
        subprocess.run(build, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        site = Path(scratch) / "site"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
        subprocess.run(install, check=True)
        probe = subprocess.run(
            [sys.executable, "-c", PROBE.format(site=str(site))],
            cwd=scratch,
            check=True,
            capture_output=True,
            text=True,
        )
        if "extract" not in probe.stdout:
            sys.exit(f"the wheel's help lists no command extract:\n{probe.stdout}")
        if not (site / "bin" / "advl").exists():
            sys.exit("the wheel installs no command advl")
        if "--light" in sys.argv:
            check_light(wheel, Path(scratch))
    print("wheel: builds, installs and answers --help from outside the tree")


if __name__ == "__main__":
    main()
