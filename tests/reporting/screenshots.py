"""Take the pictures of docs/reports.md: python tests/reporting/screenshots.py [PAGE NAME].

Chromium lays a page out at 1,200 and at 400 pixels, light and dark; docs/images/NAME-1200.png, NAME-1200-dark.png and
so on are written. Without a page it is that of a study with the shape of the demo's and made-up numbers.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parents[2] / "docs" / "images"
HEIGHT = 1300


def take(page: Path, picture: Path, *, width: int, dark: bool) -> None:
    """Write a picture of the top of a page."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", f"--user-data-dir={profile}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width},{HEIGHT}",
            f"--screenshot={picture}", page.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    # A fraction of the bytes, and the eye sees no difference.
    Image.open(picture).convert("RGB").quantize(64).save(picture, optimize=True)


def made_up_page() -> str:
    """Return the page of a study like the demo, of runs that nobody made."""
    sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("studies", "support")]
    from synthetic_runs import TRIVIAL, made_up_result

    from advl_pipeline.reporting.page import page_of

    sets = ["test", "test-rephrased", "test-shift"]
    raw = {"title": "A study with made-up numbers", "question": "What does the page of a study look like?"}
    grid = {"seeds": list(range(5)), "methods": ["plain", "advl", "advl-shuffled"], "shots": [100], "test_sets": sets}
    result = made_up_result(raw | grid)
    trivial = {("scenes-vcr", "q2a", name): TRIVIAL for name in sets}
    return page_of(replace(result, trivial=trivial), data_root=None, num_examples=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        page, name = Path(folder) / "page.html", "study"
        if sys.argv[1:]:
            page, name = Path(sys.argv[1]), sys.argv[2]
        else:
            page.write_text(made_up_page(), encoding="utf-8")
        for size, dark in itertools.product((1200, 400), (False, True)):
            take(page, IMAGES / f"{name}-{size}{'-dark' if dark else ''}.png", width=size, dark=dark)
