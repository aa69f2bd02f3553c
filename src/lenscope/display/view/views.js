// Which view draws which kind of result.

import { element } from "./text.js";
import { drawTrajectory } from "./trajectory_view.js";
import { drawComparison } from "./comparison_view.js";

const VIEWS = {
  trajectory: drawTrajectory,
  comparison: drawComparison,
};

/**
 * Draws an unpacked result: {element, update(), remove()}. `store` holds the page's state (store.js); `hooks`, all
 * optional, say what the page can do beside showing: onCell, dragData, onDrop, rankCurves, cellActions, cone, searchTokens.
 */
export function drawResult(result, store, hooks = {}) {
  if (Object.hasOwn(VIEWS, result.kind)) return VIEWS[result.kind](result, store, hooks);
  const note = element("p", { class: "note" }, `This page cannot draw a result of kind “${result.kind}”.`);
  return { element: note, update() {}, remove: () => note.remove() };
}
