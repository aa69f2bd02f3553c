// A state written into another run: the run of a target prompt, read by the lens with the state in it and without.
// Knows: how a state is carried there, by drag or by keyboard, and what changed. Does not know: how trajectories are drawn.

import { drawResult } from "./views.js";
import { createStore } from "./store.js";
import { unpackResult } from "./payload.js";
import { reportOf, trajectoryModel, withLogitLensReport } from "./trajectory_model.js";
import { element, formatShare, tokenElement } from "./text.js";
import { askServer } from "./api.js";
import { areaControl, button, choiceControl, labelled, oneAtATime, statusLine } from "./controls.js";
import { moveRequest } from "./requests.js";
import { askingHooks, placeInWords } from "./result_panel.js";

const SHOWN_CHANGES = 5;

/** The place that a dragged cell carries, null where it is none. */
function placeFromText(text) {
  try {
    const place = JSON.parse(text);
    return Array.isArray(place?.prompt?.ids) && Number.isInteger(place.layer) && Number.isInteger(place.position) ? place : null;
  } catch {
    return null;
  }
}

/** What the last layer says at the end of the prompt, without and with the state: a table, and one line above it. */
function changesTable(plain, patched) {
  const l = plain.layers.length - 1, p = plain.positions.length - 1;
  const models = [plain, patched].map(trajectoryModel), [before, after] = models.map((model) => model.top(l, p));
  const changed = plain.positions.filter((_, at) => models[0].first(l, at) !== models[1].first(l, at)).length;
  const text = (model, id) => tokenElement(model.token(id));
  return element("div", { class: "changes" },
    element("p", {}, `With the state the top token of the last layer differs at ${changed} of ${plain.positions.length} positions. The model expects after the last token:`),
    element("table", {}, element("thead", {}, element("tr", {}, ["plain", "", "with the state", ""].map((word) => element("th", { scope: "col" }, word)))),
      element("tbody", {}, before.slice(0, SHOWN_CHANGES).map(({ id, probability }, i) => element("tr", {},
        element("td", {}, text(models[0], id)), element("td", { class: "share" }, formatShare(probability)),
        element("td", {}, after[i] ? text(models[1], after[i].id) : ""), element("td", { class: "share" }, after[i] ? formatShare(after[i].probability) : ""))))));
}

/** The panel: {element, show(), put(place, cell), leave(), asked()}. */
export function patchPanel(inputs, info, view) {
  const line = statusLine(), readTask = oneAtATime(line), putTask = oneAtATime(line);
  const taken = element("p", { class: "taken", role: "status" });
  const text = areaControl(inputs, "intoText", { placeholder: "The Colosseum is in the city of",
    on: { keydown: (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); readTarget(); } } } });
  const heading = element("h3", {}), changes = element("div", {}), gridAt = element("div", { class: "drawn", "aria-label": "Run of the target prompt", role: "group" });
  const toggle = button("Show the plain run", () => draw(shown === patched ? target : patched), { class: "quiet", hidden: "" });
  const panel = element("div", { class: "question" }, taken,
    element("div", { class: "controls" }, element("div", { class: "wide" }, labelled("Target prompt of the move", text, "Enter reads it.")),
      labelled("Operation of the move", choiceControl(inputs, "moveOperation", info.operations.map((name) => [name, name.replaceAll("_", " ")]))),
      button("Read it", () => readTarget(), { class: "primary" }), readTask.stopButton, putTask.stopButton),
    line.element, changes, element("div", { class: "controls head" }, heading, toggle), gridAt);
  const followed = () => (({ measure, pins, layerWindow }) => ({ measure, pins, layerWindow }))(view.get());
  const store = createStore(followed());  // measure, pins and layers are those of the result above
  view.subscribe(() => store.set(followed()));
  store.subscribe((state, names) => { if (names.includes("pins") || names.includes("layerWindow")) view.set({ pins: state.pins, layerWindow: state.layerWindow }); });
  let target = null, patched = null, shown = null, drawn = null, last = null;

  function showTaken() {
    const place = inputs.get().taken;
    taken.textContent = place
      ? `Taken: the state at ${placeInWords(place)}. Read a target prompt, choose one of its cells and press “Put it here”.`
      : "No state is taken yet. Press “Take this state”, or drag a cell of the result to a cell of the run that you read here.";
  }
  inputs.subscribe((_, names) => { if (names.includes("taken")) showTaken(); });
  showTaken();

  /** Draws the plain run, or the one with the state in it; a state can be put into either, which means the plain one. */
  function draw(run) {
    drawn?.remove();
    shown = run;
    const cell = store.get().cell;
    if (cell) store.set({ cell: { ...cell, pinned: false } });
    drawn = drawResult({ ...withLogitLensReport(run, reportOf(info)), key: "target" }, store, {
      ...askingHooks(), toolbar: false,
      cone: run === patched ? patched.into : null,
      ...(run === patched ? { rankCurves: undefined } : {}),  // ranks would be those of the plain run
      onDrop: (_, at, dragged) => dropped(dragged, at),
      cellActions: (_, at) => [button("Put it here", () => put(inputs.get().taken, at), { class: "primary" })],
    });
    heading.textContent = run === patched ? patched.words : "The plain run: choose where the state goes";
    toggle.hidden = patched === null;
    toggle.textContent = run === patched ? "Show the plain run" : "Show the run with the state";
    gridAt.replaceChildren(drawn.element);
  }
  function dropped(dragged, cell) {
    const place = placeFromText(dragged);
    if (!place) return line.refuse("What was dropped is no state. Drag a cell of a result.");
    inputs.set({ taken: place });
    return put(place, cell);
  }
  async function readTarget() {
    const { intoText, lens } = inputs.get();
    if (!intoText) return line.refuse("Type a target prompt first.");
    return readTask.run(async (signal) => {
      const payload = await askServer("/api/trajectory", { prompt: { text: intoText }, lens, top_k: SHOWN_CHANGES }, signal);
      const plain = await unpackResult(payload);
      signal.throwIfAborted();
      target = { ...plain, typed: intoText };
      patched = last = null;
      changes.replaceChildren();
      draw(target);
    });
  }
  async function put(place, cell) {
    if (!place) return line.refuse("Take a state first: choose a cell of the result and press “Take this state”.");
    if (!target) return line.refuse("Type a target prompt and press “Read it” first.");
    const layer = cell.layer ?? Math.min(place.layer, info.model.n_layers);  // a token of the target prompt: the layer it came from
    inputs.set({ placed: [layer, cell.position], asked: "move" });
    return putTask.run(async (signal) => {
      const request = moveRequest({ ...inputs.get(), intoText: target.typed, lens: target.lens }, place, [layer, cell.position]);
      const run = await unpackResult(await askServer("/api/patched_trajectory", request, signal));
      signal.throwIfAborted();
      patched = { ...run, into: { layer, position: cell.position },
        words: `The run with the state of ${placeInWords(place)} at layer ${layer}, position ${cell.position}; what it can reach is tinted` };
      last = { endpoint: "patched_trajectory", request };
      changes.replaceChildren(changesTable(target, patched));
      draw(patched);
    });
  }
  return {
    element: panel,
    put,
    /** Reads the target prompt where that is not done yet, and puts the state where the address says. */
    async show(again = false) {
      if (inputs.get().intoText && target === null) await readTarget();
      const { placed, taken: place } = inputs.get();
      if (again && target && placed && place) await put(place, { layer: placed[0], position: placed[1] });
    },
    leave() { readTask.stop(); putTask.stop(); },
    asked: () => last,
  };
}
