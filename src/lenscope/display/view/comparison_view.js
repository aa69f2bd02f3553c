// Trajectories side by side: of two prompts, or of two or more lenses of one prompt. Grids scroll, look and hold together.

import { clipText, element, formatNumber, nameElement, tokenElement, visibleProse } from "./text.js";
import { numberAt } from "./payload.js";
import { MEASURES, makeScale } from "./scale.js";
import { doubtsInWords, indicesWithin, layersInWords, trajectoryModel, weakLayersInWords, withSharedReports } from "./trajectory_model.js";
import { createLayerTable } from "./layer_table.js";
import { addGestures, carryCell } from "./table_gestures.js";
import { MOST_PINS, togglePin } from "./token_chips.js";
import { doubtNote, topTokenList, weakNote } from "./cell_details.js";
import { layerChart, linesInWords, measureChart, rankChart } from "./rank_curves.js";
import { askedRanks, gridSource, provenanceNode } from "./trajectory_view.js";
import { createToolbar, measureInUse, scaleInUse } from "./toolbar.js";

const BETWEEN = "between:";

/** The trajectories of a comparison: those of several lenses, or the first and the second. */
const sidesOf = (result) => result.sides ?? [result.first, result.second];
/** What a side is called. */
const called = (result, n) => (result.sides ? `Lens ${n + 1}` : n ? "Second" : "First");

/** A comparison as a model: its distances are measures named between:…, its other measures are those of both sides. */
export function comparisonModel(result) {
  const sides = withSharedReports(sidesOf(result)).map(trajectoryModel), [first] = sides;
  const between = (name) => (name.startsWith(BETWEEN) ? result.arrays[name.slice(BETWEEN.length)] : undefined);
  return {
    result, sides, layers: result.layers, positions: first.positions, L: first.L, P: first.P,
    vocabularies: sides.flatMap((side) => side.vocabularies),
    hasMeasure: (name) => (name.startsWith(BETWEEN) ? between(name) !== undefined : sides.every((side) => side.hasMeasure(name))),
    value(name, l, p) {
      const value = between(name)?.values[l * first.P + p];
      return value === undefined || Number.isNaN(value) ? null : value;
    },
    values: (name) => (name.startsWith(BETWEEN) ? Array.from(between(name)?.values ?? []).filter((v) => !Number.isNaN(v)) : sides.flatMap((side) => side.values(name))),
    depth: (p) => first.depth(p),
    weak: (l) => sides.some((side) => side.weak(l)),
    doubt: (l) => sides.map((side) => side.doubt(l)).find((why) => why !== null) ?? null,
  };
}

const sameText = (result) => Boolean(result.sides) || (result.first.text === result.second.text && result.first.ids.join() === result.second.ids.join());

function comparisonHead(model) {
  const [first, second] = sidesOf(model.result), same = sameText(model.result);
  const lens = (side) => element("b", {}, nameElement(side.lens), " on ", nameElement(side.model));
  return [
    element("h2", { dir: "auto" }, clipText(visibleProse(first.text), 300), !same && [element("span", { class: "versus" }, " and "), element("bdi", {}, clipText(visibleProse(second.text), 300))]),
    element("p", { class: "about" }, model.result.sides ? [element("b", {}, `${model.sides.length} lenses`), " on ", element("b", {}, nameElement(first.model))]
      : [lens(first), (first.lens !== second.lens || first.model !== second.model) && [" and ", lens(second)]],
      ` · ${layersInWords(model.layers)} of ${first.n_layers} · ${model.P} ${model.result.sides ? (model.P === 1 ? "position" : "positions") : `${model.P === 1 ? "pair" : "pairs"} of positions`}`),
    ...new Set(model.sides.flatMap((side) => [weakLayersInWords(side), doubtsInWords(side)]).filter(Boolean)),
  ].map((part) => (typeof part === "string" ? element("p", { class: "warning" }, part) : part));
}

/** Draws a comparison: {element, model, update(), remove()}. Its cells are named by the first side's positions. */
export function drawComparison(result, store, hooks) {
  const model = comparisonModel(result), models = [model], key = result.key, same = sameText(result);
  const sides = model.sides.map((side, n) => ({ model: side, n, result: { ...side.result, key }, table: createLayerTable(), source: null,
    ranks: askedRanks(side.result, side, hooks, () => show()) }));
  const aside = element("aside", { "aria-label": "Selected cells" }), charts = element("div", { class: "charts" });
  const spoken = element("p", { class: "spoken", role: "status" });
  const toolbar = hooks.toolbar === false ? null : createToolbar(models, store, hooks);
  const name = (side) => (same ? side.model.result.lens : clipText(visibleProse(side.model.result.text), 60));
  const node = element("section", { class: "result comparison" }, element("div", { class: "result-head" }, comparisonHead(model)), toolbar?.element,
    element("div", { class: "body" }, element("div", { class: "main" }, element("div", { class: "pair" }, sides.map((side) =>
      element("div", { class: "side" }, element("h3", { dir: "auto" }, `${called(result, side.n)}: `, nameElement(name(side))), side.table.element))), charts), aside),
    sides.map((side) => provenanceNode(side.model.result.provenance, `Provenance of ${result.sides ? `lens ${side.n + 1}` : side.n ? "the second" : "the first"}`)), spoken);
  let rows = [], columns = [], at = [model.L - 1, model.P - 1], frame = 0;

  const ours = () => (store.get().cell?.result === key ? store.get().cell : null);
  const cellOf = (l, p, n = 0) => ({ result: key, layer: model.layers[l], position: sides[n].model.positions[p], side: n });
  const placeOf = (l, p) => {
    const r = rows.indexOf(l), c = columns.indexOf(p);
    return r < 0 || c < 0 ? null : [rows.length - 1 - r, c];
  };
  const lp = ([r, c]) => [sides[0].source.at(r), columns[c]];

  function distanceCharts(l, p) {
    const names = Object.keys(MEASURES).filter((measure) => measure.startsWith(BETWEEN) && model.hasMeasure(measure));
    const measure = measureInUse(store.get(), models), chosen = measure.startsWith(BETWEEN) ? measure : names[0];
    const scale = scaleInUse({ ...store.get(), measure: chosen }, models), { says, unit } = MEASURES[chosen];
    const lines = [{ name: says, values: model.layers.map((_, row) => model.value(chosen, row, p)) }];
    return layerChart({ title: [says, unit && `, ${unit}`], label: linesInWords(model.layers, lines), layers: model.layers, lines, scale, at: l, depth: null });
  }
  /** Of several lenses: how far each is from the first at a position, and at which share of positions it says the same. */
  function lensCharts(l, p) {
    const others = sides.slice(1, MOST_PINS), { kl_between: kl, same_top: share } = result.arrays;
    const line = (of) => others.map(({ n }) => ({ name: `lens ${n + 1}`, pin: n, values: model.layers.map((_, row) => of(n, row)) }));
    const chart = (title, lines, scale) => layerChart({ title, label: linesInWords(model.layers, lines), layers: model.layers, lines, scale, at: l, depth: null });
    const apart = line((n, row) => numberAt(kl, 0, n, row, p)), known = apart.flatMap(({ values }) => values).filter((v) => v !== null);
    return [chart("KL(lens 1 ‖ each other), nats, at this position", apart, makeScale("kl", known)),
      chart("share of positions where lens 1 and each other have the same top token", line((n, row) => numberAt(share, 0, n, row)), makeScale("max_probability", []))];
  }
  function lensRows(l, p) {
    const pairs = sides.flatMap(({ n: i }) => sides.filter(({ n: j }) => i !== j).map(({ n: j }) => [i, j]));
    return element("dl", {}, pairs.map(([i, j]) => element("div", {}, element("dt", {}, `KL(${i + 1} ‖ ${j + 1})`),
      element("dd", {}, `${formatNumber(numberAt(result.arrays.kl_between, i, j, l, p))} nats`))));
  }
  function distanceRows(l, p) {
    return element("dl", {}, Object.keys(MEASURES).filter((measure) => measure.startsWith(BETWEEN) && model.hasMeasure(measure)).map((measure) =>
      element("div", {}, element("dt", {}, MEASURES[measure].says), element("dd", {}, `${Number(model.value(measure, l, p)?.toPrecision(3) ?? NaN)} ${MEASURES[measure].unit}`))));
  }
  function show() {
    const state = store.get(), held = Boolean(ours()?.pinned), [l, p] = at, measure = measureInUse(state, models);
    for (const side of sides) side.table.point(placeOf(l, p), held);
    const focused = aside.contains(document.activeElement) ? document.activeElement.dataset.follow : null;
    aside.replaceChildren(element("h3", {}, `Layer ${model.layers[l]}`, element("button", { type: "button", class: "hold", "aria-pressed": String(held), on: { click: () => open(l, p, 0) } }, held ? "held" : "hold")),
      ...(result.sides ? [] : [distanceRows(l, p)]), ...sides.flatMap((side) => {
        const position = side.model.positions[p], actions = hooks.cellActions?.(side.result, cellOf(l, p, side.n)) ?? [];
        return [element("h3", {}, result.sides ? `${side.n + 1} ${clipText(visibleProse(name(side)), 40)}` : called(result, side.n), element("small", {}, `position ${position}, after `, tokenElement(side.model.input(p)))),
          weakNote(side.model, l), doubtNote(side.model, l), actions.length ? element("div", { class: "actions" }, actions) : null, ...topTokenList(side.model, l, p, store)];
      }).filter(Boolean), ...(result.sides ? [lensRows(l, p)] : []));
    if (focused) aside.querySelector(`[data-follow="${focused}"]`)?.focus();
    const own = measure.startsWith(BETWEEN) ? "kl" : measure, scale = scaleInUse({ ...state, measure: own }, models);
    const paired = measureChart(sides.slice(0, MOST_PINS).map((side) => side.model), own, scale, l, p);
    paired.querySelector("figcaption").append(element("small", {}, result.sides ? " by lens" : " 1 first, 2 second"));
    charts.replaceChildren(...(result.sides ? lensCharts(l, p) : [distanceCharts(l, p)]), paired,
      ...(state.pins.length ? sides.map((side) => {
        const chart = rankChart(side.model, state.pins, side.ranks.get(), l, p);
        chart.querySelector("figcaption").prepend(`${called(result, side.n)}: `);
        return chart;
      }) : []));
  }
  function showSoon() {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; show(); });
  }
  function look(l, p) {
    if (ours()?.pinned || (l === at[0] && p === at[1])) return;
    at = [l, p];
    if (!store.get().cell?.pinned) store.set({ cell: { ...cellOf(l, p), pinned: false } });
    showSoon();
  }
  function open(l, p, n) {
    const held = ours()?.pinned && at[0] === l && at[1] === p;
    at = [l, p];
    store.set({ cell: { ...cellOf(l, p), pinned: !held } });
    show();
    if (!held) hooks.onCell?.(sides[n].result, cellOf(l, p, n));
  }
  const limits = (values, a, b) => [Math.min(values[a], values[b]), Math.max(values[a], values[b])];
  for (const side of sides) {
    const others = sides.filter((one) => one !== side), cellAt = ([r, c]) => ({ ...cellOf(r === null ? 0 : side.source.at(r), columns[c], side.n), ...(r === null ? { layer: null } : {}) });
    side.table.element.addEventListener("scroll", () => {
      const { scrollLeft, scrollTop } = side.table.element;
      for (const { table } of others) {
        if (table.element.scrollLeft !== scrollLeft) table.element.scrollLeft = scrollLeft;
        if (table.element.scrollTop !== scrollTop) table.element.scrollTop = scrollTop;
      }
    }, { passive: true });
    addGestures(side.table, () => ({ rows: rows.length, columns: columns.length }), {
      label: ([r, c]) => side.source.describe(r, c),
      look: (place) => look(...lp(place)),
      open: (place) => open(...lp(place), side.n),
      pin(place) {
        const id = side.model.first(...lp(place));
        store.set({ pins: togglePin(store.get().pins, id, side.model.token(id)) });
      },
      letGo() { if (ours()?.pinned) store.set({ cell: { ...ours(), pinned: false } }); },
      chooseRows: (low, high) => store.set({ layerWindow: limits(model.layers, side.source.at(low), side.source.at(high)) }),
      chooseColumns: (low, high) => store.set({ positionWindow: limits(model.positions, columns[low], columns[high]) }),
      drag: hooks.dragData && ((place) => hooks.dragData(side.result, cellAt(place))),
      carry(data, place) {
        spoken.textContent = `Taken: ${side.source.describe(...place)}.`;
        return carryCell(data);
      },
      drop: hooks.onDrop && ((place, dragged) => hooks.onDrop(side.result, cellAt(place), dragged)),
    });
  }
  function update(names) {
    if (names && names.every((changed) => changed === "cell")) {
      const cell = ours(), l = cell ? model.layers.indexOf(cell.layer) : -1, p = cell ? model.positions.indexOf(cell.position) : -1;
      if (l >= 0 && p >= 0) at = [l, p];
      return showSoon();
    }
    const state = store.get(), measure = measureInUse(state, models), scale = scaleInUse(state, models);
    rows = indicesWithin(model.layers, state.layerWindow);
    columns = indicesWithin(model.positions, state.positionWindow);
    for (const side of sides) {
      side.ranks.ask(state.pins);
      const value = measure.startsWith(BETWEEN) ? (l, p) => model.value(measure, l, p) : (l, p) => side.model.value(measure, l, p);
      side.source = gridSource(side.model, { rows, columns, scale, value, pins: state.pins, cone: null, draggable: Boolean(hooks.dragData),
        label: `${called(result, side.n)}: top token at every layer and position` });
      side.table.setSource(side.source);
    }
    show();
  }
  update();
  for (const side of sides) side.table.reveal(placeOf(...at) ?? [0, columns.length - 1]);
  const stop = store.subscribe((_, names) => update(names));
  return {
    element: node, model, update: () => update(),
    remove() {
      stop();
      cancelAnimationFrame(frame);
      toolbar?.remove();
      for (const side of sides) side.table.remove();
      node.remove();
    },
  };
}
