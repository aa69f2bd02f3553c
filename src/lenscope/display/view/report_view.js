// Reports of experiments: the claim, what replicates here, figures drawn from their numbers, tables.

import { element, formatNumber, visibleProse } from "./text.js";
import { drawPanel } from "./charts.js";
import { provenanceNode } from "./trajectory_view.js";
import { intervalNodes, plainTable, resultHead, spanScale, strongName } from "./result_parts.js";

function valueNodes(value) {
  if (Array.isArray(value)) return intervalNodes(...value);
  if (typeof value === "number") return formatNumber(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return value === null ? "–" : element("bdi", {}, visibleProse(value));
}

function reportTable({ name, columns, rows }) {
  if (!rows.length) return element("p", { class: "note" }, `${visibleProse(name)}: no rows`);
  const sides = columns.map((head, i) => ({ head: visibleProse(head), side: rows.some((row) => typeof row[i] === "string") ? "left" : "right" }));
  return element("section", { class: "report-table" }, element("h3", {}, visibleProse(name)), plainTable(visibleProse(name), sides, rows.map((row) => row.map(valueNodes))));
}

/** Panels of a figure; heat maps that show the same share one scale, so that their colours compare. */
function figureNodes(figure) {
  const scales = new Map();
  for (const panel of figure.panels.filter((one) => one.kind === "heatmap")) {
    if (!scales.has(panel.colour)) {
      const alike = figure.panels.filter((one) => one.kind === "heatmap" && one.colour === panel.colour);
      scales.set(panel.colour, spanScale(alike.flatMap((one) => one.values.flat()), { log: panel.log, high: panel.high }));
    }
  }
  return element("div", { class: "chart-grid", role: "group", "aria-label": visibleProse(figure.name) }, figure.panels.map((panel) => drawPanel(panel, scales.get(panel.colour) ?? null)));
}

/** Draws a report: {element, update(), remove()}. */
export function drawReport(result) {
  const node = element("section", { class: "result report" }, resultHead(result.title, [visibleProse(result.experiment), strongName(result.model), "values in small print are 95 % intervals"]),
    element("div", { class: "claims" },
      element("div", {}, element("h3", {}, "The paper"), element("p", {}, visibleProse(result.claim))),
      element("div", {}, element("h3", {}, "Here"), result.reading.split("\n").map((line) => element("p", {}, visibleProse(line))))),
    result.figures.map(figureNodes), result.tables.map(reportTable),
    element("details", { class: "provenance" }, element("summary", {}, "Settings"), element("dl", {}, Object.entries(result.settings).map(([key, value]) =>
      element("div", {}, element("dt", {}, visibleProse(key)), element("dd", {}, visibleProse(typeof value === "object" ? JSON.stringify(value) : value)))))),
    provenanceNode(result.provenance));
  return { element: node, update() {}, remove: () => node.remove() };
}
