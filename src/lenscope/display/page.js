// The page of lenscope: results' JSON → view models → components → mount. No framework, no build step, no network.
// Tokens, prompts and names are untrusted text: all markup goes through the tag `html`, which escapes what it is given.
"use strict";
globalThis.lenscope = (() => {

// ---- text ----------------------------------------------------------------------------------------------------------

class Markup { constructor(text) { this.text = text; } toString() { return this.text; } }
const escape = (value) => String(value).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const render = (value) => value instanceof Markup ? value.text : Array.isArray(value) ? value.map(render).join("")
  : value === null || value === undefined || value === false ? "" : escape(value);
const html = (strings, ...values) => new Markup(strings.reduce((out, s, i) => out + render(values[i - 1]) + s));

const MARKS = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥" };
const INVISIBLE = /([ \n\r\t])\1*|[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Z}\u115f\u3164]/gu;
const JOINER = /[\u200c\u200d]/;  // kept inside a token (emoji, Persian, Devanagari), named when alone

const codePoint = (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** A token as [text, isMark] parts in which nothing is invisible. */
function visible(token) {
  if (token === "") return [["∅", true]];
  const parts = /^\p{M}/u.test(token) ? [["◌", true]] : [];
  const marks = /^ +$/.test(token) ? { " ": "␣" } : MARKS;  // a blank alone is easier to see as a box
  let end = 0;
  for (const found of token.matchAll(INVISIBLE)) {
    const [run, blank] = found;
    if (JOINER.test(run) && token.length > 1) continue;
    if (found.index > end) parts.push([token.slice(end, found.index), false]);
    parts.push([!blank ? codePoint(run) : run.length > 3 ? `${marks[blank]}×${run.length}` : marks[blank].repeat(run.length), true]);
    end = found.index + run.length;
  }
  return end < token.length ? [...parts, [token.slice(end), false]] : parts;
}
const plain = (token) => visible(token).map(([text]) => text).join("");
function tokenMarkup(token) {
  const parts = visible(token), alone = parts.every(([, mark]) => mark);  // marks beside text are faint
  return html`${parts.map(([text, mark]) => !mark ? text : html`<i${(alone || text.startsWith("U+")) && html` class="full"`}>${text}</i>`)}`;
}
const tokenInline = (token) => html`<bdi class="token">${tokenMarkup(token)}</bdi>`;
/** Running text, with nothing in it that could reorder or hide what stands around it. */
const prose = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, (c) => /[\n\t\u200c\u200d]/.test(c) ? c : c === "\r" ? "" : codePoint(c));
const clip = (text, length) => [...text].length > length ? [...text].slice(0, length - 1).join("") + "…" : text;

/** Three significant digits; whole numbers whole. */
function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en").replace(/,/g, "\u202f");
  return Math.abs(value) < 1e-3 ? value.toExponential(1).replace("-", "−") : String(+value.toPrecision(3));
}

// ---- core: measures, scales, view model (no DOM) -------------------------------------------------------------------

const MEASURES = {
  max_probability: { name: "probability", unit: "", says: "probability of the top token", hi: 1 },
  entropy: { name: "entropy", unit: "nats", says: "entropy" },
  kl: { name: "KL to final", unit: "nats", says: "KL(final ‖ this layer)" },
  cross_entropy: { name: "cross-entropy", unit: "nats", says: "cross-entropy" },
  rank: { name: "rank", unit: "", says: "rank", log: true },
};

/** A scale from 0: value → [0, 1], with ticks. Heavy tails are cut at the 95th percentile, and the last tick says so. */
function makeScale(measure, values) {
  const { hi: fixed, log } = MEASURES[measure];
  const sorted = Float64Array.from(values).sort();
  const max = sorted.length ? sorted[sorted.length - 1] : 0, usual = sorted[Math.floor(0.95 * (sorted.length - 1))] || 0;
  const cut = !log && !fixed && usual > 0 && max > 1.5 * usual;
  const least = cut ? usual : max || 1, power = 10 ** Math.floor(Math.log10(least));
  const hi = fixed || (log ? Math.max(max, 1) : power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((m) => m * power >= least * 0.999));
  const bend = log ? Math.log1p : (v) => v;
  const at = (value) => Math.min(1, Math.max(0, bend(value) / bend(hi)));
  const decades = [0, 1, 10, 100, 1e3, 1e4, 1e5].filter((v) => v < hi / 8);
  const ticks = (log ? [...decades, hi] : [0, hi / 2, hi]).map((v) => ({ at: at(v), label: number(v) }));
  if (cut) ticks[2].label = "≥ " + ticks[2].label;
  return { measure, at, ticks, hi, min: sorted.length ? sorted[0] : 0, max, cut };
}

/** What a trajectory says, by layer row l and position column p (indices into result.layers and result.positions). */
function trajectoryModel(result) {
  const { prompt, layers, positions, measures, top, vocabulary, target } = result;
  const tokens = new Map(Object.entries(vocabulary));
  const model = {
    result, layers, L: layers.length, P: positions.length,
    token: (id) => tokens.get(String(id)) ?? `#${id}`,
    input: (p) => prompt.tokens[positions[p]],
    target(p) {
      const next = positions[p] + 1;
      return target || (next < prompt.ids.length ? { id: prompt.ids[next], token: prompt.tokens[next] } : null);
    },
    value(measure, l, p) {
      const value = measures[measure]?.[l]?.[p] ?? null;
      return measure === "rank" && value < 0 ? null : value;  // -1 in files of version 0.1.0: no target
    },
    values: (measure) => layers.flatMap((_, l) => positions.map((_, p) => model.value(measure, l, p))).filter((v) => v !== null),
    column: (measure, p) => layers.map((_, l) => model.value(measure, l, p)),
    first: (l, p) => top.ids[l][p][0],
    top: (l, p) => top.ids[l][p].map((id, k) => ({ id, token: model.token(id), probability: Math.exp(top.log_probs[l][p][k] ?? -Infinity) })),
    probability: (id, l, p) => model.top(l, p).find((entry) => entry.id === id)?.probability ?? null,
    depth: (p) => result.prediction_depth[p],
    settled: (l, p) => (result.prediction_depth[p] ?? Infinity) <= layers[l],
    layerInWords(l) {
      const layer = layers[l];
      return layer === 0 ? "the input of the first block" : layer === result.n_layers ? "the output of the last block"
        : `after block ${layer} of ${result.n_layers}`;
    },
  };
  return model;
}

// ---- colour: one ramp, even steps of OKLab lightness; every step carries the ink (black or white) that reads on it ----

const STEPS = 40;
function oklch(L, C, degrees) {
  const a = C * Math.cos(degrees * Math.PI / 180), b = C * Math.sin(degrees * Math.PI / 180);
  const [l, m, s] = [L + .3963377774 * a + .2158037573 * b, L - .1055613458 * a - .0638541728 * b, L - .0894841775 * a - 1.291485548 * b].map((v) => v ** 3);
  return [4.0767416621 * l - 3.3077115913 * m + .2309699292 * s, -1.2684380046 * l + 2.6097574011 * m - .3413193965 * s,
    -.0041960863 * l - .7034186147 * m + 1.707614701 * s].map((v) => Math.min(1, Math.max(0, v)));
}
function step(t, dark) {
  const L = dark ? .26 + .6 * t : .98 - .58 * t, C = .008 + .086 * Math.sin(Math.PI * (.02 + .63 * t));
  const rgb = oklch(L, C, dark ? 264 - 150 * t : 100 + 160 * t ** .8), Y = .2126 * rgb[0] + .7152 * rgb[1] + .0722 * rgb[2];
  const hex = rgb.map((v) => Math.round(255 * (v <= .0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - .055)).toString(16).padStart(2, "0"));
  const [soft, pure] = Y > .179 ? ["#14181d", "#000"] : ["#eef1f4", "#fff"];
  return `{background:#${hex.join("")};color:${Y > .24 || Y < .13 ? soft : pure}}`;
}
function rampStyle() {
  const rules = (dark) => Array.from({ length: STEPS }, (_, i) => `.q${i}${step(i / (STEPS - 1), dark)}`).join("");
  return `${rules(false)}@media screen and (prefers-color-scheme:dark){${rules(true)}}`;
}
const stepClass = (scale, value) => value === null ? "none" : `q${Math.round(scale.at(value) * (STEPS - 1))}`;

// ---- component: trajectory table -----------------------------------------------------------------------------------

/** on = {look(l, p), pin(l, p), unpin()}. Returns {element, paint(scale, follow), point(l, p, pinned)}. */
function trajectoryTable(model, on) {
  const { L, P, layers } = model, cache = new Map(), fixed = new Array(L * P);
  const shown = (id) => cache.get(id) ?? cache.set(id, tokenMarkup(model.token(id))).get(id);
  for (let l = 0; l < L; l++) for (let p = 0; p < P; p++) {  // the marks that no choice of measure changes
    let marks = model.first(l, p) === model.target(p)?.id ? " hit" : "";
    if (model.settled(l, p)) {
      const edges = (layers[l] === model.depth(p) ? " eb" : "") + (p > 0 && !model.settled(l, p - 1) ? " el" : "")
        + (p < P - 1 && !model.settled(l, p + 1) ? " er" : "");
      if (edges) marks += " e" + edges;
    }
    fixed[l * P + p] = marks;
  }
  const columns = [...Array(P).keys()], rows = [...Array(L).keys()].reverse();
  const element = document.createElement("div");
  element.className = P > 40 ? "scroller many" : "scroller";
  element.style.setProperty("--columns", P);
  element.innerHTML = html`<table role="grid" aria-label="Top token at every layer and position"><thead>
    <tr><th scope="row">input</th>${columns.map((p) => html`<th scope="col"><small>${model.result.positions[p]}</small>${tokenMarkup(model.input(p))}</th>`)}</tr>
    ${!model.result.target && html`<tr class="next"><th scope="row">next</th>${columns.map((p) => html`<td>${model.target(p) ? tokenMarkup(model.target(p).token) : "–"}</td>`)}</tr>`}
    </thead><tbody>${rows.map((l) => html`<tr><th scope="row">${l === L - 1 && html`<small>layer</small>`}${layers[l]}</th>${columns.map((p) => html`<td tabindex="-1">${shown(model.first(l, p))}</td>`)}</tr>`)}</tbody></table>`.text;
  const body = element.querySelector("tbody"), heads = element.querySelector("thead tr").cells;
  const cell = (l, p) => body.rows[L - 1 - l].cells[p + 1];
  const place = (td) => [L - 1 - td.parentNode.sectionRowIndex, td.cellIndex - 1];
  const label = (l, p) => `${plain(model.token(model.first(l, p)))}, probability ${number(model.value("max_probability", l, p))}; layer ${layers[l]}, position ${model.result.positions[p]} after ${plain(model.input(p))}`;
  let marked = [], stop = null;

  function paint(scale, follow) {
    rows.forEach((l, r) => {
      let td = body.rows[r].cells[0];
      for (let p = 0; p < P; p++) {
        td = td.nextElementSibling;
        const name = stepClass(scale, model.value(scale.measure, l, p)) + fixed[l * P + p] + (follow === model.first(l, p) ? " follow" : "");
        if (td.className !== name) td.className = name;
      }
    });
  }
  function point(l, p, pinned) {
    marked.forEach((node) => { node.classList.remove("on"); node.removeAttribute("aria-selected"); });
    const td = cell(l, p);
    marked = [td, heads[p + 1], td.parentNode.cells[0]];
    marked.slice(1).forEach((node) => node.classList.add("on"));
    td.setAttribute("aria-selected", String(pinned));
    if (stop) stop.tabIndex = -1;
    (stop = document.activeElement?.tabIndex === 0 && body.contains(document.activeElement) ? document.activeElement : td).tabIndex = 0;
  }
  function move(td, key, far) {
    const [l, p] = place(td), by = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [5, 0], PageDown: [-5, 0] }[key];
    const to = by ? [l + by[0], p + by[1]] : key === "Home" ? [far ? L - 1 : l, 0] : key === "End" ? [far ? 0 : l, P - 1] : null;
    return to && cell(Math.min(L - 1, Math.max(0, to[0])), Math.min(P - 1, Math.max(0, to[1])));
  }
  const cellOf = (event) => event.target.closest("tbody td");
  let pointer = "";  // a table that scrolls under a resting pointer is not looked at
  body.addEventListener("pointerover", (event) => {
    const td = cellOf(event), here = `${event.screenX},${event.screenY}`;
    if (!td || here === pointer) return;
    pointer = here;
    td.title ||= label(...place(td));
    on.look(...place(td));
  });
  body.addEventListener("pointermove", (event) => { pointer = `${event.screenX},${event.screenY}`; }, { passive: true });
  body.addEventListener("click", (event) => { const td = cellOf(event); if (td) on.pin(...place(td)); });
  body.addEventListener("focusin", (event) => {
    const td = cellOf(event);
    if (!td) return;
    if (stop) stop.tabIndex = -1;
    (stop = td).tabIndex = 0;
    td.setAttribute("aria-label", label(...place(td)));
    on.look(...place(td));
  });
  body.addEventListener("keydown", (event) => {
    const td = cellOf(event), to = td && move(td, event.key, event.ctrlKey || event.metaKey);
    if (to) { to.focus({ preventScroll: true }); to.scrollIntoView({ block: "nearest", inline: "nearest" }); }
    else if (td && (event.key === "Enter" || event.key === " ")) on.pin(...place(td));
    else return;
    event.preventDefault();
  });
  return { element, paint, point };
}

// ---- component: what one cell says ---------------------------------------------------------------------------------

function cellDetails(model, l, p, { pinned, follow }) {
  const at = model.result.positions[p], { tokens } = model.result.prompt, target = model.target(p), top = model.top(l, p);
  const around = (from, to) => prose(tokens.slice(Math.max(0, from), to).join("")).replace(/\s*\n\s*/g, " ↵ ");
  const says = { cross_entropy: target && html` of ${tokenInline(target.token)}`, rank: target && html` of ${tokenInline(target.token)} <small>(0 is the top)</small>` };
  return html`<h3>Layer ${model.layers[l]}<small>${model.layerInWords(l)}</small></h3>
    <h3>Position ${at}<small>token ${at + 1} of ${tokens.length}</small><button class="pin" aria-pressed="${pinned}" title="Click a cell to pin it; Escape lets go">${pinned ? "pinned" : "pin"}</button></h3>
    <p class="context"><bdi>${at > 6 && "… "}${around(at - 6, at)}</bdi><mark>${tokenInline(tokens[at])}</mark><bdi>${around(at + 1, at + 4)}${at + 4 < tokens.length && " …"}</bdi></p>
    <ol aria-label="Top tokens; choose one to follow it through the table">${top.map(({ id, token, probability }) => html`<li><button data-follow="${id}" aria-pressed="${follow === id}" class="${target?.id === id && "hit"}" title="Follow ${plain(token)} (id ${id})">
      ${tokenInline(token)}<span class="bar"><span style="width:${(100 * probability).toFixed(2)}%"></span></span><span class="value">${number(probability)}</span></button></li>`)}</ol>
    <dl>${Object.entries(MEASURES).slice(1).map(([key, measure]) => model.result.measures[key] && html`<div><dt>${measure.says}${says[key]}</dt><dd>${model.value(key, l, p) !== null ? `${number(model.value(key, l, p))} ${measure.unit}` : key in says && !target ? "no next token" : "–"}</dd></div>`)}
    <div><dt>prediction depth of this position</dt><dd>${model.depth(p) === null ? "not known" : `layer ${model.depth(p)}`}</dd></div></dl>`;
}

// ---- component: a line over the layers ------------------------------------------------------------------------------

function lineChart({ title, layers, values, scale, at, depth }) {
  const W = 330, H = 150, left = 46, right = 12, top = 10, bottom = 22, first = layers[0], last = layers[layers.length - 1];
  const x = (layer) => left + (W - left - right) * (last === first ? .5 : (layer - first) / (last - first)), y = (t) => H - bottom - (H - top - bottom) * t;
  const points = values.map((v, i) => v === null ? null : [x(layers[i]).toFixed(1), y(scale.at(v)).toFixed(1)]);
  const path = points.map((q, i) => q && `${points[i - 1] ? "L" : "M"}${q}`).filter(Boolean).join("");
  const alone = points.filter((q, i) => q && !points[i - 1] && !points[i + 1]), here = points[at];
  const stride = [1, 2, 5, 10, 20, 50].find((s) => (last - first) / s <= 6) || 100;
  const ticks = layers.filter((layer) => (layer % stride === 0 && last - layer > stride / 2) || layer === last);
  return html`<figure><figcaption>${title}</figcaption><svg viewBox="0 0 ${W} ${H}" width="${W}" height="${H}" role="img" aria-label="${first === last ? "" : `from ${number(values[0])} at layer ${first} to ${number(values[values.length - 1])} at layer ${last}`}">
    ${scale.ticks.map((t) => html`<line class="rule" x1="${left}" x2="${W - right}" y1="${y(t.at)}" y2="${y(t.at)}"/><text x="${left - 6}" y="${y(t.at) + 3.5}" text-anchor="end">${t.label}</text>`)}
    ${ticks.map((layer) => html`<text x="${x(layer)}" y="${H - 8}" text-anchor="middle">${layer}</text>`)}
    <line class="depth" x1="${x(depth)}" x2="${x(depth)}" y1="${top}" y2="${H - bottom}"/><line class="here" x1="${x(layers[at])}" x2="${x(layers[at])}" y1="${top}" y2="${H - bottom}"/>
    ${!path && html`<text x="${(left + W - right) / 2}" y="${H / 2}" text-anchor="middle">no value at this position</text>`}<path d="${path}"/>${alone.map((q) => html`<circle r="1.5" cx="${q[0]}" cy="${q[1]}"/>`)}
    ${here && html`<circle r="3" cx="${here[0]}" cy="${here[1]}"/><text class="now" x="${+here[0] + (here[0] > W - 70 ? -7 : 7)}" y="${Math.max(top + 8, +here[1] - 6)}" text-anchor="${here[0] > W - 70 ? "end" : "start"}">${number(values[at])}</text>`}
    </svg></figure>`;
}
function columnCharts(model, l, p, scale, follow) {
  const final = model.first(model.L - 1, p), id = follow ?? final, measure = MEASURES[scale.measure], { layers } = model;
  const shared = { layers, at: l, depth: model.depth(p) }, target = model.target(p);
  const of = (scale.measure === "rank" || scale.measure === "cross_entropy") && target && html` of ${tokenInline(target.token)}`;
  return [lineChart({ ...shared, title: html`${measure.says}${of}${measure.unit && `, ${measure.unit}`}`, values: model.column(scale.measure, p), scale }),
    lineChart({ ...shared, title: html`probability of ${tokenInline(model.token(id))}, the ${follow === null ? "final prediction" : "followed token"}`,
      values: layers.map((_, i) => model.probability(id, i, p)), scale: makeScale("max_probability", []) })];
}

// ---- view: one trajectory --------------------------------------------------------------------------------------------

/** page = {scale, follow: {model, id} | null, setFollow(follow)}. Returns {element, update()}. */
function trajectoryView(result, page, anchor) {
  const model = trajectoryModel(result), { prompt, provenance } = result;
  let at = [model.L - 1, model.P - 1], pinned = false;
  const followed = () => page.follow?.model === result.model ? page.follow.id : null;
  const element = document.createElement("section");
  element.id = anchor;
  element.innerHTML = html`<h2 dir="auto" title="${clip(prose(prompt.text), 2000)}">${clip(prose(prompt.text), 400)}</h2>
    <p class="about"><b><bdi>${prose(result.lens)}</bdi></b> on <b><bdi>${prose(result.model)}</bdi></b> · ${model.L === 1 ? "layer " : `layers ${model.layers[0]}–`}${model.layers[model.L - 1]} of ${result.n_layers} · ${model.P} ${model.P === 1 ? "position" : "positions"}${result.target && html` · target ${tokenInline(result.target.token)}`}</p>
    <div class="body"><div class="main"><div class="charts"></div></div><aside aria-label="Selected cell"></aside></div>
    <details><summary>Provenance</summary><dl>${Object.entries(provenance || {}).map(([key, value]) => html`<div><dt><bdi>${prose(key.replace(/_/g, " "))}</bdi></dt><dd><bdi>${prose(value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value))}</bdi></dd></div>`)}</dl></details>`.text;
  const aside = element.querySelector("aside"), charts = element.querySelector(".charts");
  function show() {
    table.point(...at, pinned);
    aside.innerHTML = cellDetails(model, ...at, { pinned, follow: followed() }).text;
    charts.innerHTML = render(columnCharts(model, ...at, page.scale, followed()));
  }
  function pin(l, p) {
    const same = pinned && at[0] === l && at[1] === p;
    at = [l, p];
    pinned = !same;
    page.setFollow(same ? null : { model: result.model, id: model.first(l, p) });
  }
  const table = trajectoryTable(model, {
    look(l, p) { if (!pinned && (l !== at[0] || p !== at[1])) { at = [l, p]; show(); } }, pin,
  });
  charts.before(table.element);
  aside.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const id = Number(button.dataset.follow), choice = button.dataset.follow;
    if (choice) page.setFollow(followed() === id ? null : { model: result.model, id });
    else pin(...at);
    aside.querySelector(choice ? `[data-follow="${id}"]` : ".pin")?.focus();
  });
  element.addEventListener("keydown", (event) => { if (event.key === "Escape" && pinned) pin(...at); });
  return { element, model, update() { table.paint(page.scale, followed()); show(); } };
}

// ---- page and mount --------------------------------------------------------------------------------------------------

const VIEWS = { trajectory: trajectoryView };  // one entry per result.kind

function legend(scale) {
  const { name, unit } = MEASURES[scale.measure];
  return html`<div class="ramp" role="img" aria-label="${name} from ${number(scale.min)} to ${number(scale.max)} ${unit}">${Array.from({ length: STEPS }, (_, i) => html`<span class="q${i}"></span>`)}</div>
    <div class="ticks" aria-hidden="true">${scale.ticks.map((t) => html`<span style="left:${100 * t.at}%">${t.label}</span>`)}</div>
    <p>${unit} <small>min ${number(scale.min)}, max ${number(scale.max)}</small></p>`;
}

/** Draws data = {title, results} into root. */
function mount(root, data) {
  const name = (r) => html`<bdi>${clip(prose(r.prompt?.text ?? r.kind), 60)}</bdi>${r.lens && html` — <bdi>${prose(r.lens)}</bdi>`}`;
  const title = prose(data.title || "lenscope");
  document.title = title;
  root.innerHTML = html`<header><h1><bdi>${title}</bdi></h1>
    <ul class="key"><li><span class="sample line"></span>prediction depth: settled above the line</li><li><b>bold</b> the target or next token</li></ul>${data.results.length > 1 && html`<nav aria-label="Results"><ol>${data.results.map((r, i) => html`<li><a href="#result-${i + 1}">${name(r)}</a></li>`)}</ol></nav>`}</header>
    <div class="toolbar"><fieldset><legend>Colour by</legend></fieldset><div class="scale" aria-live="polite"></div><p class="following" hidden></p></div>
    <main></main>`.text;
  const style = root.appendChild(document.createElement("style"));
  style.textContent = rampStyle();
  const page = { scale: null, follow: null, setFollow(follow) { page.follow = follow; update(); } };
  const views = data.results.map((r, i) => Object.hasOwn(VIEWS, r.kind) ? VIEWS[r.kind](r, page, `result-${i + 1}`) : null);
  const models = views.filter(Boolean).map((view) => view.model);
  const keys = Object.keys(MEASURES).filter((key) => models.some((model) => model.result.measures[key]));
  const main = root.querySelector("main"), following = root.querySelector(".following"), choices = root.querySelector("fieldset");
  function update() {
    for (const view of views) view?.update();
    following.hidden = !page.follow;
    const model = page.follow && models.find((m) => m.result.model === page.follow.model);
    if (model) following.innerHTML = html`<span class="sample follow"></span>following ${tokenInline(model.token(page.follow.id))} <button>stop</button>`.text;
  }
  function choose(measure) {  // one scale for the whole page, so that trajectories compare
    page.scale = makeScale(measure, models.flatMap((m) => m.values(measure)));
    root.querySelector(".scale").innerHTML = legend(page.scale).text;
    update();
  }
  views.forEach((view, i) => {
    if (view) return main.append(view.element);
    const note = main.appendChild(document.createElement("p"));
    note.textContent = `This page cannot draw a result of kind “${data.results[i].kind}”.`;
  });
  if (!keys.length) return void root.querySelectorAll(".toolbar, .key").forEach((node) => node.remove());
  choices.insertAdjacentHTML("beforeend", render(keys.map((key) => html`<label><input type="radio" name="measure" value="${key}"><span>${MEASURES[key].name}</span></label>`)));
  choices.querySelector("input").checked = true;
  choices.addEventListener("change", (event) => choose(event.target.value));
  following.addEventListener("click", (event) => { if (event.target.closest("button")) page.setFollow(null); });
  choose(keys[0]);
}

return { mount, VIEWS, MEASURES, visible, plain, html, makeScale, trajectoryModel, step, STEPS };
})();

if (typeof document !== "undefined" && document.getElementById("data")) {
  lenscope.mount(document.getElementById("page"), JSON.parse(document.getElementById("data").textContent));
}
