// Where a prompt is odd: its tokens coloured by score, the oddest span, and the scores over positions.

import { element, formatNumber, tokenElement, tokenNodes, visibleProse, visibleToken } from "./text.js";
import { numberAt } from "./payload.js";
import { stepClass } from "./scale.js";
import { drawPanel } from "./charts.js";
import { provenanceNode } from "./trajectory_view.js";
import { plainTable, radioChoice, rampLegend, resultHead, spanScale, strongName } from "./result_parts.js";

const NAMES = { scores: "each position", smoothed: "moving mean" };

/** Draws scores of positions: {element, update(), remove()}. */
export function drawPositions(result) {
  const { tokens, arrays, span: [start, stop] } = result, positions = tokens.map((_, i) => i);
  const state = { measure: "scores" };
  const value = (name, i) => numberAt(arrays[name], i);
  const all = (name) => positions.map((i) => value(name, i));
  const legend = element("div", {}), strip = element("p", { class: "odd-strip", tabindex: "0", role: "group", "aria-label": "The prompt, its tokens coloured by score" });
  function paint() {
    const scale = spanScale(all(state.measure));
    const token = (i) => [/^\s/.test(tokens[i]) && element("wbr"), element("span", { class: `odd-token ${stepClass(scale, value(state.measure, i))}`, title: `position ${i}: ${visibleToken(tokens[i])}, ${formatNumber(value(state.measure, i))}` },
      tokenNodes(tokens[i]), tokens[i].includes("\n") && element("br"))];
    legend.replaceChildren(rampLegend(scale, `score of ${NAMES[state.measure]}`));
    strip.replaceChildren(element("span", {}, positions.slice(0, start).map(token), element("mark", { class: "odd-span" }, positions.slice(start, stop).map(token)), positions.slice(stop).map(token)));
  }
  const measures = radioChoice("Colour by", Object.keys(NAMES).map((name) => ({ value: name, nodes: NAMES[name] })), state.measure, (name) => { state.measure = name; paint(); });
  const series = (name, dashed) => ({ label: NAMES[name], x: positions, y: all(name), low: null, high: null, dashed });
  const chart = drawPanel({ kind: "lines", title: "Scores over positions", x: "position", y: "", log: false, level: null, series: [series("smoothed", false), series("scores", true)] });
  const highest = [...positions].filter((i) => value("scores", i) !== null).sort((a, b) => value("scores", b) - value("scores", a)).slice(0, 12);
  const table = plainTable("The highest scores", [{ side: "right", head: "position" }, { side: "left", head: "token" }, { side: "right", head: "score" }, { side: "right", head: "moving mean" }],
    highest.map((i) => [String(i), tokenElement(tokens[i]), formatNumber(value("scores", i)), formatNumber(value("smoothed", i))]));
  const node = element("section", { class: "result positions" },
    resultHead(result.text, [strongName(result.model), visibleProse(result.detector), `${tokens.length} positions`, `score of the whole prompt ${formatNumber(result.score)}`, result.threshold !== null && `threshold ${formatNumber(result.threshold)}`]),
    element("p", { class: "note" }, visibleProse(result.says)),
    element("p", { class: "odd-found" }, `The oddest span, positions ${start}–${stop - 1}: `, element("q", {}, visibleProse(result.oddest))),
    element("div", { class: "toolbar" }, element("div", { class: "tools" }, measures.element, legend)), strip,
    element("div", { class: "chart-row" }, chart), element("h3", {}, "The highest scores"), table, provenanceNode(result.provenance));
  paint();
  return { element: node, update: paint, remove: () => node.remove() };
}
