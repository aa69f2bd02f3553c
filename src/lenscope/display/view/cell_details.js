// What one cell says: where it is, its most probable tokens, how they changed since the layer below, its measures.

import { element, formatNumber, formatShare, tokenElement, visibleProse, visibleToken } from "./text.js";
import { MEASURES } from "./scale.js";
import { pinClass, togglePin } from "./token_chips.js";

function contextNodes(model, p) {
  const { ids, vocabulary } = model.result, at = model.positions[p], text = (id) => vocabulary.get(id) ?? `#${id}`;
  const around = (from, to) => visibleProse(ids.slice(Math.max(0, from), Math.max(0, to)).map((id) => text(id).slice(0, 40)).join("")).replace(/\s*\n\s*/g, " ↵ ");
  return element("p", { class: "context" }, element("bdi", {}, at > 6 && "… ", around(at - 6, at)), element("mark", {}, tokenElement(text(ids[at]))),
    element("bdi", {}, around(at + 1, at + 4), at + 4 < ids.length && " …"));
}

/** The change of a probability against the layer below: nodes; "new" where it was not among the most probable there. */
function changeNodes(model, id, probability, l, p) {
  if (l === 0) return element("span", { class: "change", title: "the lowest layer that was read" }, "–");
  const below = model.probability(id, l - 1, p), layer = model.layers[l - 1];
  if (below === null) {
    return element("span", { class: "change up", title: `not among the ${model.k} most probable of layer ${layer}` }, "new");
  }
  const points = 100 * (probability - below), size = Math.abs(points);
  const shown = size < 0.05 ? "±0" : `${points > 0 ? "+" : "−"}${size >= 9.95 ? size.toFixed(0) : size.toFixed(1)}`;
  return element("span", { class: `change ${size < 0.05 ? "" : points > 0 ? "up" : "down"}`, title: `${formatShare(below)} at layer ${layer}` }, shown);
}

/** The most probable tokens of a cell, each a button that follows it or lets go. */
export function topTokenList(model, l, p, store) {
  const { pins } = store.get(), target = model.target(p);
  const below = l > 0 ? `vs layer ${model.layers[l - 1]}` : "change";
  const rows = model.top(l, p).filter(({ probability }) => !Number.isNaN(probability)).map(({ id, probability }) => {
    const n = pins.findIndex((pin) => pin.id === id), text = model.token(id);
    return element("li", {}, element("button", { type: "button", class: `top-token${target === id ? " hit" : ""}${n >= 0 ? ` pinned ${pinClass(n)}` : ""}`,
      "aria-pressed": String(n >= 0), data: { follow: String(id) }, title: `${n >= 0 ? "Stop following" : "Follow"} ${visibleToken(text)} (id ${id})`,
      on: { click: () => store.set({ pins: togglePin(store.get().pins, id, text) }) } },
    tokenElement(text), element("span", { class: "bar" }, element("span", { style: { width: `${(100 * probability).toFixed(2)}%` } })),
    element("span", { class: "value" }, formatShare(probability)), changeNodes(model, id, probability, l, p)));
  });
  return [element("div", { class: "top-head", "aria-hidden": "true" }, element("span", {}, "token"), element("span", {}, "probability"), element("span", { title: "change of the probability, in percentage points" }, below)),
    element("ol", { "aria-label": "Most probable tokens; choose one to follow it" }, rows.length ? rows : element("li", {}, "The lens gave no numbers here."))];
}

function measureRows(model, l, p) {
  const target = model.target(p);
  return Object.keys(model.result.measures).filter((name) => name !== "max_probability" && model.hasMeasure(name)).map((name) => {
    const { says, unit } = MEASURES[name] ?? { says: name, unit: "" }, value = model.value(name, l, p);
    const aboutTarget = name === "cross_entropy" || name === "rank";
    return element("div", {}, element("dt", {}, says, aboutTarget && target !== null && [" of ", tokenElement(model.token(target))], name === "rank" && element("small", {}, " (0 is the top)")),
      element("dd", {}, value === null ? (aboutTarget && target === null ? "no next token" : "–") : `${formatNumber(value)} ${unit}`));
  });
}

/** A sentence where the lens knows little of the cell's layer. */
export function weakNote(model, l) {
  if (!model.weak(l)) return null;
  return element("p", { class: "warning" }, `On held-out text this lens is ${model.heldOut(l).toFixed(2)} nats of KL from the model at layer ${model.layers[l]}: take what it says here with care.`);
}

/** A sentence where the lens is not to be trusted at the cell's layer, by the report of its fit. */
export function doubtNote(model, l) {
  const why = model.doubt(l);
  return why === null ? null : element("p", { class: "warning" }, `Not to be trusted at layer ${model.layers[l]}: ${visibleProse(why)}.`);
}

/**
 * What the cell at row l and column p says: nodes. `held` says whether it stays while the pointer moves on; hold() changes
 * that; `actions` are further buttons.
 */
export function cellDetails(model, l, p, { store, held, hold, actions = [] }) {
  const position = model.positions[p];
  return [
    element("h3", {}, `Layer ${model.layers[l]}`, element("small", {}, model.layerInWords(l)),
      element("button", { type: "button", class: "hold", "aria-pressed": String(held), title: "Click a cell, or press Enter, to hold it; Escape lets go", on: { click: hold } }, held ? "held" : "hold")),
    element("h3", {}, `Position ${position}`, element("small", {}, `token ${position + 1} of ${model.result.ids.length}`)),
    contextNodes(model, p),
    weakNote(model, l),
    doubtNote(model, l),
    actions.length ? element("div", { class: "actions" }, actions) : null,
    ...topTokenList(model, l, p, store),
    element("dl", {}, measureRows(model, l, p),
      element("div", {}, element("dt", {}, "prediction depth of this position"), element("dd", {}, model.depth(p) === null ? "not known" : `layer ${model.depth(p)}`)),
      model.heldOut(l) !== null && element("div", {}, element("dt", {}, "KL of this lens on held-out text"), element("dd", {}, `${formatNumber(model.heldOut(l))} nats`))),
  ];
}
