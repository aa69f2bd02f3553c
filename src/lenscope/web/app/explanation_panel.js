// "What does this state mean?": a model's words about one state, patched into each of some layers of a target prompt, beside
// the answer without any state and with a random vector. Knows: how answers stream into a table. Does not know: models.

import { element, formatNumber, visibleProse } from "./text.js";
import { streamFromServer } from "./api.js";
import { areaControl, button, choiceControl, labelled, numberControl, oneAtATime, placeInQueue, staleNote, statusLine, textControl } from "./controls.js";
import { explanationRequest, typedLayers } from "./requests.js";

const SPREAD_LAYERS = [0, 0.07, 0.14, 0.25, 0.35, 0.45, 0.6, 0.8];  // of a model; states are read in its lower half, seldom above
/** What is said where layers are typed that are none. */
export const LAYERS_WANTED = "Type layers as numbers and ranges, such as 0, 4-8, 20-30/2; the last one is the model's number of layers.";
const LATE = 0.75;  // of the layers: from there on a state holds the next token rather than what it is about
const OWN_TARGET_HINT = "The placeholder is where the state is put: a position (−1 is the last token) or a piece of the text.";

/** Words with every place where `reference` stands marked. */
export function markedProse(text, reference) {
  const shown = visibleProse(text).replace(/\s*\n+\s*/g, " ↵ "), wanted = reference.trim();
  if (!wanted) return [shown];
  const parts = [], low = shown.toLowerCase(), key = wanted.toLowerCase();
  if (low.length !== shown.length) return [shown];  // a letter that changes its length in small letters: no places can be told
  let end = 0;
  for (let at = low.indexOf(key); at >= 0; at = low.indexOf(key, end)) {
    parts.push(shown.slice(end, at), element("mark", {}, shown.slice(at, at + key.length)));
    end = at + key.length;
  }
  return [...parts, shown.slice(end)];
}

/** Layers spread over a model, the source's own among them. */
export function spreadLayers(last, own) {
  const layers = new Set([Math.min(own, last)]);
  for (const share of SPREAD_LAYERS) layers.add(Math.round(share * last));
  return [...layers].sort((a, b) => a - b);
}

/** The controls that all questions about a state share: target prompt, operation, mapping, explaining model. */
export function questionControls(inputs, info) {
  const targets = info.targets.map(({ name }) => [name, name.replaceAll("_", " ")]);
  const target = labelled("Target prompt", choiceControl(inputs, "goal", [...targets, ["own", "own text …"]]));
  const own = labelled("Own target prompt", areaControl(inputs, "goalText", { placeholder: "Alice Walker: writer, Paris: city, x" }));
  const at = labelled("Placeholder", textControl(inputs, "goalAt", { placeholder: "−1", size: "8" }), OWN_TARGET_HINT);
  const words = element("p", { class: "target-text", dir: "auto" });
  const models = info.explaining_models.map(({ name }, i) => [i === 0 ? "" : String(i), name]);
  const explainer = labelled("Explaining model", choiceControl(inputs, "explainer", models.length ? models : [["", info.model.name]]));
  const mapping = labelled("Mapping", choiceControl(inputs, "mapping", [["", "the model's own"], ...info.mappings.map((name) => [name, name])]));
  explainer.hidden = models.length < 2;
  mapping.hidden = info.mappings.length < 2;  // the identity alone is no choice
  function show() {
    const { goal } = inputs.get(), given = info.targets.find(({ name }) => name === goal) ?? info.targets[0];
    own.hidden = at.hidden = goal !== "own";
    words.hidden = goal === "own" || !given;
    words.textContent = given ? visibleProse(given.text).replaceAll("\n", " ↵ ") : "";
  }
  inputs.subscribe(show);
  show();
  return [target, labelled("Operation", choiceControl(inputs, "operation", info.operations.map((name) => [name, name.replaceAll("_", " ")]))),
    mapping, explainer, element("div", { class: "wide" }, words, own, at)];
}

/** How much what the target prompt says without any state is held against the answers, for all questions about a state. */
export function contrastControl(inputs) {
  return labelled("Contrast with the prompt alone", numberControl(inputs, "contrast", 0, 1000, 0.1), "0 is none; 0.5 favours words that the state adds");
}

/** The table of answers: {element, start(rows, contrast), add(tokens), end(row, text), mark()}. */
function answersTable(inputs) {
  const body = element("tbody", {}), caption = element("caption", {}), unpatched = element("td", { colspan: "2", class: "answer", dir: "auto" });
  const table = element("table", { class: "answers" },
    caption,
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "layer"), element("th", { scope: "col" }, "this state"),
      element("th", { scope: "col" }, "a random vector of its norm"))), body);
  let rows = [];
  function paint(entry) {
    entry.cell.replaceChildren(...markedProse(entry.text, inputs.get().reference));
    entry.cell.classList.toggle("open", !entry.over);
  }
  const same = () => {
    const plain = rows.find(({ kind }) => kind === "unpatched");
    for (const entry of rows) {
      const alike = entry !== plain && entry.over && plain?.over && entry.text === plain.text;
      entry.cell.classList.toggle("same", Boolean(alike));
      entry.cell.title = alike ? "The same as without any state." : "";
    }
  };
  return {
    element: table,
    start(given, contrast = 0) {
      caption.textContent = `What the model says, target layer by target layer${contrast ? `, with contrast ${formatNumber(contrast)}` : ""}`;
      const layers = [...new Set(given.map(({ layer }) => layer).filter((layer) => layer !== null && layer !== undefined))].sort((a, b) => a - b);
      const cells = new Map(layers.map((layer) => [layer, { state: element("td", { class: "answer", dir: "auto" }), random: element("td", { class: "answer", dir: "auto" }) }]));
      const random = given.some(({ kind, layer }) => kind === "random" && cells.has(layer));
      body.replaceChildren(
        element("tr", { class: "control" }, element("th", { scope: "row" }, "without the state"), unpatched),
        ...[...cells].map(([layer, { state, random: control }]) => element("tr", {}, element("th", { scope: "row" }, layer), state, random ? control : null)));
      rows = given.map(({ row, kind, layer }) => ({
        row, kind, text: "", over: false, cell: kind === "unpatched" ? unpatched : cells.get(layer)?.[kind] ?? element("td") }));
      rows.forEach(paint);
      table.hidden = false;
    },
    add(tokens) {
      for (const { row, text } of tokens) {
        const entry = rows.find((other) => other.row === row);
        if (!entry) continue;
        entry.text += text;
        paint(entry);
      }
    },
    end(row, text) {
      const entry = rows.find((other) => other.row === row);
      if (!entry) return;
      Object.assign(entry, { text: text ?? entry.text, over: true });
      paint(entry);
      same();
    },
    mark: () => rows.forEach(paint),
    counts: () => [rows.filter(({ over }) => over).length, rows.length],
    hits: (reference) => rows.filter(({ kind, text }) => kind === "state" && text.toLowerCase().includes(reference.trim().toLowerCase())).length,
  };
}

/** The panel: {element, ask(place), forget()}. */
export function explanationPanel(inputs, info) {
  const line = statusLine(), task = oneAtATime(line), table = answersTable(inputs);
  const askButton = button("Ask", () => ask(place), { class: "primary" });
  const layers = labelled("Target layers", textControl(inputs, "targetLayers", { placeholder: "eight, spread", size: "12" }),
    "same, all, or 0, 4-8, 20-30/2");
  let place = null, last = null;
  const stale = staleNote(inputs, asking);
  const panel = element("div", { class: "question" },
    element("div", { class: "controls" }, ...questionControls(inputs, info), layers,
      labelled("New tokens", numberControl(inputs, "answerTokens", 1, info.limits.new_tokens)), contrastControl(inputs),
      labelled("Mark answers with", textControl(inputs, "reference", { placeholder: "Paris", size: "10" })),
      askButton, task.stopButton),
    line.element, stale.element, table.element);
  table.element.hidden = true;
  inputs.subscribe((_, names) => { if (names.includes("reference")) table.mark(); });

  function targetLayers(own) {
    const { targetLayers: typed, explainer } = inputs.get();
    const last = info.explaining_models[Number(explainer)]?.n_layers ?? info.model.n_layers, word = typed.trim();
    if (word === "") return spreadLayers(last, own);
    if (word === "same") return [Math.min(own, last)];
    return word === "all" ? [] : typedLayers(word, last);
  }
  /** What is asked as the inputs stand; null where the layers are none. */
  function asking() {
    const { token, ...address } = place, wanted = targetLayers(place.layer);
    return wanted && explanationRequest(inputs.get(), address, wanted, info.targets[0]?.name);
  }
  function ask(about) {
    place = about;
    if (!place) return undefined;
    if (targetLayers(place.layer) === null) return line.refuse(LAYERS_WANTED);
    inputs.set({ asked: "meaning" });
    return task.run(async (signal) => {
      const request = asking();
      last = null;  // what is shown from here on is not what was asked before
      await streamFromServer("/api/explanation", request, (name, data) => {
        if (name === "queue") line.say(placeInQueue(data));
        else if (name === "start") {
          table.start(data.rows, request.contrast);
          stale.answers(request);
          line.say("The model answers …");
          if (!matchMedia("(min-width: 1100px)").matches) table.element.scrollIntoView({ block: "start" });
        }
        else if (name === "tokens") table.add(data.tokens);
        else if (name === "end") table.end(data.row, data.text);
      }, signal);
      last = { endpoint: "explanation", request };
      const { reference } = inputs.get();
      line.say((reference.trim() ? `All answers are there; ${formatNumber(table.hits(reference))} about this state have “${reference.trim()}”.` : "All answers are there.")
        + (about.layer > LATE * info.model.n_layers ? " A state of a late layer often holds the next token rather than a meaning: try a lower layer." : ""));
    });
  }
  return {
    element: panel,
    ask,
    aim(about) { if (place && JSON.stringify(about) !== JSON.stringify(place)) { table.element.hidden = true; last = null; task.stop(); line.clear(); stale.answers(null); } place = about; },
    leave: () => task.stop(),
    asked: () => last,
  };
}
