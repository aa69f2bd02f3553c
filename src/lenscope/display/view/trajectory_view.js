// A trajectory: the top token at every layer and position.

import { clipText, element, tokenElement, visibleProse } from "./text.js";
import { numberAt } from "./payload.js";
import { makeScale, stepClass } from "./scale.js";

/** Draws a trajectory: {element, update(), remove()}. */
export function drawTrajectory(result, store, hooks) {
  const { layers, positions, arrays, vocabulary } = result;
  const table = element("table", { role: "grid", "aria-label": "Top token at every layer and position" });
  const node = element("section", { class: "result trajectory" },
    element("h2", { dir: "auto" }, clipText(visibleProse(result.text), 400)), table);
  function update() {
    const measure = store.get().measure ?? "max_probability";
    const scale = store.get().scale ?? makeScale(measure, arrays[measure].values.filter((v) => !Number.isNaN(v)));
    table.replaceChildren(...[...layers.keys()].reverse().map((l) => element("tr", { role: "row" },
      element("th", { role: "rowheader" }, layers[l]),
      positions.map((position, p) => element("td", {
        role: "gridcell", tabindex: "-1", class: stepClass(scale, numberAt(arrays[measure], l, p)),
        on: { click: () => hooks.onCell?.(result, { layer: layers[l], position }) },
      }, tokenElement(vocabulary.get(numberAt(arrays.top_ids, l, p, 0))))))));
  }
  update();
  const stop = store.subscribe(update);
  return { element: node, update, remove() { stop(); node.remove(); } };
}
