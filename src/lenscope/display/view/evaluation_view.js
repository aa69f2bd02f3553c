// Evaluations: lenses over layers with their intervals, a chart for each measure, a table beneath; and layers exchanged.

import { element, formatNumber, visibleProse } from "./text.js";
import { numberAt } from "./payload.js";
import { drawPanel } from "./charts.js";
import { provenanceNode } from "./trajectory_view.js";
import { radioChoice, intervalNodes, plainTable, resultHead, strongName } from "./result_parts.js";

const EVALUATED = { cross_entropy: "cross-entropy", bits_per_byte: "bits per byte", kl: "KL from the model", agreement: "agreement", entropy: "entropy", calibration: "calibration error", bias: "bias" };
const evaluatedName = (name) => EVALUATED[name] ?? name.replaceAll("_", " ");
const FIRST_CHARTS = ["kl", "cross_entropy", "agreement", "bias", "entropy", "calibration", "bits_per_byte"];

/** Draws an evaluation: {element, update(), remove()}. */
export function drawEvaluation(result) {
  const { arrays, lenses, layers, measures, own, baseline } = result, all = Object.keys(measures);
  const at = (array, name, lens, l) => [0, 1, 2].map((end) => numberAt(array, all.indexOf(name), lens, l, end));
  const names = all.filter((name) => lenses.some((_, n) => layers.some((__, l) => at(arrays.values, name, n, l)[0] !== null)));
  names.sort((a, b) => FIRST_CHARTS.indexOf(a) - FIRST_CHARTS.indexOf(b));
  const differs = (name, lens, l) => {
    if (!arrays.differences || lenses[lens] === baseline) return false;
    const [, low, high] = at(arrays.differences, name, lens, l);
    return low !== null && high !== null && (low > 0 || high < 0);
  };
  const panelOf = (name, log) => ({ kind: "lines", title: evaluatedName(name), x: "layer", y: measures[name], log, level: !log || own[name]?.[0] > 0 ? own[name]?.[0] ?? null : null,
    series: lenses.map((lens, n) => {
      const rows = layers.map((_, l) => at(arrays.values, name, n, l));
      return { label: lens, x: layers, y: rows.map(([v]) => v), low: rows.map(([, v]) => v), high: rows.map(([, , v]) => v), dashed: false };
    }) });
  const state = { scale: "linear", measure: names[0] }, charts = element("div", { class: "chart-grid" }), below = element("div", {});
  const draw = () => charts.replaceChildren(...names.map((name) => drawPanel(panelOf(name, state.scale === "log" && all.includes(name) && !["agreement"].includes(name)))));
  function drawTable() {
    const { measure } = state, columns = [{ side: "right", head: "layer" }, ...lenses.map((lens) => ({ side: "right", head: element("bdi", {}, visibleProse(lens)) }))];
    const rows = layers.map((layer, l) => [String(layer), ...lenses.map((_, n) => {
      const nodes = intervalNodes(...at(arrays.values, measure, n, l));
      return differs(measure, n, l) ? [element("strong", {}, nodes[0]), nodes[1]] : nodes;
    })]);
    const model = own[measure] ? [["model", ...lenses.map((_, n) => (n ? "" : intervalNodes(...own[measure])))]] : [];
    below.replaceChildren(plainTable(`${evaluatedName(measure)} by layer and lens`, columns, [...rows, ...model]),
      element("p", { class: "note" }, `${visibleProse(measures[measure])}; small: 95 % intervals over ${formatNumber(result.units)} units of text`, baseline && lenses.length > 1 && [`; bold: differs from ${visibleProse(baseline)} (95 %)`]));
  }
  const scales = radioChoice("Scale", [{ value: "linear", nodes: "linear" }, { value: "log", nodes: "log" }], "linear", (scale) => { state.scale = scale; draw(); });
  const choices = radioChoice("Table of", names.map((name) => ({ value: name, nodes: evaluatedName(name), title: visibleProse(measures[name]) })), state.measure, (name) => { state.measure = name; drawTable(); });
  const node = element("section", { class: "result evaluation" }, resultHead(result.title, [strongName(result.model), `${lenses.length} ${lenses.length === 1 ? "lens" : "lenses"}`, `${formatNumber(result.tokens)} tokens in ${formatNumber(result.rows)} rows`,
    "bands: 95 % intervals", "dotted: the model itself"]),
  element("div", { class: "toolbar" }, element("div", { class: "tools" }, scales.element)), charts,
  element("div", { class: "toolbar" }, element("div", { class: "tools" }, choices.element)), below, provenanceNode(result.provenance));
  draw();
  drawTable();
  return { element: node, update() {}, remove: () => node.remove() };
}

/** Draws a transfer matrix: {element, update(), remove()}. */
export function drawTransfer(result) {
  const { arrays, layers, measures } = result, names = Object.keys(measures), room = element("div", { class: "chart-grid wide" });
  const state = { what: "penalties", measure: names[0] };
  function draw() {
    const array = arrays[state.what], k = names.indexOf(state.measure), unit = measures[state.measure];
    room.replaceChildren(drawPanel({ kind: "heatmap", title: evaluatedName(state.measure), x: "tested on layer", y: "trained on layer", columns: layers.map(String), rows: layers.map(String), log: false, high: null, texts: null,
      values: layers.map((_, i) => layers.map((__, j) => numberAt(array, k, i, j))), colour: state.what === "penalties" ? `${unit}, minus the layer's own translator's` : unit }));
  }
  const kinds = radioChoice("Colour by", [{ value: "penalties", nodes: "what is lost" }, { value: "values", nodes: "value" }], state.what, (what) => { state.what = what; draw(); });
  const choices = radioChoice("Measure", names.map((name) => ({ value: name, nodes: evaluatedName(name), title: measures[name] })), state.measure, (name) => { state.measure = name; draw(); });
  const node = element("section", { class: "result transfer" }, resultHead(result.title, [strongName(result.lens), strongName(result.model), `${formatNumber(result.tokens)} tokens`]),
    element("div", { class: "toolbar" }, element("div", { class: "tools" }, kinds.element, choices.element)), room, provenanceNode(result.provenance));
  draw();
  return { element: node, update() {}, remove: () => node.remove() };
}
