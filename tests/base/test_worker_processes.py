"""A user's script needs no main guard: no worker process runs it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from advl_data.scenes.generator.build import run_build_scenes
from advl_data.scenes.config import ScenesConfig

print("begun")
sizes = dict.fromkeys("train val test unseen compositional shift_inputs".split(), 4)
built = run_build_scenes(
    ScenesConfig(
        data_root=Path(sys.argv[1]), workers=2, num_caption_scenes=10, **{f"num_{name}": 4 for name in sizes}
    )
)
print(built.built)
"""


def test_a_plain_script_builds_the_corpus(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, program, tmp_path / "data"], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == "begun"
    assert run.stdout.count("begun") == 1
