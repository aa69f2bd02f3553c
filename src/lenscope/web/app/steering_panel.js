// A prompt written on plainly and steered, side by side. Knows: which states make the vector, when a strength is too large
// to mean anything. Does not know: how the model is steered.

import { element, formatNumber, visibleProse } from "./text.js";
import { streamFromServer } from "./api.js";
import { button, choiceControl, labelled, numberControl, oneAtATime, placeInQueue, staleNote, statusLine } from "./controls.js";
import { promptInWords, steeringRequest, typedPrompt } from "./requests.js";
import { placeInWords } from "./result_panel.js";

const STRONG = 2;  // times the norm of the states that are steered
const FARTHEST = 20;

/** The panel: {element, aim(place), show(again), leave(), asked()}. */
export function steeringPanel(inputs, info) {
  const line = statusLine(), task = oneAtATime(line);
  const vector = element("p", { class: "taken", role: "status" });
  const warning = element("p", { class: "too-strong", role: "status", hidden: "" });
  const slider = element("input", { type: "range", min: String(-FARTHEST), max: String(FARTHEST), step: "0.5", "aria-label": "Strength, as a slider",
    on: { input: () => inputs.set({ strength: slider.valueAsNumber }) } });
  const texts = [0, 1].map(() => element("p", { class: "answer", dir: "auto" }));
  const prompts = [0, 1].map(() => element("span", { class: "given", dir: "auto" }));
  const sides = element("div", { class: "sides", hidden: "" }, ["Plain", "Steered"].map((name, row) =>
    element("section", { "aria-label": name }, element("h3", {}, name), prompts[row], texts[row])));
  let place = null, last = null;
  const stale = staleNote(inputs, asking);
  const swap = button("Forget what is subtracted", () => inputs.set({ minus: null }), { class: "quiet" });
  const panel = element("div", { class: "question" }, vector,
    element("div", { class: "controls" },
      labelled("Strength", numberControl(inputs, "strength", -1e6, 1e6, 0.5)), slider,
      labelled("Positions", choiceControl(inputs, "steerPositions", [["all", "every one"], ["last", "the last one"]])),
      labelled("New tokens", numberControl(inputs, "steerTokens", 1, info.limits.new_tokens)),
      labelled("Temperature", numberControl(inputs, "temperature", 0, 10, 0.1)),
      labelled("Seed", numberControl(inputs, "seed", 0, 2 ** 32 - 1)),
      button("Steer", () => ask(), { class: "primary" }), task.stopButton, swap),
    line.element, stale.element, warning, sides);

  function plus() {
    return inputs.get().taken ?? place;
  }
  /** What is asked as the inputs stand; null where something is missing. */
  function asking() {
    const added = plus(), prompt = typedPrompt(inputs.get());
    return added && prompt && steeringRequest(inputs.get(), prompt, added, added.layer);
  }
  function show() {
    const { minus, strength } = inputs.get(), added = plus();
    slider.value = String(Math.max(-FARTHEST, Math.min(FARTHEST, strength)));
    swap.hidden = !minus;
    vector.textContent = !added ? "Choose a cell first: its state is the vector."
      : `The vector is the state at ${placeInWords(added)}${minus ? `, minus the state at ${placeInWords(minus)}` : ""}. It is added at layer ${added.layer} of the typed prompt, times the strength.`;
  }
  inputs.subscribe(show);
  show();

  function warn(strength, { vector_norm: vectorNorm, state_norm: stateNorm }) {
    const times = Math.abs(strength) * vectorNorm / stateNorm;
    warning.hidden = !(times > STRONG);
    warning.textContent = warning.hidden ? ""
      : `What is added is ${formatNumber(times)} times as long as the states at this layer: a text that falls apart says nothing of the vector. Try a strength below ${formatNumber(STRONG * stateNorm / vectorNorm)}.`;
  }
  function ask() {
    const added = plus(), prompt = typedPrompt(inputs.get());
    if (!added) return line.refuse("Choose a cell first: its state is the vector.");
    if (!prompt) return line.refuse("Type a prompt first: it is what is written on.");
    inputs.set({ asked: "steer" });
    return task.run(async (signal) => {
      const request = asking(), written = ["", ""];
      const paint = () => texts.forEach((node, row) => { node.textContent = visibleProse(written[row]); });
      last = null;  // what is shown from here on is not what was asked before
      stale.answers(request);
      paint();
      prompts.forEach((node) => { node.textContent = visibleProse(promptInWords(prompt, 200)); });
      sides.hidden = false;
      warning.hidden = true;
      await streamFromServer("/api/steering", request, (name, data) => {
        if (name === "queue") line.say(placeInQueue(data));
        else if (name === "start") { warn(request.strength, data); line.say("The model writes …"); }
        else if (name === "tokens") { for (const { row, text } of data.tokens) written[row] += text; paint(); }
        else if (name === "end" && typeof data.text === "string") { written[data.row] = data.text; paint(); }
      }, signal);
      last = { endpoint: "steering", request };
      line.say(written[0] === written[1] ? "Both texts are the same: the strength is too small to change a word." : "Both texts are written.");
    });
  }
  return {
    element: panel,
    ask,
    aim(about) { place = about; show(); stale.show(); },
    async show(again = false) { if (again) await ask(); },
    leave: () => task.stop(),
    asked: () => last,
  };
}
