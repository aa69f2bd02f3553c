// Which view draws which kind of result.

import { element } from "./text.js";
import { drawTrajectory } from "./trajectory_view.js";
import { drawComparison } from "./comparison_view.js";
import { drawGrid } from "./grid_view.js";
import { drawEvaluation, drawTransfer } from "./evaluation_view.js";
import { drawEffects } from "./effects_view.js";
import { drawReport } from "./report_view.js";
import { drawPositions } from "./positions_view.js";

const VIEWS = {
  trajectory: drawTrajectory,
  comparison: drawComparison,
  "side by side": drawComparison,
  grid: drawGrid,
  evaluation: drawEvaluation,
  transfer: drawTransfer,
  effects: drawEffects,
  report: drawReport,
  "odd positions": drawPositions,
};

/**
 * Draws an unpacked result: {element, update(), remove()}; a trajectory's update(next) shows another in its place. `store` holds the page's state (store.js); `hooks`, all
 * optional, say what the page can do beside showing: onCell, dragData, onDrop, rankCurves, cellActions, cone, searchTokens.
 */
export function drawResult(result, store, hooks = {}) {
  if (Object.hasOwn(VIEWS, result.kind)) return VIEWS[result.kind](result, store, hooks);
  const note = element("p", { class: "note" }, `This page cannot draw a result of kind “${result.kind}”.`);
  return { element: note, update() {}, remove: () => note.remove() };
}
