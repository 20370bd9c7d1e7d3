"""The documentation builds as a site, and no link of it leads nowhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the site is made from."""
    pytest.importorskip("material", reason="the extra `site` is not installed")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def build(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", "site"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def test_the_site_builds_with_every_page(tree: Path) -> None:
    done = build(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert all((tree / "site" / page / "index.html").is_file() for page in pages)
    home = (tree / "site" / "index.html").read_text(encoding="utf-8")
    assert "into a vision-language model while you finetune it" in home
    assert (tree / "site" / "CONTRIBUTING" / "index.html").is_file()


def test_a_link_that_leads_nowhere_stops_it(tree: Path) -> None:
    page = tree / "docs" / "caches.md"
    links = ("no-such-page.md", "method.md#no-such-heading")
    page.write_text(
        page.read_text(encoding="utf-8") + "".join(f"\n[x]({link})\n" for link in links), encoding="utf-8"
    )
    done = build(tree)
    assert done.returncode != 0
    assert all(link in done.stderr for link in links), done.stderr
