"""Take the pictures of docs/reports.md from a page: python tests/reporting/screenshots.py PAGE NAME.

Chromium lays it out at 1,200 and at 400 pixels; docs/images/NAME-1200.png and NAME-400.png are written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
HEIGHT = 1300


def take(page: Path, picture: Path, *, width: int) -> None:
    """Write a picture of the top of a page."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", f"--user-data-dir={profile}",
            "--blink-settings=preferredColorScheme=1", f"--window-size={width},{HEIGHT}", f"--screenshot={picture}",
            page.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    for size in (1200, 400):
        take(Path(sys.argv[1]), IMAGES / f"{sys.argv[2]}-{size}.png", width=size)
