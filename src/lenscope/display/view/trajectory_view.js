// A trajectory: the top token at every layer and position, what a cell says, lines over the layers.

import { clipText, element, nameElement, tokenElement, tokenNodes, visibleProse } from "./text.js";
import { stepClass } from "./scale.js";
import { cellInWords, doubtsInWords, fixedMarks, indicesWithin, layersInWords, trajectoryModel, weakLayersInWords } from "./trajectory_model.js";
import { createLayerTable } from "./layer_table.js";
import { addGestures, carryCell } from "./table_gestures.js";
import { MOST_PINS, pinClass, togglePin } from "./token_chips.js";
import { cellDetails } from "./cell_details.js";
import { measureChart, probabilityChart, rankChart, ranksOfTokens } from "./rank_curves.js";
import { createToolbar, forgetScales, measureInUse, scaleInUse } from "./toolbar.js";

/** Whether a cell lies in the causal cone of a state that was written at {layer, position}. */
export function inCone(cone, layer, position) {
  return (position === cone.position && layer >= cone.layer) || (position > cone.position && layer > cone.layer);
}

/**
 * The source of a grid (layer_table.js) for the rows and columns that a model shows: `value(l, p)` colours cells on `scale`;
 * `cone` may be null.
 */
export function gridSource(model, { rows, columns, scale, value, pins, cone, draggable, label }) {
  const at = (r) => rows[rows.length - 1 - r];  // the last layer is on top
  const pinAt = new Map(pins.map((pin, n) => [pin.id, n]));
  const nodes = (key) => tokenNodes(key === null ? "–" : model.token(key));
  const headRows = [{ label: "input", key: (c) => model.result.ids[model.positions[columns[c]]], nodes, note: (c) => model.positions[columns[c]] }];
  if (model.result.target === null) {
    const next = (key) => (key === null ? ["–"] : nodes(key));
    headRows.push({ label: "next", key: (c) => model.target(columns[c]), nodes: next });
  }
  return {
    label, rows: rows.length, columns: columns.length, headRows, nodes, draggable, contents: model, at,
    rowLabel: (r) => [r === 0 && element("small", {}, "layer"), `${model.doubt(at(r)) === null ? "" : "?"}${model.layers[at(r)]}`].filter(Boolean),
    rowMark: (r) => [model.weak(at(r)) && "weak", model.doubt(at(r)) !== null && "doubted"].filter(Boolean).join(" "),
    rowTitle: (r) => doubtTitle(model, at(r)),
    key: (r, c) => model.first(at(r), columns[c]),
    describe: (r, c) => cellInWords(model, at(r), columns[c]),
    className(r, c) {
      const l = at(r), p = columns[c], id = model.first(l, p), pin = pinAt.get(id);
      return stepClass(scale, value(l, p)) + fixedMarks(model, l, p, c ? columns[c - 1] : null, c < columns.length - 1 ? columns[c + 1] : null)
        + (pin === undefined ? "" : ` follow ${pinClass(pin)}`)
        + (cone && inCone(cone, model.layers[l], model.positions[p]) ? ` cone${model.positions[p] === cone.position ? " cone-left" : ""}` : "");
    },
  };
}

/** What a pointer is told over a layer at which the lens is not to be trusted; empty where it is. */
function doubtTitle(model, l) {
  const why = model.doubt(l);
  return why === null ? "" : `Not to be trusted at layer ${model.layers[l]}: ${visibleProse(why)}`;
}

/** The head of a trajectory: the prompt, the lens and the model, sentences on weak and on doubted layers. */
function trajectoryHead(model) {
  const { result } = model, weak = weakLayersInWords(model), doubts = doubtsInWords(model);
  return [
    element("h2", { dir: "auto", title: clipText(visibleProse(result.text), 2000) }, clipText(visibleProse(result.text), 400)),
    element("p", { class: "about" }, element("b", {}, nameElement(result.lens)), " on ", element("b", {}, nameElement(result.model)),
      ` · ${layersInWords(model.layers)} of ${result.n_layers} · ${model.P} ${model.P === 1 ? "position" : "positions"}`,
      result.target !== null && [" · target ", tokenElement(model.token(result.target))]),
    weak && element("p", { class: "warning" }, weak),
    doubts && element("p", { class: "warning" }, doubts),
  ];
}

/** What a result was made with, folded away. */
export function provenanceNode(provenance, name = "Provenance") {
  const text = (value) => visibleProse(value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  return element("details", { class: "provenance" }, element("summary", {}, name), element("dl", {}, Object.entries(provenance || {}).map(([key, value]) =>
    element("div", {}, element("dt", {}, element("bdi", {}, visibleProse(key.replace(/_/g, " ")))), element("dd", {}, element("bdi", {}, text(value)))))));
}

/** Ranks of the pinned tokens from a hook, asked for once for each set of pins: {get(), ask(pins)}; changed() when they come. */
export function askedRanks(result, model, hooks, changed) {
  let ranks = null, asked = "";
  return {
    get: () => ranks,
    ask(pins) {
      const ids = pins.map((pin) => pin.id), key = ids.join();
      if (!hooks.rankCurves || key === asked) return;
      asked = key;
      if (!ids.length) return void (ranks = null);
      Promise.resolve(hooks.rankCurves(result, ids)).then((payload) => ranksOfTokens(payload, model)).then((answer) => {
        if (asked !== key) return;
        ranks = answer;
        changed();
      }).catch(() => { if (asked === key) asked = ""; });
    },
  };
}

/**
 * Draws a trajectory: {element, update(), remove()}. With hooks.toolbar false, the page has a toolbar for all results.
 * update(next) puts an unpacked trajectory in its place, such as the same text some tokens later.
 */
export function drawTrajectory(result, store, hooks) {
  let model = trajectoryModel(result);
  const models = [model], key = result.key;
  const table = createLayerTable(), aside = element("aside", { "aria-label": "Selected cell" }), charts = element("div", { class: "charts" });
  const spoken = element("p", { class: "spoken", role: "status" });
  const toolbar = hooks.toolbar === false ? null : createToolbar(models, store, hooks);
  const head = element("div", { class: "result-head" }, trajectoryHead(model));
  const node = element("section", { class: "result trajectory" }, head, toolbar?.element,
    element("div", { class: "body" }, element("div", { class: "main" }, table.element, charts), aside), provenanceNode(result.provenance), spoken);
  let rows = [], columns = [], source = null, at = [model.L - 1, model.P - 1], over = null, frame = 0;
  const ranks = askedRanks(result, model, hooks, () => show());

  const ours = () => (store.get().cell?.result === key ? store.get().cell : null);
  const cellAt = ([r, c]) => ({ result: key, layer: r === null ? null : model.layers[source.at(r)], position: model.positions[columns[c]] });
  const placeOf = (l, p) => {
    const r = rows.indexOf(l), c = columns.indexOf(p);
    return r < 0 || c < 0 ? null : [rows.length - 1 - r, c];
  };

  function arrange() {
    const state = store.get(), measure = measureInUse(state, models), scale = scaleInUse(state, models);
    rows = indicesWithin(model.layers, state.layerWindow);
    columns = indicesWithin(model.positions, state.positionWindow);
    const cone = over ?? (typeof hooks.cone === "function" ? hooks.cone(result) : hooks.cone) ?? null;
    source = gridSource(model, { rows, columns, scale, value: (l, p) => model.value(measure, l, p), pins: state.pins, cone,
      draggable: Boolean(hooks.dragData), label: "Top token at every layer and position" });
    return source;
  }
  function show() {
    const state = store.get(), held = Boolean(ours()?.pinned), [l, p] = at, scale = scaleInUse(state, models);
    table.point(placeOf(l, p), held);
    const actions = hooks.cellActions?.(result, { result: key, layer: model.layers[l], position: model.positions[p] }) ?? [];
    const focused = aside.contains(document.activeElement) ? document.activeElement : null;
    const again = focused?.dataset.follow ? `[data-follow="${focused.dataset.follow}"]` : focused?.classList.contains("hold") ? ".hold" : null;
    const help = hooks.onCell ? null : element("p", { class: "help" }, "Click a cell or press Enter to hold it, Escape to let go; arrow keys move, p follows the top token. "
      + "Drag over the heads of columns or rows to see only those.");
    aside.replaceChildren(...[...cellDetails(model, l, p, { store, held, hold: () => open(l, p), actions }), help].filter(Boolean));
    if (again) aside.querySelector(again)?.focus();
    charts.replaceChildren(...[measureChart(models, scale.measure, scale, l, p), probabilityChart(model, state.pins, ranks.get(), l, p),
      state.pins.length ? rankChart(model, state.pins, ranks.get(), l, p) : null].filter(Boolean));
  }
  function showSoon() {  // many cells may be passed in one frame
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; show(); });
  }
  function look(l, p) {
    if (ours()?.pinned || (l === at[0] && p === at[1])) return;
    at = [l, p];
    if (!store.get().cell?.pinned) store.set({ cell: { result: key, layer: model.layers[l], position: model.positions[p], pinned: false } });
    showSoon();
  }
  function open(l, p) {
    const held = ours()?.pinned && at[0] === l && at[1] === p;
    at = [l, p];
    store.set({ cell: { result: key, layer: model.layers[l], position: model.positions[p], pinned: !held } });
    show();
    if (!held) hooks.onCell?.(result, { result: key, layer: model.layers[l], position: model.positions[p] });
  }
  const lp = ([r, c]) => [source.at(r), columns[c]];
  const limits = (values, a, b) => [Math.min(values[a], values[b]), Math.max(values[a], values[b])];
  addGestures(table, () => ({ rows: rows.length, columns: columns.length }), {
    label: ([r, c]) => source.describe(r, c),
    look: (place) => look(...lp(place)),
    open: (place) => open(...lp(place)),
    pin(place) {
      const id = model.first(...lp(place)), text = model.token(id), before = store.get().pins;
      if (before.length === MOST_PINS && !before.some((pin) => pin.id === id)) spoken.textContent = "Five tokens are followed already; let one go first.";
      store.set({ pins: togglePin(store.get().pins, id, text) });
    },
    letGo() { if (ours()?.pinned) store.set({ cell: { ...ours(), pinned: false } }); },
    chooseRows: (low, high) => store.set({ layerWindow: limits(model.layers, source.at(low), source.at(high)) }),
    chooseColumns: (low, high) => store.set({ positionWindow: limits(model.positions, columns[low], columns[high]) }),
    drag: hooks.dragData && ((place) => hooks.dragData(result, cellAt(place))),
    carry(data, place) {
      spoken.textContent = `Taken: ${source.describe(...place)}. Press d on the cell of another prompt to put it there.`;
      return carryCell(data);
    },
    over(place) {
      const next = place && hooks.onDrop ? { layer: place[0] === null ? 0 : model.layers[source.at(place[0])], position: model.positions[columns[place[1]]] } : null;
      if (next?.layer === over?.layer && next?.position === over?.position) return;
      over = next;
      update(["cone"]);
    },
    drop: hooks.onDrop && ((place, dragged) => hooks.onDrop(result, cellAt(place), dragged)),
  });

  function update(names) {
    if (names && names.every((name) => name === "cell")) {
      const cell = ours(), l = cell && model.rowOf(cell.layer), p = cell && model.columnOf(cell.position);
      const moved = cell && l >= 0 && p >= 0 && (l !== at[0] || p !== at[1]);
      if (moved) at = [l, p];
      return showSoon();
    }
    ranks.ask(store.get().pins);
    table.setSource(arrange());
    show();
  }
  const cell = ours(), start = cell && [model.rowOf(cell.layer), model.columnOf(cell.position)];
  if (start && start[0] >= 0 && start[1] >= 0) at = start;
  update();
  table.reveal(placeOf(...at) ?? [0, columns.length - 1]);
  const stop = store.subscribe((_, names) => update(names));
  function replace(next) {
    const before = table.place(), atEnd = before.left + table.element.clientWidth >= table.element.scrollWidth - 2;
    result = { ...next, key };
    model = models[0] = trajectoryModel(result);
    forgetScales(models);
    head.replaceChildren(...trajectoryHead(model).filter(Boolean));
    if (!ours()?.pinned || at[0] >= model.L || at[1] >= model.P) at = [model.L - 1, model.P - 1];
    update();
    toolbar?.update();
    if (atEnd) table.reveal([0, columns.length - 1]);
  }
  return {
    element: node,
    update: (next) => (next ? replace(next) : update()),
    remove() {
      stop();
      cancelAnimationFrame(frame);
      toolbar?.remove();
      table.remove();
      node.remove();
    },
  };
}
