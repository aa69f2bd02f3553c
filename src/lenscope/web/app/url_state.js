// The whole state of the page as the fragment of its address. Knows: which values each field may have.
// Does not know: who shows them. An address that cannot be read does nothing worse than one line.

const VERSION = "1";
const LONGEST_FIELD = 200_000;

const textField = { read: (text) => text, write: (value) => value };
const numberField = (low, high) => ({
  read(text) {
    const value = Number(text);
    return text.trim() !== "" && value >= low && value <= high ? value : undefined;
  },
  write: String,
});
const choiceField = (...choices) => ({ read: (text) => (choices.includes(text) ? text : undefined), write: (value) => value });
const jsonField = (holds) => ({
  read(text) {
    const value = JSON.parse(text);
    return holds(value) ? value : undefined;
  },
  write: JSON.stringify,
});

const isWhole = (value) => Number.isInteger(value) && Math.abs(value) < 1e9;
const isText = (value) => typeof value === "string" && value.length <= LONGEST_FIELD;
const isTurn = (turn) => turn !== null && typeof turn === "object" && isText(turn.role) && isText(turn.content);
const isTurns = (turns) => Array.isArray(turns) && turns.length <= 200 && turns.every(isTurn);
const isPrompt = (prompt) => prompt !== null && typeof prompt === "object" && Object.keys(prompt).length === 1
  && (isText(prompt.text) || isTurns(prompt.turns) || (Array.isArray(prompt.ids) && prompt.ids.every(isWhole)));
const isPlace = (place) => place === null
  || (typeof place === "object" && isPrompt(place.prompt) && isWhole(place.layer) && isWhole(place.position) && isText(place.token ?? ""));
const isPair = (pair) => pair === null || (Array.isArray(pair) && pair.length === 2 && pair.every(isWhole));
const isCell = (cell) => cell === null || (Array.isArray(cell) && (cell.length === 2 || cell.length === 3) && cell.every(isWhole));
const isPins = (pins) => Array.isArray(pins) && pins.length <= 5 && pins.every((pin) => pin !== null && isWhole(pin.id) && isText(pin.text));

/** Every field of the state: its value on an empty page, and how it stands in the address. */
const FIELDS = {
  mode: ["completion", choiceField("completion", "chat")],
  text: ["", textField],
  turns: [[{ role: "user", content: "" }], jsonField(isTurns)],
  lens: ["", textField],
  compare: ["none", choiceField("none", "lens", "prompt")],
  lens2: ["", textField],
  text2: ["", textField],
  answer: ["", textField],
  ran: ["", choiceField("", "trajectory", "comparison", "generation")],
  newTokens: [20, numberField(1, 100_000)],
  temperature: [0, numberField(0, 100)],
  topP: [1, numberField(0, 1)],
  seed: [0, numberField(0, 2 ** 53)],
  measure: ["", textField],
  pins: [[], jsonField(isPins)],
  cell: [null, jsonField(isCell)],
  layerWindow: [null, jsonField(isPair)],
  positionWindow: [null, jsonField(isPair)],
  tab: ["meaning", choiceField("meaning", "grid", "move", "steer")],
  asked: ["", choiceField("", "meaning", "grid", "move", "steer")],
  goal: ["", textField],
  goalText: ["", textField],
  goalAt: ["", textField],
  operation: ["replace", textField],
  mapping: ["", textField],
  explainer: ["", textField],
  targetLayers: ["", textField],
  answerTokens: [20, numberField(1, 100_000)],
  contrast: [0, numberField(0, 1000)],
  reference: ["", textField],
  gridKind: ["predict", choiceField("predict", "generate")],
  gridSources: ["", textField],
  taken: [null, jsonField(isPlace)],
  minus: [null, jsonField(isPlace)],
  intoText: ["", textField],
  placed: [null, jsonField(isPair)],
  moveOperation: ["replace", textField],
  strength: [1, numberField(-1e6, 1e6)],
  steerPositions: ["all", textField],
  steerTokens: [20, numberField(1, 100_000)],
};

/** The state of an empty page. */
export function emptyState() {
  return Object.fromEntries(Object.entries(FIELDS).map(([name, [value]]) => [name, structuredClone(value)]));
}

/** The fragment that says `state`; what is as on an empty page (`usual`) is left out. */
export function writeState(state, usual = emptyState()) {
  const fragment = new URLSearchParams([["v", VERSION]]);
  for (const [name, [, field]] of Object.entries(FIELDS)) {
    if (JSON.stringify(state[name]) !== JSON.stringify(usual[name])) fragment.set(name, field.write(state[name]));
  }
  return `#${fragment}`;
}

/** What a fragment says: {state, complaint}. `state` is whole; `complaint` is one line, or "" where all was read. */
export function readState(hash) {
  const state = emptyState(), bad = [];
  const fragment = new URLSearchParams(hash.replace(/^#/, ""));
  const version = fragment.get("v");
  fragment.delete("v");
  if (version === null && ![...fragment].length) return { state, complaint: "" };
  if (version !== VERSION) return { state, complaint: "This link was made by another version of lenscope, or is damaged: the page starts empty." };
  for (const [name, text] of fragment) {
    const value = Object.hasOwn(FIELDS, name) && text.length <= LONGEST_FIELD ? fieldValue(name, text) : undefined;
    if (value === undefined) bad.push(name.slice(0, 40));
    else state[name] = value;
  }
  const complaint = bad.length ? `The link says something that cannot be read (${bad.slice(0, 5).join(", ")}): the rest is shown.` : "";
  return { state, complaint };
}

function fieldValue(name, text) {
  try {
    return FIELDS[name][1].read(text);
  } catch {
    return undefined;  // no JSON
  }
}
