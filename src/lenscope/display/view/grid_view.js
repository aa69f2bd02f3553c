// A grid: what a model said of hidden states, source layers × target layers as a heat map whose cells open, else a list.

import { element, formatNumber, formatShare, tokenElement, visibleProse, visibleToken } from "./text.js";
import { numberAt } from "./payload.js";
import { stepClass } from "./scale.js";
import { createHeatGrid } from "./heat_grid.js";
import { drawPanel } from "./charts.js";
import { provenanceNode } from "./trajectory_view.js";
import { answerSpans, radioChoice, markedText, rampLegend, resultHead, spanScale, strongName } from "./result_parts.js";

const CELL_NAMES = { max_probability: "probability", entropy: "entropy", kl: "KL from unpatched", surprisal: "surprisal", precision: "precision", mean_log_prob: "ln p a token" };

/** What a measure of cells is called: nodes; an answer's with its text. */
export function cellMeasureName(name) {
  const at = name.indexOf(":"), kind = at < 0 ? name : name.slice(0, at);
  if (at < 0) return [CELL_NAMES[name] ?? visibleProse(name.replaceAll("_", " "))];
  return [kind === "log_prob" ? "ln p" : kind === "pmi" ? "gain" : kind, " ", tokenElement(name.slice(at + 1))];
}

/** What a grid's cells say, by number n. */
export function gridModel(result) {
  const { arrays, measures, vocabulary } = result, names = Object.keys(measures), N = arrays.source.values.length, k = arrays.ids.shape[1] ?? 0;
  const token = (id) => vocabulary.get(id) ?? `#${id}`;
  const model = {
    result, N, names, token,
    source: (n) => result.sources[arrays.source.values[n]],
    target: (n) => result.targets[arrays.target.values[n]],
    targetNumber: (n) => arrays.target.values[n],
    layer: (n) => arrays.layer.values[n],
    text: (n) => result.texts[n],
    value: (name, n) => (names.includes(name) ? numberAt(arrays.values, names.indexOf(name), n) : null),
    top: (n) => Array.from({ length: k }, (_, j) => [numberAt(arrays.ids, n, j), numberAt(arrays.log_probs, n, j)]).filter(([id]) => id >= 0)
      .map(([id, lp]) => ({ id, text: token(id), probability: lp === null ? null : Math.exp(lp) })),
    answered: (n) => answerSpans(result.texts[n], result.answers).length > 0,
  };
  return model;
}

/** Cells of one target as a full grid: {rows: [source numbers], columns: [layers], at(r, c)}; null where they are none. */
function fullGrid(model, cells) {
  const sources = [...new Set(cells.map((n) => model.result.arrays.source.values[n]))], layers = [...new Set(cells.map(model.layer))].sort((a, b) => a - b);
  if (sources.length < 2 || layers.length < 2 || sources.length * layers.length !== cells.length) return null;
  const places = new Map(cells.map((n) => [`${model.result.arrays.source.values[n]},${model.layer(n)}`, n]));
  if (places.size !== cells.length) return null;
  const rows = [...sources].reverse();  // the last source layer is on top
  return { rows, columns: layers, at: (r, c) => places.get(`${rows[r]},${layers[c]}`) };
}

function sourceNodes(source, several) {
  const layer = source.layer === null || source.layer < 0 ? null : String(source.layer);
  if (layer === null) return [visibleProse(source.label)];
  return several ? [tokenElement(source.token), ` ${layer}`] : [layer];
}

function addressInWords(model, n) {
  const source = model.source(n), from = source.layer === null || source.layer < 0 ? source.label : `layer ${source.layer} of ${visibleToken(source.token)}`;
  return `${from} → layer ${model.layer(n)}`;
}

/** The first word with a letter or a digit in it, as cells show what was written. */
export function wordOf(text) {
  return text.split(/\s+/).find((word) => /[\p{L}\p{N}]/u.test(word)) ?? text;
}

/** What one cell says, whole: nodes. */
export function gridCellDetails(model, n) {
  const { result } = model, source = model.source(n), top = model.top(n), { answers } = result;
  const isAnswer = (text) => answers.some((answer) => { const a = String(answer).trim(), b = text.trim(); return b !== "" && (a === b || a.startsWith(b)); });
  const known = source.layer !== null && source.layer >= 0;
  return [
    element("h3", {}, known ? `Source layer ${source.layer}` : visibleProse(source.label), " → ", `layer ${model.layer(n)}`),
    known && element("p", { class: "context" }, element("bdi", {}, visibleProse(source.text)), element("small", {}, " at "), tokenElement(source.token)),
    result.written
      ? [element("blockquote", { class: "written", dir: "auto" }, markedText(model.text(n).replaceAll("\n", "↵\n"), answers)),
        element("p", { class: "note" }, { end: "The model ended it.", stop: "It ends where a stop text began.", length: "It was cut after the last token asked for." }[result.ended[n]] ?? "")]
      : element("ol", { class: "top-list", "aria-label": "Most probable next tokens" }, top.map(({ id, text, probability }) =>
        element("li", { class: isAnswer(text) ? "top-row answer-row" : "top-row", title: `id ${id}` }, tokenElement(text),
          element("span", { class: "bar" }, element("span", { style: { width: `${(100 * (probability ?? 0)).toFixed(2)}%` } })),
          element("span", { class: "value" }, formatShare(probability))))),
    element("dl", {}, model.names.map((name) => element("div", {}, element("dt", {}, cellMeasureName(name), element("small", {}, ` ${visibleProse(result.measures[name])}`)),
      element("dd", {}, formatNumber(model.value(name, n)))))),
  ].flat(9).filter(Boolean);
}

function drawFull(model, cells, full, state, store, hooks) {
  const { result } = model, several = new Set(full.rows.map((s) => `${result.sources[s].text}\n${result.sources[s].position}`)).size > 1;
  const aside = element("aside", { "aria-label": "Selected cell" }), { words } = state, says = cells.filter(model.answered).length;
  let held = false, at = best();
  function best() {  // the cell that is surest of the measure asked for, to begin with
    let place = [0, 0], most = -Infinity;
    full.rows.forEach((_, r) => full.columns.forEach((__, c) => {
      const value = model.value(result.colour, full.at(r, c));
      if (value !== null && value > most) [place, most] = [[r, c], value];
    }));
    return place;
  }
  const show = () => {
    const n = full.at(...at), actions = hooks.cellActions?.(result, { result: result.key, cell: n, layer: model.source(n).layer, position: model.source(n).position }) ?? [];
    aside.replaceChildren(...gridCellDetails(model, n), ...(actions.length ? [element("div", { class: "actions" }, actions)] : []));
    grid.point(at, held);
  };
  const grid = createHeatGrid({ label: "What the model says, source layers (rows) × target layers (columns)", words,
    rows: full.rows.map((s) => sourceNodes(result.sources[s], several)), columns: full.columns.map(String) }, {
    look(place) { if (!held) { at = place; show(); } },
    open(place) {
      held = !(held && at[0] === place[0] && at[1] === place[1]);
      at = place;
      show();
      if (held) hooks.onCell?.(result, { result: result.key, cell: full.at(...place) });
    },
    letGo() { held = false; show(); },
  });
  return {
    nodes: element("div", { class: "body" }, element("div", { class: "main" }, element("p", { class: "note" }, "rows: source layer, columns: target layer; point, or use arrow keys, and open a cell with Enter to hold it"), grid.element, result.answers.length > 0
      && element("p", { class: "note" }, element("span", { class: "sample answer-sample" }), ` framed: ${says} of ${cells.length} cells say an answer that is looked for`)), aside),
    paint(scale) {
      grid.paint({
        className: (r, c) => `${stepClass(scale, model.value(state.measure, full.at(r, c)))}${model.answered(full.at(r, c)) ? " answered" : ""}`,
        nodes: (r, c) => (words ? tokenElement(result.written ? wordOf(model.text(full.at(r, c))).slice(0, 40) : model.text(full.at(r, c))) : null),
        describe(r, c) {
          const n = full.at(r, c);
          return `${addressInWords(model, n)}: ${visibleToken(model.text(n).slice(0, 160))}; ${visibleToken(state.measure)} ${formatNumber(model.value(state.measure, n))}`;
        },
      });
      show();
    },
  };
}

/** Lines of a measure over source layers, one for each position that was read; null where layers repeat. */
function cellLines(model, cells, name) {
  const groups = new Map();
  for (const n of cells) {
    const s = model.source(n), known = s.layer !== null && s.layer >= 0, key = known ? `${s.text}\n${s.position}` : s.label;
    if (!groups.has(key)) groups.set(key, { label: known ? s.token : s.label, points: [] });
    groups.get(key).points.push([known ? s.layer : model.layer(n), model.value(name, n)]);
  }
  const series = [...groups.values()].map(({ label, points }) => ({ label: groups.size > 1 ? visibleToken(label) : "", points: points.sort((a, b) => a[0] - b[0]) }));
  if (groups.size > 8 || series.some(({ points }) => points.length < 3 || new Set(points.map(([x]) => x)).size < points.length)) return null;
  return { kind: "lines", title: model.result.measures[name], x: "layer", y: "", log: false, level: null,
    series: series.map(({ label, points }) => ({ label, x: points.map(([x]) => x), y: points.map(([, y]) => y), low: null, high: null, dashed: false })) };
}

function drawList(model, cells, state) {
  const { result } = model, several = new Set(cells.map((n) => `${model.source(n).text}\n${model.source(n).position}`)).size > 1;
  const charts = element("div", { class: "chart-row" }), values = cells.map(() => element("td", { class: "number shade" }));
  const says = (n) => (result.written ? element("span", { class: "written-line", dir: "auto" }, markedText(model.text(n).trim().replace(/\s*\n\s*/g, " ↵ "), result.answers))
    : model.top(n).slice(0, 5).map(({ text, probability }) => [element("span", { class: result.answers.some((a) => String(a).trim() === text.trim()) ? "pair-token answer-row" : "pair-token" },
      tokenElement(text), element("small", {}, formatShare(probability)))]));
  const head = element("th", { class: "number", scope: "col" });
  const table = element("div", { class: "table-scroller", tabindex: "0", role: "region", "aria-label": "What the model says of each state" }, element("table", { class: "plain cells" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "source"), element("th", { scope: "col", class: "number" }, "into layer"), head, element("th", { scope: "col" }, result.written ? "the model writes" : "most probable next tokens"))),
    element("tbody", {}, cells.map((n, i) => element("tr", {}, element("th", { scope: "row" }, sourceNodes(model.source(n), several)), element("td", { class: "number" }, model.layer(n)), values[i], element("td", { class: "says" }, says(n)))))));
  return {
    nodes: element("div", { class: "list-body" }, table, charts),
    paint(scale) {
      head.replaceChildren(...cellMeasureName(state.measure));
      cells.forEach((n, i) => {
        values[i].className = `number shade ${stepClass(scale, model.value(state.measure, n))}`;
        values[i].textContent = formatNumber(model.value(state.measure, n));
      });
      const lines = cellLines(model, cells, state.measure);
      charts.replaceChildren(...(lines ? [drawPanel(lines)] : []));
    },
  };
}

/** Draws a grid: {element, update(), remove()}. */
export function drawGrid(result, store, hooks = {}) {
  const model = gridModel(result), state = { measure: result.colour ?? model.names[0], target: 0, words: new Set(result.arrays.layer.values).size <= 12 };
  const sources = [...new Set(result.sources.map((s) => s.text || s.label))];
  const head = resultHead(result.title || sources[0] || "grid", [strongName(result.model), `${model.N} cells`, `${result.sources.length} ${result.sources.length === 1 ? "source" : "sources"}`,
    result.written ? "written texts" : "next tokens", result.answers.length && ["looked for: ", ...result.answers.flatMap((a, i) => [i ? ", " : "", tokenElement(String(a))])]]);
  if (!model.N) {
    const node = element("section", { class: "result grid" }, head, element("p", { class: "note" }, "The grid has no cells."));
    return { element: node, update() {}, remove: () => node.remove() };
  }
  const legend = element("div", {}), room = element("div", {}), prompt = element("p", { class: "target-prompt" });
  const measures = radioChoice("Colour by", model.names.map((name) => ({ value: name, nodes: cellMeasureName(name), title: visibleProse(result.measures[name]) })), state.measure, (name) => { state.measure = name; paint(); });
  const targets = result.targets.length > 1 && radioChoice("Target prompt", result.targets.map((t, i) => ({ value: String(i), nodes: String(i + 1), title: visibleProse(t.text) })), "0", (i) => { state.target = Number(i); draw(); });
  const looks = radioChoice("Cells", [{ value: "colours", nodes: "colours" }, { value: "words", nodes: "words" }], state.words ? "words" : "colours", (look) => { state.words = look === "words"; draw(); });
  let part = null, cells = [];
  function paint() {
    const share = ["max_probability", "precision"].includes(state.measure);
    const scale = spanScale(cells.map((n) => model.value(state.measure, n)), { share });
    legend.replaceChildren(rampLegend(scale, visibleProse(result.measures[state.measure])));
    part.paint(scale);
  }
  function draw() {
    cells = Array.from({ length: model.N }, (_, n) => n).filter((n) => model.targetNumber(n) === state.target);
    const target = result.targets[state.target], patched = new Set(target.positions);
    prompt.replaceChildren(element("small", {}, "target prompt "), ...target.tokens.map((token, i) => (patched.has(i) ? element("mark", { title: "the state is written here" }, tokenElement(token)) : element("bdi", {}, visibleProse(token)))));
    const full = fullGrid(model, cells);
    part = full ? drawFull(model, cells, full, state, store, hooks) : drawList(model, cells, state);
    looks.element.hidden = !full;
    room.replaceChildren(...[part.nodes].flat());
    if (cells.length) paint();
  }
  const node = element("section", { class: "result grid" }, head, prompt,
    element("div", { class: "toolbar" }, element("div", { class: "tools" }, measures.element, targets && targets.element, looks.element, legend)), room, provenanceNode(result.provenance));
  draw();
  return { element: node, update: paint, remove: () => node.remove() };
}
