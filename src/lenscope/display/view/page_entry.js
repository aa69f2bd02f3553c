// The start of a static page: its data, its state, one toolbar, and a view for each result as it comes into sight.

import { clipText, element, nameElement, visibleProse } from "./text.js";
import { unpackResult } from "./payload.js";
import { createStore } from "./store.js";
import { createToolbar } from "./toolbar.js";
import { trajectoryModel, withSharedReports } from "./trajectory_model.js";
import { comparisonModel } from "./comparison_view.js";
import { drawResult } from "./views.js";

const FEW = 4;  // results that are drawn at once; further ones while they are near the window

function resultName(result) {
  const name = result.title ?? result.text ?? result.kind;
  return [element("bdi", {}, clipText(visibleProse(name), 60)), result.lens && [" — ", nameElement(result.lens)]];
}

/** Draws a result in its place: at once, or, with `wait`, while it is near the window, so that hundreds cost what few do. */
function placeResult(main, result, anchor, store, hooks, wait) {
  const place = element("div", { id: anchor, class: "place" });
  let drawn = null;
  main.append(place);
  function draw() {
    if (drawn) return;
    drawn = drawResult(result, store, hooks);
    place.replaceChildren(drawn.element);
    place.classList.remove("waiting");
    place.style.removeProperty("min-height");
  }
  function clear() {
    if (!drawn || place.contains(document.activeElement)) return;
    place.style.setProperty("min-height", `${place.offsetHeight}px`);
    drawn.remove();
    drawn = null;
  }
  if (!wait) return draw();
  place.classList.add("waiting");
  new IntersectionObserver((entries) => (entries[entries.length - 1].isIntersecting ? draw() : clear()), { rootMargin: "1200px" }).observe(place);
  window.addEventListener("beforeprint", draw);
}

/** Draws {title, results} into a node. */
export async function drawPage(root, data) {
  const title = visibleProse(data.title || "lenscope"), store = createStore({});
  document.title = clipText(title, 200);
  const unpacked = withSharedReports(await Promise.all(data.results.map(unpackResult)));
  const results = unpacked.map((result, i) => ({ ...result, key: String(i) }));
  const own = results.length === 1 && data.title === (results[0].title ?? results[0].text);  // the result says it itself
  const header = element("header", {}, own ? element("h1", { class: "brand" }, "lenscope") : element("h1", {}, element("bdi", {}, clipText(title, 200))),
    results.length > 1 && element("nav", { "aria-label": "Results" }, element("ol", {}, results.map((result, i) =>
      element("li", {}, element("a", { href: `#result-${i + 1}` }, resultName(result)))))));
  const main = element("main", {});
  root.replaceChildren(header, main);
  const drawn = results.filter((result) => ["trajectory", "comparison", "side by side"].includes(result.kind));
  const shared = drawn.length > 1 && new Set(drawn.map((result) => result.kind)).size === 1;  // one scale and one choice of measure for all, so that they compare
  if (shared) {
    const models = drawn.map((result) => (result.kind === "trajectory" ? trajectoryModel(result) : comparisonModel(result)));
    const toolbar = createToolbar(models, store, {}, true).element;
    toolbar.classList.add("shared");
    header.after(toolbar);
  }
  results.forEach((result, i) => placeResult(main, result, `result-${i + 1}`, store, { toolbar: !shared }, i >= FEW));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

const pageData = document.getElementById("data");
if (pageData) {
  drawPage(document.getElementById("page"), JSON.parse(pageData.textContent)).catch((error) => {
    document.getElementById("page").append(element("p", { class: "warning", role: "alert" }, `The page could not be drawn: ${visibleProse(error.message)}`));
    throw error;
  });
}
