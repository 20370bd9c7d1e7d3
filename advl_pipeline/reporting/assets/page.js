"use strict";
// A press on a legend entry emphasises that method in every figure; a second press ends it.
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    const wanted = chip.getAttribute("aria-pressed") === "true" ? null : chip.dataset.series;
    for (const other of document.querySelectorAll(".chip")) {
      other.setAttribute("aria-pressed", String(other.dataset.series === wanted));
    }
    for (const group of document.querySelectorAll("g.series")) {
      group.classList.toggle("dim", wanted !== null && group.dataset.series !== wanted);
    }
  });
}
// What is wider than its place says that it scrolls.
function markCut() {
  for (const region of document.querySelectorAll(".scroll")) {
    region.classList.toggle("cut", region.scrollWidth > region.clientWidth + 1);
  }
}
addEventListener("resize", markCut);
document.addEventListener("toggle", markCut, true);
markCut();
