// Effects: what an intervention at each layer and place of a prompt's run did to its answer.

import { element, formatNumber, formatShare, tokenElement, visibleProse, visibleToken } from "./text.js";
import { numberAt } from "./payload.js";
import { stepClass } from "./scale.js";
import { createHeatGrid } from "./heat_grid.js";
import { drawPanel } from "./charts.js";
import { provenanceNode } from "./trajectory_view.js";
import { radioChoice, plainTable, rampLegend, resultHead, spanScale, strongName } from "./result_parts.js";

const EFFECT_NAMES = { standard_error: "standard error", log_prob: "ln p", log_effect: "change of ln p", difference: "against the alternative" };
const effectName = (name) => EFFECT_NAMES[name] ?? name.replaceAll("_", " ");

/** Draws effects: {element, update(), remove()}. */
export function drawEffects(result, store, hooks = {}) {
  const { arrays, layers, runs } = result, names = Object.keys(result.measures), L = layers.length;
  const state = { run: 0, measure: names.includes("effect") ? "effect" : names[0] };
  const legend = element("div", {}), room = element("div", {}), aside = element("aside", { "aria-label": "Selected cell" }), charts = element("div", { class: "chart-row" });
  const share = (value) => (value !== null && Math.abs(value) < 5e-4 ? "0%" : value < 0 ? `−${formatShare(-value)}` : formatShare(value));
  const shown = (name, value) => (result.shares.includes(name) ? share(value) : formatNumber(value));
  const starts = runs.map((_, i) => runs.slice(0, i).reduce((sum, run) => sum + L * run.places.length, 0));
  const cellNumber = (l, p) => starts[state.run] + l * runs[state.run].places.length + p;
  const value = (name, l, p) => numberAt(arrays.values, names.indexOf(name), cellNumber(l, p));
  const placeText = (run, p) => run.places[p].map((i) => run.tokens[i]).join("");
  const marked = (run, p) => run.places[p].some((i) => run.marked.includes(i));
  let at = [0, 0], held = false, grid = null;

  function show() {
    const run = runs[state.run], [l, p] = at;
    grid.point([L - 1 - l, p], held);
    aside.replaceChildren(
      element("h3", {}, `Layer ${layers[l]}`, element("small", {}, layers[l] === 0 ? "the input of the first block" : `after block ${layers[l]} of ${result.n_layers}`)),
      element("h3", {}, run.places[p].length > 1 ? `Positions ${run.places[p].join(", ")}` : `Position ${run.places[p][0]}`, " ", tokenElement(placeText(run, p)), marked(run, p) && element("small", {}, "marked")),
      element("dl", {}, names.map((name) => element("div", {}, element("dt", {}, effectName(name), element("small", {}, ` ${visibleProse(result.measures[name])}`)), element("dd", {}, shown(name, value(name, l, p)))))),
      element("h3", {}, "The runs without intervention"),
      element("dl", {}, Object.entries(result.totals).map(([name, values]) => element("div", {}, element("dt", {}, name.replaceAll("_", " "), element("small", {}, ` ${visibleProse(result.total_units[name] ?? "")}`)),
        element("dd", {}, shown(name, values[state.run]))))));
    const error = names.includes("standard_error") && state.measure === "effect";
    const ys = layers.map((_, i) => value(state.measure, i, p)), errors = layers.map((_, i) => (error ? value("standard_error", i, p) : null));
    const end = (sign) => ys.map((y, i) => (y === null || errors[i] === null ? null : y + sign * 1.96 * errors[i]));
    charts.replaceChildren(drawPanel({ kind: "lines", title: `${effectName(state.measure)} over layers at ${visibleToken(placeText(run, p))}`, x: "layer", y: error ? "band: ± 1.96 standard errors" : "", log: false, level: 0,
      series: [{ label: "", x: layers, y: ys, low: error ? end(-1) : null, high: error ? end(1) : null, dashed: false }] }));
  }
  function paint() {
    const run = runs[state.run], P = run.places.length, all = layers.flatMap((_, l) => run.places.map((__, p) => value(state.measure, l, p)));
    const scale = spanScale(all, { share: state.measure === "probability" }), words = P <= 16;
    legend.replaceChildren(rampLegend(scale, visibleProse(result.measures[state.measure])));
    grid.paint({
      className: (r, c) => stepClass(scale, value(state.measure, L - 1 - r, c)),
      nodes: (r, c) => (words ? shown(state.measure, value(state.measure, L - 1 - r, c)) : null),
      describe: (r, c) => `layer ${layers[L - 1 - r]}, ${visibleToken(placeText(run, c))}: ${effectName(state.measure)} ${shown(state.measure, value(state.measure, L - 1 - r, c))}`,
    });
    show();
  }
  function draw() {
    const run = runs[state.run];
    const most = layers.flatMap((_, l) => run.places.map((__, p) => [l, p])).reduce((best, place) => ((value(state.measure, ...place) ?? -Infinity) > (value(state.measure, ...best) ?? -Infinity) ? place : best), [0, 0]);
    at = most;
    held = false;
    grid = createHeatGrid({ label: `Layers × places of the prompt, coloured by a measure of the effect on the answer ${visibleToken(run.answer)}`, corner: element("small", {}, "layer"), words: run.places.length <= 16,
      rows: [...layers].reverse().map(String), columns: run.places.map((_, p) => [tokenElement(placeText(run, p)), marked(run, p) && "*"].filter(Boolean)) }, {
      look([r, c]) { if (!held) { at = [L - 1 - r, c]; show(); } },
      open([r, c]) {
        const same = held && at[0] === L - 1 - r && at[1] === c;
        at = [L - 1 - r, c];
        held = !same;
        show();
      },
      letGo() { held = false; show(); },
    });
    room.replaceChildren(element("p", { class: "target-prompt" }, element("small", {}, "prompt "), run.tokens.map((token, i) => (run.marked.includes(i) ? element("mark", { title: "marked: the subject" }, tokenElement(token)) : element("bdi", {}, visibleProse(token)))),
      element("small", {}, " answer "), tokenElement(run.answer), run.alternative && [element("small", {}, " against "), tokenElement(run.alternative)]),
    element("div", { class: "body" }, element("div", { class: "main" }, grid.element, run.marked.length ? element("p", { class: "note" }, "* marked: the subject that was corrupted, or the queries that were kept from looking") : null, charts), aside));
    paint();
  }
  const measures = radioChoice("Colour by", names.map((name) => ({ value: name, nodes: effectName(name), title: visibleProse(result.measures[name]) })), state.measure, (name) => { state.measure = name; paint(); });
  const choices = runs.length > 1 && element("label", { class: "run-choice" }, "Prompt ", element("select", { on: { change: (event) => { state.run = Number(event.target.value); draw(); } } },
    runs.map((run, i) => element("option", { value: String(i) }, visibleProse(`${i + 1}. ${run.text.slice(0, 80)} → ${run.answer}`)))));
  const node = element("section", { class: "result effects" }, resultHead(result.title, [strongName(result.model), visibleProse(result.method), `${runs.length} ${runs.length === 1 ? "prompt" : "prompts"}`, `${L} layers`]),
    element("div", { class: "toolbar" }, element("div", { class: "tools" }, measures.element, choices, legend)), room, runs.length > 1 && totalsTable(result, shown), provenanceNode(result.provenance));
  draw();
  return { element: node, update: paint, remove: () => node.remove() };
}

function totalsTable(result, shown) {
  const names = Object.keys(result.totals);
  return element("details", { class: "provenance" }, element("summary", {}, "The runs without intervention, all prompts"),
    plainTable("Runs without intervention", [{ side: "left", head: "prompt" }, ...names.map((name) => ({ side: "right", head: name.replaceAll("_", " ") }))],
      result.runs.map((run, i) => [[element("bdi", {}, visibleProse(run.text)), " → ", tokenElement(run.answer)], ...names.map((name) => shown(name, result.totals[name][i]))])));
}
