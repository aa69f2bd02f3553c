// What views of results share: scales of any measure, choices, plain tables, texts with answers marked.

import { element, formatNumber, visibleProse } from "./text.js";
import { RAMP_STEPS } from "./scale.js";

let choiceGroups = 0;

/** Numbers that are even steps from low to high, about `count` of them. */
export function evenTicks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1, power = 10 ** Math.floor(Math.log10(span / count));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => span / (m * power) <= count);
  const first = Math.ceil(low / step - 1e-9) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-9) + 1 }, (_, i) => +(first + i * step).toPrecision(12));
}

/**
 * A scale over the span of values: {at, ticks, min, max, low, high}, at(value) in [0, 1]. `log` takes ln(1 + value), `share`
 * runs from 0 to 1. A few far values at either end are cut off, and the outer ticks say so.
 */
export function spanScale(values, { log = false, share = false, high = null } = {}) {
  const sorted = Float64Array.from(values.filter((v) => v !== null && Number.isFinite(v) && (!log || v >= 0))).sort();
  const pick = (q) => (sorted.length ? sorted[Math.round(q * (sorted.length - 1))] : 0);
  const min = pick(0), max = pick(1), near = pick(0.05), far = pick(0.95);
  let bottom = share ? 0 : min, top = share ? 1 : max;
  if (!log && !share && far > near) {
    if (max - far > far - near) top = far;
    if (near - min > far - near) bottom = near;
  }
  if (high !== null && high < top) top = high;
  if (top <= bottom) top = bottom + 1;
  const bend = log ? Math.log1p : (v) => v, a = bend(bottom), b = bend(top);
  const at = (value) => Math.min(1, Math.max(0, (bend(value) - a) / (b - a)));
  const marks = log ? [bottom, ...[1, 10, 100, 1e3, 1e4].filter((v) => v > 2 * bottom && v < top / 4), top] : [bottom, (bottom + top) / 2, top];
  const ticks = marks.map((value, i) => ({ at: at(value), value, over: i === marks.length - 1 && max > top, under: i === 0 && min < bottom }));
  return { at, ticks, min, max, low: bottom, high: top };
}

/** A ramp with its ticks and what it shows. */
export function rampLegend(scale, says) {
  const text = (tick) => `${tick.over ? "≥ " : tick.under ? "≤ " : ""}${formatNumber(tick.value)}`;
  return element("div", { class: "scale" },
    element("div", { class: "ramp", role: "img", "aria-label": `${says}, from ${formatNumber(scale.min)} to ${formatNumber(scale.max)}` },
      Array.from({ length: RAMP_STEPS }, (_, i) => element("span", { class: `q${i}` }))),
    element("div", { class: "ticks", "aria-hidden": "true" },
      scale.ticks.map((tick) => element("span", { style: { left: `${100 * tick.at}%` } }, text(tick)))),
    element("p", {}, says, element("small", {}, `min ${formatNumber(scale.min)}, max ${formatNumber(scale.max)}`)));
}

/** Buttons of which one is chosen: {element, set(value)}; options are [{value, nodes, title}], choose(value) is called. */
export function radioChoice(label, options, current, choose) {
  const group = `choice-${++choiceGroups}`;
  const radios = options.map(({ value }) => element("input", { type: "radio", name: group, value, on: { change: () => choose(value) } }));
  const set = (value) => radios.forEach((radio, i) => { radio.checked = options[i].value === value; });
  set(current);
  const node = element("fieldset", { class: "measures" }, element("legend", {}, label),
    options.map(({ nodes, title }, i) => element("label", { title }, radios[i], element("span", {}, nodes))));
  return { element: node, set };
}

/** A plain table that scrolls sideways: rows are lists of nodes or texts; a column is a side, "left" or "right", and a head. */
export function plainTable(label, columns, rows) {
  const cell = (tag, column, nodes, more) => element(tag, { class: column.side === "left" ? "" : "number", ...more }, nodes);
  return element("div", { class: "table-scroller", tabindex: "0", role: "region", "aria-label": label },
    element("table", { class: "plain" },
      element("thead", {}, element("tr", {}, columns.map((column) => cell("th", column, column.head, { scope: "col" })))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((nodes, i) => (i ? cell("td", columns[i], nodes) : cell("th", columns[i], nodes, { scope: "row" }))))))));
}

/** A value with its interval as nodes: "0.31" and, faint, "0.28–0.35". */
export function intervalNodes(value, low, high) {
  const known = (v) => v !== null && v !== undefined && Number.isFinite(v);
  return [formatNumber(value), known(low) && known(high) && element("small", { class: "interval" }, `${formatNumber(low)} – ${formatNumber(high)}`)];
}

/** Where answers stand in a text: [start, end] pairs in order, whatever their case; parts of longer words do not count. */
export function answerSpans(text, answers) {
  const plain = text.toLowerCase(), spans = [], letter = /[\p{L}\p{N}]/u;
  for (const answer of answers) {
    const wanted = String(answer).trim().toLowerCase();
    if (!wanted || wanted.length > 400 || plain.length !== text.length) continue;
    for (let at = plain.indexOf(wanted); at >= 0; at = plain.indexOf(wanted, at + wanted.length)) {
      const before = text[at - 1] ?? "", after = text[at + wanted.length] ?? "";
      const inside = (letter.test(before) && letter.test(wanted[0])) || (letter.test(after) && letter.test(wanted[wanted.length - 1]));
      if (!inside) spans.push([at, at + wanted.length]);
    }
  }
  return spans.sort((a, b) => a[0] - b[0]).filter(([start], i, all) => !i || start >= all[i - 1][1]);
}

/** A text with its answers marked: nodes. */
export function markedText(text, answers) {
  const nodes = [];
  let end = 0;
  for (const [start, stop] of answerSpans(text, answers)) {
    nodes.push(visibleProse(text.slice(end, start)), element("mark", { class: "answer" }, visibleProse(text.slice(start, stop))));
    end = stop;
  }
  return [...nodes, visibleProse(text.slice(end))];
}

/** The head of a result: its title, and a line of facts between dots. */
export function resultHead(title, facts) {
  return [element("h2", { dir: "auto", title: visibleProse(String(title).slice(0, 2000)) }, visibleProse(String(title).slice(0, 400))),
    element("p", { class: "about" }, facts.filter(Boolean).flatMap((fact, i) => (i ? [" · ", fact] : [fact])))];
}

/** A name in bold that keeps its direction to itself. */
export function strongName(text) {
  return element("b", {}, element("bdi", {}, visibleProse(text)));
}
