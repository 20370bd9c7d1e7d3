"use strict";
// What is wider than its place says that it scrolls.
function markCut() {
  for (const region of document.querySelectorAll(".scroll")) {
    region.classList.toggle("cut", region.scrollWidth > region.clientWidth + 1);
  }
}
addEventListener("resize", markCut);
document.addEventListener("toggle", markCut, true);
markCut();
