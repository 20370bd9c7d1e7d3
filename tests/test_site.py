"""README is short, its picture says what its table says, and the documentation builds as a site of checked links."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_picture_is_drawn_from_the_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `site` is not installed")
    spec = importlib.util.spec_from_file_location("figure", ROOT / "docs" / "figure.py")
    assert spec is not None
    assert spec.loader is not None
    figure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figure)
    sets, rows = figure.read_table((ROOT / "README.md").read_text(encoding="utf-8"))
    values = [f"{mean:.1f}" for _, cells in rows for mean, _ in cells]
    assert len(values) == len(sets) * len(rows) == 12
    figure.main(tmp_path)
    for theme in figure.INKS:
        kept, drawn = (
            re.findall(r">([^<>]+)</text>", (folder / f"results-{theme}.svg").read_text(encoding="utf-8"))
            for folder in (ROOT / "docs", tmp_path)
        )
        assert kept == drawn
        assert sorted(text for text in kept if re.fullmatch(r"\d+\.\d", text)) == sorted(values)


def test_the_site_builds_with_every_page_and_names_links_that_lead_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `site` is not installed")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "caches.md"
    links = ("no-such-page.md", "method.md#no-such-heading")
    page.write_text(page.read_text(encoding="utf-8") + "".join(f"\n[x]({link})\n" for link in links))
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", "site"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0, "a broken link stops the build, once all pages are written"
    warned = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warned) == len(links), done.stderr
    assert all(any(link in line for line in warned) for link in links), done.stderr
    site = tmp_path / "site"
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert all((site / name / "index.html").is_file() for name in [*pages, "CONTRIBUTING"])
    assert "into a vision-language model while you finetune it" in (site / "index.html").read_text(encoding="utf-8")


def test_every_table_of_the_pages_is_rendered_as_one() -> None:
    markdown = pytest.importorskip("markdown", reason="the extra `site` is not installed")
    folded = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        html = markdown.markdown(page.read_text(encoding="utf-8"), extensions=["tables", "fenced_code", "sane_lists"])
        if re.search(r"\| *:?-{3,}", re.sub(r"<(pre|code)\b.*?</\1>", "", html, flags=re.DOTALL)):
            folded.append(str(page.relative_to(ROOT)))
    assert not folded
