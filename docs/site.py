"""What the documentation site adds to docs/: the pages that lie beside it, with their links as the site has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](").replace('="docs/', '="')
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that leave docs/ at the pages that were added."""
    return markdown.replace("](../", "](")
