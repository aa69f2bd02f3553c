// Lines over the layers of one position: a measure, probabilities, and the ranks of followed tokens.

import { element, formatNumber, svgElement, tokenElement, visibleToken } from "./text.js";
import { numberAt, unpackResult } from "./payload.js";
import { MEASURES, makeScale } from "./scale.js";
import { pinClass } from "./token_chips.js";

const WIDTH = 330, HEIGHT = 156, LEFT = 46, RIGHT = 22, TOP = 12, BOTTOM = 22;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2"];  // so that lines differ without colour too

/**
 * A chart over layers: {title: nodes, label, layers, lines: [{values, name, pin}], scale: {at, ticks}, at, depth, down}. `at` is
 * the row that is looked at; `down` puts 0 on top, as ranks have it; values null are gaps.
 */
export function layerChart({ title, label, layers, lines, scale, at, depth, down = false, note = null }) {
  const first = layers[0], last = layers[layers.length - 1];
  const x = (layer) => LEFT + (WIDTH - LEFT - RIGHT) * (last === first ? 0.5 : (layer - first) / (last - first));
  const y = (share) => (down ? TOP + (HEIGHT - TOP - BOTTOM) * share : HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share);
  const stride = [1, 2, 5, 10, 20, 50].find((s) => (last - first) / s <= 6) || 100;
  const ticks = layers.filter((layer) => (layer % stride === 0 && last - layer > stride / 2) || layer === last);
  const svg = svgElement("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img", "aria-label": label },
    scale.ticks.filter((tick, i, all) => !i || i === all.length - 1 || tick.at - all[i - 1].at > 0.09).map((tick) => [svgElement("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick.at), y2: y(tick.at) }),
      svgElement("text", { x: LEFT - 6, y: y(tick.at) + 3.5, "text-anchor": "end" }, (tick.over ? "≥ " : "") + formatNumber(tick.value))]),
    ticks.map((layer) => svgElement("text", { x: x(layer), y: HEIGHT - 8, "text-anchor": "middle" }, layer)),
    depth !== null && depth >= first && depth <= last && svgElement("line", { class: "depth", x1: x(depth), x2: x(depth), y1: TOP, y2: HEIGHT - BOTTOM }),
    svgElement("line", { class: "here", x1: x(layers[at]), x2: x(layers[at]), y1: TOP, y2: HEIGHT - BOTTOM }));
  let drawn = 0;
  const ends = [];
  lines.forEach((line) => {
    const points = line.values.map((value, i) => (value === null ? null : [x(layers[i]).toFixed(1), y(scale.at(value)).toFixed(1)]));
    const path = points.map((q, i) => q && `${points[i - 1] ? "L" : "M"}${q}`).filter(Boolean).join("");
    const name = line.pin === undefined ? "" : pinClass(line.pin), here = points[at];
    if (path) drawn++;
    svg.append(svgElement("path", { class: name, d: path, "stroke-dasharray": DASHES[line.pin] || null }),
      ...points.filter((q, i) => q && !points[i - 1] && !points[i + 1]).map((q) => svgElement("circle", { class: name, r: 1.8, cx: q[0], cy: q[1] })));
    if (here) svg.append(svgElement("circle", { class: name, r: 3, cx: here[0], cy: here[1] }));
    const end = [...points].reverse().find((q) => q);
    if (end && line.pin !== undefined) ends.push({ name, x: +end[0] + 6, y: +end[1] + 3.5, text: line.pin + 1 });
    else if (here && lines.length === 1) {
      const left = here[0] > WIDTH - 70;
      svg.append(svgElement("text", { class: "now", x: +here[0] + (left ? -7 : 7), y: Math.max(TOP + 8, +here[1] - 6), "text-anchor": left ? "end" : "start" }, formatNumber(line.values[at])));
    }
  });
  ends.sort((a, b) => a.y - b.y);
  for (let i = 0, roof = TOP; i < ends.length; i++) roof = (ends[i].y = Math.max(ends[i].y, roof)) + 10;
  for (let i = ends.length - 1, floor = HEIGHT - BOTTOM + 6; i >= 0; i--) floor = (ends[i].y = Math.min(ends[i].y, floor)) - 10;
  for (const end of ends) svg.append(svgElement("text", { class: `end ${end.name}`, x: end.x, y: end.y }, end.text));
  if (!drawn) svg.append(svgElement("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no value at this position"));
  return element("figure", {}, element("figcaption", {}, title), svg, note && element("p", { class: "chart-note" }, note));
}

/** Lines in words: where each begins and ends. */
export function linesInWords(layers, lines) {
  const first = layers[0], last = layers[layers.length - 1];
  return lines.map(({ name, values }) =>
    `${name}: ${formatNumber(values[0])} at layer ${first}, ${formatNumber(values[values.length - 1])} at layer ${last}`).join("; ");
}

/** The chart of a measure at position p; `lines` may compare several models. */
export function measureChart(models, measure, scale, l, p) {
  const { name, says, unit } = MEASURES[measure], model = models[0], target = model.target?.(p);
  const lines = models.map((m, i) => ({ name: says, values: m.layers.map((_, row) => m.value(measure, row, p)), ...(models.length > 1 ? { pin: i } : {}) }));
  const of = (measure === "rank" || measure === "cross_entropy") && target !== null && target !== undefined;
  return layerChart({ title: [says, of && [" of ", tokenElement(model.token(target))], unit && `, ${unit}`], label: linesInWords(model.layers, lines) || name,
    layers: model.layers, lines, scale, at: l, depth: model.depth(p) });
}

/** The chart of followed tokens' probabilities at position p; of the final prediction where none is followed. */
export function probabilityChart(model, pins, ranks, l, p) {
  const followed = pins.length ? pins : [{ id: model.first(model.L - 1, p), text: model.token(model.first(model.L - 1, p)) }];
  const lines = followed.map((pin, n) => ({ name: visibleToken(pin.text), ...(pins.length ? { pin: n } : {}),
    values: model.layers.map((_, row) => ranks?.probability(pin.id, row, p) ?? model.probability(pin.id, row, p)) }));
  const title = pins.length ? "probability of the followed tokens" : ["probability of ", tokenElement(followed[0].text), ", the final prediction"];
  return layerChart({ title, label: linesInWords(model.layers, lines), layers: model.layers, lines, scale: makeScale("max_probability", []), at: l, depth: model.depth(p) });
}

/** The chart of followed tokens' ranks at position p, on a log scale with rank 0, the top, above. */
export function rankChart(model, pins, ranks, l, p) {
  const lines = pins.map((pin, n) => ({ name: `rank of ${visibleToken(pin.text)}`, pin: n,
    values: model.layers.map((_, row) => ranks?.rank(pin.id, row, p) ?? model.rank(pin.id, row, p)) }));
  const known = lines.flatMap((line) => line.values).filter((v) => v !== null);
  const gaps = lines.some((line) => line.values.includes(null));
  const scale = makeScale("rank", [...known, ranks ? 10 : model.k - 1]);
  return layerChart({ title: "rank of the followed tokens (0 is the top)", label: linesInWords(model.layers, lines), layers: model.layers, lines,
    scale, at: l, depth: model.depth(p), down: true,
    note: gaps ? `Gaps: not among the ${model.k} most probable, and the rank is not known.` : null });
}

/** Ranks of chosen tokens as a hook gives them: a ranks payload, packed or unpacked → {rank, probability} by id, row, column. */
export async function ranksOfTokens(payload, model) {
  const result = typeof payload.arrays?.data === "string" ? await unpackResult(payload) : payload;
  const { ids, layers, positions, arrays } = result;
  const at = (name, id, l, p) => {
    const n = ids.indexOf(id), row = layers.indexOf(model.layers[l]), column = positions.indexOf(model.positions[p]);
    return n < 0 || row < 0 || column < 0 || !arrays[name] ? null : numberAt(arrays[name], n, row, column);
  };
  return {
    ids,
    rank(id, l, p) {
      const value = at("rank", id, l, p);
      return value === null || value < 0 ? null : value;
    },
    probability(id, l, p) {
      const value = at("log_prob", id, l, p);
      return value === null ? null : Math.exp(value);
    },
  };
}
