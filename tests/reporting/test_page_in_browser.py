"""The page in headless Chromium: nothing on the console, nothing wider than a phone, all in reach of a keyboard, and
every text readable in both colour schemes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import TRIVIAL, made_up_result

from advl_pipeline.reporting.page import page_of

WATCHER = """<!doctype html><meta charset="utf-8"><title>watcher</title>
FRAMES<pre></pre>
<script>
const seen = [];
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function numbers(colour) { return colour.match(/[\\d.]+/g).map(Number); }
function contrast(view, element) {
  const style = view.getComputedStyle(element);
  const ink = luminance(numbers(style.color));
  let under = element, paper = [255, 255, 255, 0];
  while (under && paper[3] === 0) {
    const found = numbers(view.getComputedStyle(under).backgroundColor);
    paper = found.length === 3 ? [...found, 1] : found;
    under = under.parentElement;
  }
  const [low, high] = [ink, luminance(paper)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
document.querySelectorAll("iframe").forEach((frame, place) => frame.addEventListener("load", () => {
  for (const details of frame.contentDocument.querySelectorAll("details")) details.open = true;
  // What the page does when they open comes first.
  setTimeout(() => look(frame, place), 100);
}));
function look(frame, place) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const name = e => `${e.tagName} ${e.className.baseVal ?? e.className} ${e.textContent.trim().slice(0, 30)}`;
  const told = [...page.body.querySelectorAll("*")].filter(e =>
    !e.closest(".picture") && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
    && e.getClientRects().length && !["SCRIPT", "TITLE", "DESC"].includes(e.tagName.toUpperCase()));
  const faint = told.filter(e => contrast(view, e) < 4.5).map(name);
  const scrolling = [...page.querySelectorAll("*")].filter(e =>
    ["auto", "scroll"].includes(view.getComputedStyle(e).overflowX)
    && (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1));
  const acting = [...page.querySelectorAll("a, button, summary"), ...scrolling];
  const unreached = acting.filter(e => { e.focus(); return page.activeElement !== e; }).map(name);
  // Of what stands in a table: what its place does not show, and texts that lie on one another.
  const cut = [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1);
  const silent = cut.filter(e => !view.getComputedStyle(e, "::before").content.includes("scrolls")).map(name);
  const overlapping = [];
  for (const table of page.querySelectorAll("table")) {
    const texts = [...table.querySelectorAll("th, td, th *, td *")].filter(e => !e.children.length);
    const boxes = texts.filter(e => e.textContent.trim()).flatMap(e => {
      const range = page.createRange();
      range.selectNodeContents(e);
      return [...range.getClientRects()].map(box => [e, box]);
    });
    for (const [one, a] of boxes) for (const [two, b] of boxes) {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (one !== two && wide > 1 && high > 4) overlapping.push(`${name(one)} on ${name(two)}`);
    }
    const end = table.getBoundingClientRect().right + 1;
    overlapping.push(...boxes.filter(([, box]) => box.right > end).map(([e]) => `${name(e)} beyond its table`));
  }
  // What is left of the width of a figure beside the first row of its panels.
  const gaps = [...page.querySelectorAll(".panels")].map(panels => {
    const boxes = [...panels.children].map(e => e.getBoundingClientRect());
    const row = boxes.filter(box => box.top === boxes[0].top).map(box => box.right);
    return Math.round(panels.getBoundingClientRect().right - Math.max(...row));
  });
  seen[place] = {
    width: page.documentElement.scrollWidth, texts: told.length, faint, acting: acting.length, unreached,
    tables: page.querySelectorAll("table").length, cut: cut.map(name), silent, overlapping,
    gaps, pale: [...page.images].filter(image => !image.currentSrc || !image.naturalWidth).length,
    paper: view.getComputedStyle(page.body).backgroundColor,
  };
  document.querySelector("pre").textContent = JSON.stringify(seen);
}
</script>
"""


def browse(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the page is checked as text only")
    usual = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=2000",
        "--dump-dom",
    ]  # fmt: skip
    command = [chromium, *usual, *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)


def watch(folder: Path, *pages: tuple[str, int], dark: bool) -> list[dict[str, Any]]:
    """Lay each page out at a width and say what was seen in it."""
    for number, (text, _) in enumerate(pages):
        (folder / f"{number}.html").write_text(text, encoding="utf-8")
    frame = '<iframe src="{}.html" style="width:{}px;height:800px;border:0"></iframe>'
    frames = "".join(frame.format(number, width) for number, (_, width) in enumerate(pages))
    watcher = folder / "watcher.html"
    watcher.write_text(WATCHER.replace("FRAMES", frames), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    seen = browse(watcher, "--allow-file-access-from-files", "--window-size=1400,1000", scheme)
    assert "CONSOLE" not in seen.stderr
    found = re.search(r"<pre>(.*?)</pre>", seen.stdout, flags=re.DOTALL)
    assert found, seen.stderr
    result: list[dict[str, Any]] = json.loads(unescape(found[1]))
    assert len(result) == len(pages)
    assert all(result)
    return result


def test_the_browser_tells_of_a_script_that_the_pages_policy_does_not_know(page_text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_text.replace("</body>", "<script>nothing()</script></body>"), encoding="utf-8")
    assert "CONSOLE" in browse(path).stderr


def demo_like() -> str:
    """Return a page with the three test sets of the demo and every kind of long name."""
    methods = ["plain", "naive-kd", "advl", "advl-shuffled", "plain-no-picture"]
    sets = ["test", "test-rephrased", "test-shift"]
    result = made_up_result({"seeds": [0, 1, 2], "methods": methods, "test_sets": sets})
    trivial = {("scenes-vcr", "q2a", name): replace(TRIVIAL, answer="an answer of many words") for name in sets}
    return page_of(replace(result, trivial=trivial), data_root=None, num_examples=0)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_are_readable_and_in_reach_and_no_table_is_cut_unless_it_says_so(
    dark: bool, page_text: str, tmp_path: Path
) -> None:
    demo = "" if dark else demo_like()
    pages = [(page_text, 1200)] if dark else [(page_text, 390), *((demo, width) for width in (400, 800, 1200))]
    for (text, width), seen in zip(pages, watch(tmp_path, *pages, dark=dark), strict=True):
        assert seen["width"] <= width
        assert (seen["paper"] == "rgb(20, 23, 26)") == dark
        assert seen["texts"] > 200
        assert seen["acting"] > (10 if text == demo else 15)
        assert seen["tables"] > 5
        assert (seen["faint"], seen["unreached"], seen["silent"], seen["pale"]) == ([], [], [], 0), width
        if text == demo or width > 390:
            assert seen["overlapping"] == [], width
        if width > 400:
            assert (seen["cut"], set(seen["gaps"])) == ([], {0}), width
        else:
            # On a phone some tables scroll, and say so.
            assert seen["cut"] != []


def test_the_watcher_notices(page_text: str, tmp_path: Path) -> None:
    """A line that is too wide, a text that is too faint, a button that no key reaches."""
    spoilt = page_text.replace("</main>", "<p class='kicker spoilt'>faint</p></main>")
    spoilt = spoilt.replace("</main>", "<button disabled>no</button></main>")
    spoilt = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", spoilt)
    spoilt = spoilt.replace("</style>", ".spoilt { width: 900px; color: #bbb !important; }</style>")
    spoilt = spoilt.replace("</style>", "table.main td:nth-child(2) { position: relative; left: 100px; }</style>")
    spoilt = spoilt.replace("</style>", ".scroll.cut::before { content: none; }</style>")
    (seen,) = watch(tmp_path, (spoilt, 390), dark=False)
    assert seen["width"] > 390
    assert seen["silent"] != []
    assert seen["overlapping"] != []
    assert seen["faint"] == ["P kicker spoilt faint"]
    assert {name.split()[0] for name in seen["unreached"]} == {"BUTTON"}
