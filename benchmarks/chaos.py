"""`make chaos`: kill an extraction at 50 random moments; each time the same command must give the same bytes.

python -m benchmarks.chaos [--kills N] [--seed S]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

_SUPPORT = Path(__file__).resolve().parent.parent / "tests" / "support"


def main() -> None:
    """Kill, resume, compare, count; exit code 1 when any resumed cache differed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(_SUPPORT))
    chaos = importlib.import_module("chaos")
    good = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference, span = chaos.reference_run(folder)
        print(f"an uninterrupted run writes {len(reference)} files in {span:.2f} s")
        for number in range(options.kills):
            seed = options.seed * 100_003 + number
            try:
                moment, committed = chaos.kill_and_resume(folder, reference, span, name=f"kill-{number}", seed=seed)
            except AssertionError as error:
                print(f"kill {number + 1:>3}: {error}")
                continue
            good += 1
            print(f"kill {number + 1:>3}: after {moment:.3f} s with {committed:>2} shards committed: identical")
    print(f"{good} of {options.kills} resumed to identical bytes")
    sys.exit(0 if good == options.kills else 1)


if __name__ == "__main__":
    main()
