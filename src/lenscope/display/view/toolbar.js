// What is above a table: which measure colours it, its scale, which tokens are followed, which layers and positions are seen.

import { element, formatNumber } from "./text.js";
import { MEASURES, RAMP_STEPS, makeScale } from "./scale.js";
import { MOST_PINS, matchingTokens, pinChips, tokenSearch } from "./token_chips.js";

let toolbars = 0;

/** The measures of models, in the order of MEASURES. */
export function measuresOf(models) {
  return Object.keys(MEASURES).filter((name) => models.some((model) => model.hasMeasure(name)));
}

/** The measure that colours models: the state's, where they have it, else their first. */
export function measureInUse(state, models) {
  const names = measuresOf(models);
  return names.includes(state.measure) ? state.measure : names[0];
}

const ownScales = new WeakMap();  // models → measure → scale: to sort all values takes a while

/** The scale of models: the page's, where it is of their measure, else one of their own. */
export function scaleInUse(state, models) {
  const measure = measureInUse(state, models);
  if (state.scale?.measure === measure) return state.scale;
  if (!ownScales.has(models)) ownScales.set(models, new Map());
  const scales = ownScales.get(models);
  if (!scales.has(measure)) scales.set(measure, makeScale(measure, models.flatMap((model) => model.values(measure))));
  return scales.get(measure);
}

/** Lets go of the scales of models that are no longer what they were. */
export function forgetScales(models) {
  ownScales.delete(models);
}

function legendNodes(scale) {
  const { name, unit } = MEASURES[scale.measure];
  const label = ({ value, over }) => (over ? "≥ " : "") + formatNumber(value);
  return [
    element("div", { class: "ramp", role: "img", "aria-label": `${name} from ${formatNumber(scale.min)} to ${formatNumber(scale.max)} ${unit}` },
      Array.from({ length: RAMP_STEPS }, (_, i) => element("span", { class: `q${i}` }))),
    element("div", { class: "ticks", "aria-hidden": "true" },
      scale.ticks.map((tick) => element("span", { style: { left: `${100 * tick.at}%` } }, label(tick)))),
    element("p", {}, unit, element("small", {}, `min ${formatNumber(scale.min)}, max ${formatNumber(scale.max)}`)),
  ];
}

/** Two number fields for a window [low, high] of `name` in the store. */
function windowFields(store, name, word, numbers) {
  const field = (label) => element("input", { type: "number", step: "1", "aria-label": label, on: { change: apply } });
  const from = field(`First ${word}`), to = field(`Last ${word}`), ends = () => [Math.min(...numbers()), Math.max(...numbers())];
  const reset = element("button", { type: "button", class: "quiet", on: { click: () => store.set({ [name]: null }) } }, "all");
  function apply() {
    const [low, high] = ends();
    const number = (input, otherwise) => input.value === "" || !Number.isFinite(input.valueAsNumber) ? otherwise : Math.min(high, Math.max(low, Math.round(input.valueAsNumber)));
    const a = number(from, low), b = number(to, high);
    const next = [Math.min(a, b), Math.max(a, b)];
    store.set({ [name]: next[0] === low && next[1] === high ? null : next });
    show();
  }
  function show() {
    const [low, high] = ends(), limits = store.get()[name] ?? [low, high];
    for (const input of [from, to]) {
      input.min = String(low);
      input.max = String(high);
    }
    from.value = String(Math.max(low, limits[0]));
    to.value = String(Math.min(high, limits[1]));
    reset.hidden = store.get()[name] === null;
  }
  return { element: element("div", { class: "window", role: "group", "aria-label": `${word}s that are shown` }, element("span", {}, `${word}s`), from, "–", to, reset), show };
}

/**
 * The toolbar of models (trajectory_model.js and its like): {element, update(), remove()}. With `shared` it also keeps one
 * scale for the whole page in the store, so that results compare.
 */
export function createToolbar(models, store, hooks = {}, shared = false) {
  const group = `measure-${++toolbars}`, names = measuresOf(models);
  const radios = names.map((name) => element("input", { type: "radio", name: group, value: name, on: { change: () => choose(name) } }));
  const choices = element("fieldset", { class: "measures" }, element("legend", {}, "Colour by"),
    radios.map((radio, i) => element("label", {}, radio, element("span", {}, MEASURES[names[i]].name))));
  const legend = element("div", { class: "scale" });
  const search = tokenSearch(store, hooks.searchTokens ?? ((query) => matchingTokens(models.flatMap((model) => model.vocabularies), query)));
  const chips = element("ul", { class: "chips", "aria-label": "Tokens that are followed" });
  const layers = windowFields(store, "layerWindow", "layer", () => models.flatMap((model) => model.layers));
  const positions = windowFields(store, "positionWindow", "position", () => models.flatMap((model) => model.positions));
  const weak = models.some((model) => model.layers.some((_, l) => model.weak(l)));
  const doubted = models.some((model) => model.layers.some((_, l) => model.doubt(l) !== null));
  const depth = models.some((model) => model.positions.some((_, p) => model.depth(p) !== null));
  const key = element("ul", { class: "key" },
    depth && element("li", { title: "Prediction depth: from here on the top token is that of the last layer." }, element("span", { class: "sample line" }), "settled above"),
    element("li", {}, element("b", {}, "bold"), "target or next token"),
    weak && element("li", {}, element("i", { class: "sample-weak" }, "slanted"), "the lens knows little"),
    doubted && element("li", { title: "The report of the lens's fit says so: point at such a layer to read why." }, element("b", {}, "?"), element("span", { class: "sample doubted" }), "not to be trusted"));
  const node = element("div", { class: "toolbar" }, element("div", { class: "tools" }, choices, legend),
    element("div", { class: "tools" }, element("div", { class: "following" }, search.element, chips), layers.element, positions.element, key));

  function choose(measure) {
    store.set(shared ? { measure, scale: scaleInUse({ measure }, models) } : { measure });
  }
  function update() {
    const state = store.get(), scale = scaleInUse(state, models);
    for (const radio of radios) radio.checked = radio.value === scale.measure;
    legend.replaceChildren(...legendNodes(scale));
    chips.replaceChildren(...pinChips(store));
    search.setRoom(state.pins.length < MOST_PINS);
    layers.show();
    positions.show();
  }
  if (shared && names.length) choose(measureInUse(store.get(), models));
  update();
  const stop = store.subscribe((_, changed) => {
    if (changed.some((name) => name !== "cell")) update();
  });
  return { element: node, update, remove() { stop(); node.remove(); } };
}
