// The start of a static page: its data, its state, a view for each result.

import { element, visibleProse } from "./text.js";
import { unpackResult } from "./payload.js";
import { createStore } from "./store.js";
import { drawResult } from "./views.js";

/** Draws {title, results} into a node. */
export async function drawPage(root, data) {
  const title = visibleProse(data.title || "lenscope"), store = createStore({});
  document.title = title;
  const results = await Promise.all(data.results.map(unpackResult));
  const main = element("main", {});
  root.replaceChildren(element("header", {}, element("h1", {}, element("bdi", {}, title))), main);
  results.forEach((result, i) => main.append(drawResult({ ...result, key: String(i) }, store).element));
}

const pageData = document.getElementById("data");
if (pageData) drawPage(document.getElementById("page"), JSON.parse(pageData.textContent));
