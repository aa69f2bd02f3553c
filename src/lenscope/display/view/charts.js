// Charts of panels, as Python's figures hold them: lines with intervals, bars, points. Pointer and arrow keys read values.
// A panel is {kind, title, x, y, log, level, series: [{label, x, y, low, high, dashed}]}; null is what is not known.

import { clipText, element, formatNumber, svgElement, visibleProse } from "./text.js";
import { evenTicks } from "./result_parts.js";
import { drawHeatPanel } from "./heat_grid.js";

const PLOT = { width: 420, height: 236, left: 52, right: 12, top: 10, bottom: 34 };
const PLOT_DASHES = "5 3";
const LOG_SPAN = 1e4;  // a log scale goes down to the largest value over this: what is less is rounding, and lies at the edge
const MARKS = ["circle", "square", "diamond", "up", "down", "cross"];

/** The class of the n-th line's colour: the five of pinned tokens, then ink, faint and accent. */
export function seriesClass(n) {
  return `series-${(n % 8) + 1}`;
}

function markNode(kind, x, y, size = 2.6) {
  if (kind === "circle") return svgElement("circle", { cx: x, cy: y, r: size });
  const s = size * (kind === "square" ? 0.9 : 1.25);
  const path = { square: `M${-s},${-s}h${2 * s}v${2 * s}h${-2 * s}z`, diamond: `M0,${-s}L${s},0L0,${s}L${-s},0z`, up: `M0,${-s}L${s},${s}H${-s}z`,
    down: `M0,${s}L${s},${-s}H${-s}z`, cross: `M${-s},${-s * 0.35}h${2 * s}v${0.7 * s}h${-2 * s}z M${-s * 0.35},${-s}h${0.7 * s}v${2 * s}h${-0.7 * s}z` }[kind];
  return svgElement("path", { class: "mark-shape", d: path, transform: `translate(${x},${y})` });
}

function sampleNode(n, series, kind) {
  const svg = svgElement("svg", { width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true", class: seriesClass(n) });
  if (kind === "bars") svg.append(svgElement("rect", { x: 4, y: 2, width: 18, height: 8, class: series.dashed ? "bar-shape hollow" : "bar-shape" }));
  else {
    if (kind === "lines") svg.append(svgElement("path", { class: "curve", d: "M1,6H25", "stroke-dasharray": series.dashed ? PLOT_DASHES : null }));
    svg.append(markNode(MARKS[n % MARKS.length], 13, 6));
  }
  return svg;
}

/** Names of series beside samples of their looks; null where there are none. */
export function chartLegend(series, kind) {
  if (!series.some((one) => one.label)) return null;
  return element("ul", { class: "legend" }, series.map((one, n) =>
    element("li", {}, sampleNode(n, one, kind), element("bdi", {}, visibleProse(one.label)))));
}

/** An axis from values: {at(value) in pixels, ticks}; `log` where all are above 0. */
function numberAxis(values, from, to, log, { zero = false, count = 5 } = {}) {
  const known = values.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) [low, high] = [log ? 1 : 0, log ? 10 : 1];
  if (log) low = Math.max(low, high / LOG_SPAN);
  if (zero && !log) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) * 0.5, high + (Math.abs(high) || 1) * 0.5];
  const bend = log ? Math.log10 : (v) => v, pad = log || zero ? 0 : 0.04 * (high - low);
  const a = bend(low - pad), b = bend(high + pad);
  const decades = [];
  for (let p = Math.floor(a); log && p <= Math.ceil(b); p++) decades.push(...(b - a > 2.5 ? [1] : [1, 2, 5]).map((m) => m * 10 ** p));
  const ticks = log ? decades.filter((v) => bend(v) >= a - 1e-9 && bend(v) <= b + 1e-9) : evenTicks(low - pad, high + pad, count);
  const within = log ? (value) => Math.max(a, bend(value)) : bend;
  return { at: (value) => from + (to - from) * (within(value) - a) / (b - a), ticks };
}

const inPixels = (value) => value.toFixed(1);

function pathOf(points) {
  return points.map((q, i) => q && `${points[i - 1] ? "L" : "M"}${q.map(inPixels)}`).filter(Boolean).join("");
}

/** The band between the ends of intervals, in pieces where some are not known. */
function bandOf(xs, lows, highs) {
  const pieces = [];
  let piece = [];
  xs.forEach((x, i) => {
    if (lows[i] === null || highs[i] === null) piece = [];
    else {
      if (!piece.length) pieces.push(piece);
      piece.push([x, lows[i], highs[i]]);
    }
  });
  return pieces.filter((one) => one.length > 1).map((one) =>
    `M${one.map(([x, , h]) => `${inPixels(x)},${inPixels(h)}`).join("L")}L${[...one].reverse().map(([x, l]) => `${inPixels(x)},${inPixels(l)}`).join("L")}z`).join("");
}

function axesNodes(panel, x, y) {
  const { width, height, left, right, top, bottom } = PLOT;
  return [
    y.ticks.map((value) => [svgElement("line", { class: "rule", x1: left, x2: width - right, y1: y.at(value), y2: y.at(value) }),
      svgElement("text", { x: left - 6, y: y.at(value) + 3.5, "text-anchor": "end" }, formatNumber(value))]),
    panel.level !== null && panel.level !== undefined && Number.isFinite(y.at(panel.level))
      && svgElement("line", { class: "level", x1: left, x2: width - right, y1: y.at(panel.level), y2: y.at(panel.level) }),
    x.ticks.map((value) => svgElement("text", { x: x.at(value), y: height - bottom + 14, "text-anchor": "middle" }, formatNumber(value))),
    svgElement("text", { class: "axis-name", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, clipText(visibleProse(panel.x), 60)),
  ];
}

/** Value and interval of a series at an index, as text. */
function valueInWords(one, i) {
  const { y, low, high } = one, ends = low?.[i] !== null && low?.[i] !== undefined && high?.[i] !== null && high?.[i] !== undefined;
  return formatNumber(y[i]) + (ends ? ` (${formatNumber(low[i])} – ${formatNumber(high[i])})` : "");
}

/** Makes a plot readable by pointer and arrow keys: `stops` are the places in pixels, tell(i) what is there, mark(i) shows it. */
function readable(plot, svg, readout, stops, tell, mark) {
  let at = -1;
  const go = (i) => {
    at = Math.min(stops.length - 1, Math.max(0, i));
    mark(at);
    readout.replaceChildren(...[tell(at)].flat(9).filter(Boolean));
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), here = (event.clientX - box.left) * PLOT.width / box.width;
    return stops.reduce((best, stop, i) => (Math.abs(stop - here) < Math.abs(stops[best] - here) ? i : best), 0);
  };
  if (!stops.length) return;
  svg.addEventListener("pointermove", (event) => go(nearest(event)));
  svg.addEventListener("pointerdown", (event) => go(nearest(event)));
  plot.addEventListener("focus", () => { if (at < 0) go(stops.length - 1); });
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: stops.length - 1 }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    go(to);
  });
}

function drawLines(panel, svg, plot, readout) {
  const points = panel.kind === "points", { width, height, left, right, top, bottom } = PLOT;
  const x = numberAxis(panel.series.flatMap((one) => one.x), left + 4, width - right - 4, false, { count: 7 });
  const ends = panel.series.flatMap((one) => [one.y, one.low ?? [], one.high ?? []]).flat();
  const y = numberAxis([...ends, ...(panel.level === null || panel.level === undefined ? [] : [panel.level])], height - bottom, top, panel.log);
  const ok = (value) => value !== null && (!panel.log || value > 0);
  const place = (value) => (ok(value) ? y.at(value) : null);
  svg.append(...[axesNodes(panel, x, y)].flat(9).filter(Boolean));
  panel.series.forEach((one, n) => {
    const group = svgElement("g", { class: seriesClass(n) }), xs = one.x.map(x.at);
    if (one.low && one.high) group.append(svgElement("path", { class: "band", d: bandOf(xs, one.low.map(place), one.high.map(place)) }));
    const places = one.y.map((value, i) => (ok(value) ? [xs[i], y.at(value)] : null));
    if (!points) group.append(svgElement("path", { class: "curve", d: pathOf(places), "stroke-dasharray": one.dashed ? PLOT_DASHES : null }));
    if (points || places.length < 40) group.append(...places.filter(Boolean).map(([px, py]) => markNode(MARKS[n % MARKS.length], px, py, points ? 2 : 2.6)));
    svg.append(group);
  });
  const stops = [...new Set(panel.series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const line = svgElement("line", { class: "here", y1: top, y2: height - bottom, x1: -9, x2: -9 });
  svg.append(line);
  const tell = (i) => [element("b", {}, `${visibleProse(panel.x) || "x"} ${formatNumber(stops[i])}`), panel.series.map((one) => one.x.map((value, j) => (value !== stops[i] ? null
    : element("span", {}, one.label && element("bdi", {}, visibleProse(one.label)), " ", valueInWords(one, j)))))];
  readable(plot, svg, readout, stops.map(x.at), tell, (i) => {
    line.setAttribute("x1", x.at(stops[i]));
    line.setAttribute("x2", x.at(stops[i]));
  });
}

/** Bars lie, so that names of any length stand beside them: a table whose values are bars, which also is one to those who listen. */
function barTable(panel) {
  const names = panel.series[0]?.x ?? [], all = panel.series.flatMap((one) => [...one.y, ...(one.low ?? []), ...(one.high ?? [])]);
  const axis = numberAxis([...all, panel.level ?? null], 0, 100, false, { zero: true });
  const within = (value) => Math.min(100, Math.max(0, axis.at(value)));
  const bar = (one, n, i) => {
    const value = one.y[i], zero = within(0);
    if (value === null) return element("div", { class: "bar-line" }, element("span", { class: "bar-value" }, "–"));
    const [from, to] = [zero, within(value)].sort((a, b) => a - b), low = one.low?.[i] ?? null, high = one.high?.[i] ?? null;
    return element("div", { class: `bar-line ${seriesClass(n)}` },
      element("div", { class: "bar-room" },
        element("span", { class: one.dashed ? "bar-fill hollow" : "bar-fill", style: { left: `${from}%`, width: `${Math.max(0.4, to - from)}%` } }),
        low !== null && high !== null && element("span", { class: "whisker", style: { left: `${within(low)}%`, width: `${within(high) - within(low)}%` } }),
        panel.level !== null && panel.level !== undefined && element("span", { class: "bar-level", style: { left: `${within(panel.level)}%` } })),
      element("span", { class: "bar-value" }, panel.series.length > 1 && element("span", { class: "spoken" }, visibleProse(one.label), " "), valueInWords(one, i)));
  };
  const spans = panel.series.some((one) => one.low && one.high);
  return element("table", { class: spans ? "bars" : "bars plain-values" }, element("caption", { class: "spoken" }, visibleProse(`${panel.title}: ${panel.y}`)),
    element("tbody", {}, names.map((name, i) => element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, visibleProse(name))),
      element("td", {}, panel.series.map((one, n) => bar(one, n, i)))))));
}

/** A panel in words: what it is, and how each series begins and ends. */
function panelInWords(panel) {
  const ends = panel.series.slice(0, 8).map((one) => {
    const known = one.y.map((v, i) => [v, i]).filter(([v]) => v !== null);
    if (!known.length) return `${one.label}: no values`;
    const [first, last] = [known[0], known[known.length - 1]];
    return `${one.label} from ${formatNumber(first[0])} at ${formatNumber(one.x[first[1]])} to ${formatNumber(last[0])} at ${formatNumber(one.x[last[1]])}`;
  });
  return visibleProse(`${panel.title}: ${panel.y} over ${panel.x}. ${ends.join("; ")}. Arrow keys read values.`);
}

/** Draws a panel of any kind: a figure element. `scale` is what heat maps share. */
export function drawPanel(panel, scale = null) {
  const caption = element("figcaption", {}, element("b", {}, element("bdi", {}, visibleProse(panel.title))), panel.y && panel.y !== panel.title
    && element("span", {}, element("bdi", {}, visibleProse(panel.y)), panel.log && " (log scale)"));
  if (panel.kind === "heatmap") return drawHeatPanel(panel, scale);
  if (panel.kind === "bars") return element("figure", { class: "chart" }, caption, chartLegend(panel.series, "bars"), barTable(panel));
  const { width, height } = PLOT, svg = svgElement("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const readout = element("p", { class: "readout", role: "status" }, element("span", { class: "hint" }, "Point, or use arrow keys, to read values."));
  const plot = element("div", { class: "plot", tabindex: "0", role: "group", "aria-label": panelInWords(panel) }, svg);
  drawLines(panel, svg, plot, readout);
  return element("figure", { class: "chart" }, caption, chartLegend(panel.series, panel.kind), plot, readout);
}
