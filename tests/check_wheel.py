"""Build the wheel and use it outside the tree: its help, and README's example of own data in a bare environment.

The environment holds what the install line of README declares and nothing else, linked from this one, so that it
takes a second to make. The example has twenty pictures and is what README says, but for the number of steps.

With `--light` the wheel is installed with its core dependencies alone into an environment of its own, which is
weighed; with `--extras` it is installed with each extra. With `--fresh` the example runs word for word in a clone
with a new environment that pip fills, as a stranger would do it; with `--tutorial` the tutorial does, from the wheel.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import sys
from importlib.resources import files
import advl_cli.main, advl_pipeline
assert any(path.name.endswith(".toml") for path in files("advl_data").iterdir()), "no dataset card in the wheel"
try:
    advl_cli.main.main(["--help"])
finally:
    loaded = {"torch", "zarr", "transformers", "timm"} & set(sys.modules)
    assert not loaded, f"advl --help imported {loaded}"
"""

LIGHT_MB = 100
"""What an environment that reads caches may take, without pip."""

COLOURS = ("red", "blue", "green", "yellow", "white")


def run(words: list[str | Path], **options: object) -> str:
    """Run a command that must succeed; return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} exits with {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def new_environment(folder: Path) -> Path:
    """Make an empty environment; return its interpreter."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    return folder / "bin" / "python"


def pip_install(python: Path, *words: str | Path) -> None:
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", *words])


def build_wheel(scratch: Path) -> Path:
    """Build the wheel from a copy: what building leaves in a checkout would be taken for an installed package."""
    source = scratch / "source"
    for name in ("advl_pipeline", "cli", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, source])
    (wheel,) = scratch.glob("*.whl")
    return wheel


def megabytes(folder: Path) -> float:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


def link_what_is_declared(python: Path, extras: Iterable[str]) -> None:
    """Link the packages that the installed wheel requires with some extras, and what those require in turn."""
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (ours,) = importlib.metadata.distributions(name="advl-pipeline", path=[str(site)])
    left = [(ours, frozenset({"", *extras}))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        distribution, wanted = left.pop()
        for requirement in map(Requirement, distribution.requires or ()):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in wanted):
                continue
            asked = frozenset({"", *requirement.extras})
            if (requirement.name, asked) in seen:
                continue
            seen.add((requirement.name, asked))
            if requirement.name == "advl-pipeline":
                left.append((ours, asked))
                continue
            distribution_of_requirement = importlib.metadata.distribution(requirement.name)
            left.append((distribution_of_requirement, asked))
            for name in {
                file.parts[0]
                for file in distribution_of_requirement.files or ()
                if file.parts[0] not in ("..", "__pycache__")
            }:
                _link(Path(str(distribution_of_requirement.locate_file(name))), site / name)


def _link(source: Path, target: Path) -> None:
    """Link a package to a place; packages of one folder share a real folder that holds links."""
    if target.is_symlink() and source.is_dir() and target.resolve() != source.resolve():
        first = target.resolve()
        target.unlink()
        target.mkdir()
        for path in first.iterdir():
            (target / path.name).symlink_to(path)
    if target.is_dir() and not target.is_symlink():
        for path in source.iterdir():
            _link(path, target / path.name)
    elif not target.exists():
        target.symlink_to(source)


def own_data() -> str:
    """Return README's section about your own data."""
    return (ROOT / "README.md").read_text("utf-8").partition("## Your own data\n")[2].partition("\n## ")[0]


def blocks(language: str, text: str) -> list[str]:
    """Return the blocks of a language in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write_data(folder: Path) -> None:
    """Write twenty questions about pictures, with the columns of README's row."""
    (row,) = map(json.loads, blocks("json", own_data()))
    (folder / "pictures").mkdir(parents=True)
    with (folder / "mine.jsonl").open("w", encoding="utf-8") as file:
        for number in range(20):
            colour, other = COLOURS[number % 5], COLOURS[(number + 1 + number // 5) % 5]
            picture = folder / "pictures" / f"{colour if number < 5 else number}.png"
            Image.new("RGB", (64 + number, 48), colour).save(picture)
            choices = [colour, other] if number % 2 else [other, colour]
            fields = {"image": f"pictures/{picture.name}", "choices": choices, "label": choices.index(colour)}
            file.write(json.dumps(row | fields | {"split": "train" if number < 14 else "test"}) + "\n")


def shortened(text: str) -> str:
    """Return README's commands, or its Python, with few steps of training."""
    text = text.replace("advl finetune ", "advl finetune --num-steps 20 --adapt-steps 20 ")
    return text.replace("advl.finetune(", "advl.finetune(num_steps=20, adapt_steps=20, ")


Program = list[str | Path]


def commands_of(lines: Iterable[str]) -> list[Program]:
    return [["bash", "-ec", line] for line in lines]


def walk(python: Path, folder: Path, programs: Iterable[Program]) -> None:
    """Run a page's commands and its Python in a folder with nothing but the data; print what each took."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADVL_", "PYTHON"))}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    for words in programs:
        begun = time.monotonic()
        run(words, cwd=folder, env=environment)
        print(f"  {time.monotonic() - begun:5.1f} s  {str(words[-1]).strip().splitlines()[0][:100]}")
    if not (folder / "runs" / "mine" / "report.html").is_file():
        sys.exit("the commands left no page")


def install_line(shell: Iterable[str]) -> tuple[str, list[str]]:
    """Return the install line of a page's shell commands, and the commands after it."""
    install, *commands = re.sub(r"\\\n\s*", "", "".join(shell)).strip().splitlines()
    if not install.startswith("pip install '.["):
        sys.exit(f"the first command does not install the project: {install}")
    return install, commands


def check_fresh(scratch: Path) -> None:
    """Clone, make an environment, and walk with README's own install line."""
    clone, begun = scratch / "clone", time.monotonic()
    run(["git", "clone", "--quiet", ROOT, clone])
    run([sys.executable, "-m", "venv", scratch / "fresh"])
    python = scratch / "fresh" / "bin" / "python"
    install, commands = install_line(blocks("sh", own_data()))
    run(["bash", "-ec", f"{python} -m {install}"], cwd=clone)
    print(f"  {time.monotonic() - begun:5.1f} s  {install}    ({megabytes(scratch / 'fresh'):.0f} MB)")
    write_data(scratch / "mine")
    walk(python, scratch / "mine", [*commands_of(commands), [python, "-c", "\n".join(blocks("python", own_data()))]])


def check_light(wheel: Path, scratch: Path) -> None:
    """Install the wheel without extras into a fresh environment, weigh it, and read its help."""
    python = new_environment(scratch / "light")
    pip_install(python, wheel)
    size = megabytes(scratch / "light")
    run([python, "-c", "import advl_pipeline.cache.reader"], cwd=scratch)
    run([python.parent / "advl", "cache", "info", "--help"], cwd=scratch)
    print(f"light core: {size:.0f} MB (at most {LIGHT_MB})")
    if size > LIGHT_MB:
        sys.exit("the core is too heavy")


def check_extras(wheel: Path, scratch: Path) -> None:
    """Install the wheel with each extra into a fresh environment, in which nothing may conflict."""
    for extra in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]:
        folder, begun = scratch / extra, time.monotonic()
        python = new_environment(folder)
        pip_install(python, f"{wheel.resolve()}[{extra}]")
        run([sys.executable, "-m", "pip", "--python", python, "check"])
        run([python.parent / "advl", "--help"], cwd=scratch)
        print(f"[{extra}] {megabytes(folder):.0f} MB, {time.monotonic() - begun:.0f} s", flush=True)
        # All of them together would fill a disk.
        shutil.rmtree(folder)


def check_tutorial(wheel: Path, scratch: Path) -> None:
    """Walk the tutorial from its data to its page, in a fresh environment that pip fills from the wheel."""
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    install, commands = install_line(blocks("sh", page))
    python, begun = new_environment(scratch / "fresh"), time.monotonic()
    pip_install(python, re.sub(r"pip install '\.(\[[\w,]+\])'", rf"{wheel.resolve()}\1", install))
    (scratch / "mine").mkdir()
    walk(python, scratch / "mine", [[python, "-c", "\n".join(blocks("python", page))], *commands_of(commands)])
    print(f"the tutorial's {len(commands)} commands run; {time.monotonic() - begun:.0f} s with the installation")


def check_bare(wheel: Path, scratch: Path) -> None:
    """Walk README's example with few steps, in an environment of what its install line declares."""
    python = new_environment(scratch / "bare")
    pip_install(python, "--no-deps", wheel)
    install, commands = install_line(blocks("sh", own_data()))
    extras = itertools.chain.from_iterable(names.split(",") for names in re.findall(r"\[([\w,]+)\]", install))
    link_what_is_declared(python, extras)
    if "extract" not in run([python, "-c", PROBE], cwd=scratch):
        sys.exit("the wheel's help lists no command extract")
    print("wheel: builds, installs and answers --help from outside the tree; README's example of own data:")
    write_data(scratch / "mine")
    program = shortened("\n".join(blocks("python", own_data())))
    walk(python, scratch / "mine", [*commands_of(map(shortened, commands)), [python, "-c", program]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_mutually_exclusive_group()
    for name in ("fresh", "light", "extras", "tutorial"):
        modes.add_argument(f"--{name}", dest="mode", action="store_const", const=name, default="bare")
    parser.add_argument("--wheel", type=Path, help="Check this wheel [default: build one].")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.mode == "fresh":
            check_fresh(scratch)
            return
        wheel = options.wheel or build_wheel(scratch)
        checks = {"bare": check_bare, "light": check_light, "extras": check_extras, "tutorial": check_tutorial}
        checks[options.mode](wheel, scratch)


if __name__ == "__main__":
    main()
