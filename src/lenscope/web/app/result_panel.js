// The main result: a trajectory or a comparison, with what it was run with and whether that is still what is typed.
// Knows: which hooks the views get. Does not know: how views draw.

import { drawResult } from "./views.js";
import { createStore } from "./store.js";
import { element, visibleProse, visibleToken } from "./text.js";
import { askServer } from "./api.js";
import { button } from "./controls.js";
import { mainRequest } from "./requests.js";

const MAIN_KEY = "main";

/** The address of the state under a cell, as requests name it; `token` is for people. */
export function placeOfCell(result, cell) {
  const id = result.ids[cell.position];
  return { prompt: { ids: result.ids }, layer: cell.layer, position: cell.position, token: result.vocabulary.get(id) ?? `#${id}` };
}

/** A place in a few words. */
export function placeInWords(place) {
  return `layer ${place.layer}, position ${place.position} “${visibleToken(place.token ?? "")}”`;
}

/** The hooks by which any trajectory on this page asks the server for ranks and tokens. */
export function askingHooks() {
  return {
    rankCurves: (result, ids) => askServer("/api/ranks", {
      prompt: { ids: result.ids }, lens: result.lens, tokens: ids.slice(0, 5), layers: result.layers, positions: result.positions }),
    searchTokens: (query) => askServer(`/api/tokens?query=${encodeURIComponent(query)}`),
  };
}

/** A cell that the address names, as the store of the views holds it. */
function cellFromPair(pair) {
  return pair && { result: MAIN_KEY, layer: pair[0], position: pair[1], pinned: true };
}

/**
 * The panel: {element, view (its store), show(entry), current(), isStale(), hide()}. An entry is {endpoint, request, result}.
 * does = {opened(place), asked(place), taken(place), keep(written), rerun()}.
 */
export function resultPanel(inputs, does) {
  const view = createStore({});
  const stale = element("p", { class: "stale", role: "status", hidden: "" },
    "The inputs have changed since this was run. ", button("Run again", does.rerun));
  const written = element("p", { class: "continued", dir: "auto", "aria-live": "polite" });
  const keep = button("Keep it in the prompt", () => does.keep(entry.result.written), { class: "quiet" });
  const continuation = element("div", { class: "continuation", hidden: "" }, written, keep);
  const place = element("div", { class: "drawn" });
  const panel = element("section", { class: "panel shown", "aria-label": "Result", hidden: "" },
    stale, continuation, place);
  let entry = null, drawn = null;

  /** The address says which state is asked about: [layer, position], and 1 behind them in the second side of a comparison. */
  function choose(cell) {
    const { result } = entry;
    if (!cell.side) return inputs.set({ cell: [cell.layer, cell.position] });
    return inputs.set({ cell: [cell.layer, result.first.positions[result.second.positions.indexOf(cell.position)], cell.side] });
  }
  const hooks = {
    ...askingHooks(),
    onCell(result, cell) {
      choose(cell);
      does.opened(placeOfCell(result, cell));
    },
    dragData(result, cell) {  // a cell that is dragged, or taken by its key
      const taken = placeOfCell(result, cell);
      inputs.set({ taken });
      return JSON.stringify(taken);
    },
    cellActions(result, cell) {
      const at = placeOfCell(result, cell);
      return [
        button("What does this state mean?", () => { choose(cell); does.asked(at); }, { class: "primary" }),
        button("Take this state", () => { choose(cell); does.taken(at); }),
      ];
    },
  };
  function showStale() {
    const now = entry && mainRequest(inputs.get(), entry.endpoint === "generation");
    stale.hidden = !entry || JSON.stringify(now) === JSON.stringify({ endpoint: entry.endpoint, request: entry.request });
    panel.classList.toggle("is-stale", !stale.hidden);
  }
  /** What the address and the views both know: measure, pins, cell, windows. */
  function viewFromInputs() {
    const { measure, pins, cell, layerWindow, positionWindow } = inputs.get();
    view.set({ measure: measure || null, pins, cell: cellFromPair(cell), layerWindow, positionWindow });
  }
  view.subscribe((state, names) => {
    const changes = {};
    if (names.includes("measure")) changes.measure = state.measure ?? "";
    for (const name of ["pins", "layerWindow", "positionWindow"]) if (names.includes(name)) changes[name] = state[name];
    const held = state.cell && [state.cell.layer, state.cell.position];
    if (names.includes("cell") && (held === null || state.cell.pinned) && `${inputs.get().cell?.slice(0, 2)}` !== `${held}`) changes.cell = held;
    if (Object.keys(changes).length) inputs.set(changes);
  });
  inputs.subscribe(showStale);
  return {
    element: panel,
    view,
    current: () => entry,
    isStale: () => !stale.hidden,
    /** The state that the address names: a place, or null. */
    chosenPlace() {
      const { cell } = inputs.get(), whole = entry?.result;
      if (!cell || !whole) return null;
      const sides = whole.kind === "comparison" ? [whole.first, whole.second] : [whole];
      const column = sides[0].positions.indexOf(cell[1]), side = sides[cell[2] ?? 0];
      return column >= 0 && side?.layers.includes(cell[0]) ? placeOfCell(side, { layer: cell[0], position: side.positions[column] }) : null;
    },
    /** Draws an entry; one that grows stays in its place. */
    show(shown) {
      const growing = entry !== null && drawn !== null && shown.growing;
      entry = shown;
      if (!growing) viewFromInputs();
      if (growing) drawn.update(shown.result);
      else {
        drawn?.remove();
        drawn = drawResult({ ...shown.result, key: MAIN_KEY }, view, hooks);
        place.replaceChildren(drawn.element);
      }
      continuation.hidden = shown.endpoint !== "generation";
      if (written.textContent !== visibleProse(shown.result.written ?? "")) written.textContent = visibleProse(shown.result.written ?? "");
      panel.hidden = false;
      showStale();
    },
    hide() {
      drawn?.remove();
      entry = drawn = null;
      panel.hidden = true;
    },
  };
}
