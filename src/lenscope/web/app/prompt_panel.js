// The panel where a person types a prompt, or the turns of a chat, and says how it is read. Knows: fields and keys.
// Does not know: how results look.

import { element } from "./text.js";
import { areaControl, button, choiceControl, fitHeight, labelled, numberControl, textControl } from "./controls.js";

const CHAT_ROLES = ["system", "user", "assistant"];

/** One text area for each turn, each with its role; Ctrl+Enter runs. */
function turnsEditor(inputs, run) {
  const list = element("ol", { class: "turns" });
  const change = (i, part) => inputs.set({ turns: inputs.get().turns.map((turn, j) => (i === j ? { ...turn, ...part } : turn)) });
  function drawTurn(turn, i) {
    const role = element("select", { "aria-label": `Role of turn ${i + 1}`, on: { change: (event) => change(i, { role: event.target.value }) } },
      CHAT_ROLES.map((name) => element("option", { value: name, selected: name === turn.role }, name)));
    const content = element("textarea", {
      rows: "1", spellcheck: "false", "aria-label": `Turn ${i + 1}, ${turn.role}`,
      on: {
        input: (event) => { change(i, { content: event.target.value }); fitHeight(content); },
        keydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); } },
      },
    });
    content.value = turn.content;
    const remove = button("Remove", () => {
      inputs.set({ turns: inputs.get().turns.filter((_, j) => j !== i) });
      list.querySelectorAll("textarea")[Math.max(0, i - 1)]?.focus();
    }, { "aria-label": `Remove turn ${i + 1}`, class: "quiet" });
    requestAnimationFrame(() => fitHeight(content));
    return element("li", {}, role, content, inputs.get().turns.length > 1 ? remove : null);
  }
  let drawn = "";  // typing must not build the field anew that is typed into
  function draw() {
    const { turns } = inputs.get(), shape = turns.map(({ role }) => role).join();
    const contents = [...list.querySelectorAll("textarea")].map((area) => area.value);
    if (shape === drawn && contents.join("\0") === turns.map(({ content }) => content).join("\0")) return;
    drawn = shape;
    list.replaceChildren(...turns.map(drawTurn));
  }
  const add = button("Add a turn", () => {
    const { turns } = inputs.get();
    inputs.set({ turns: [...turns, { role: turns.at(-1)?.role === "user" ? "assistant" : "user", content: "" }] });
    [...list.querySelectorAll("textarea")].at(-1)?.focus();
  }, { class: "quiet" });
  inputs.subscribe(draw);
  draw();
  return element("div", { class: "chat" }, list, add, element("small", { class: "hint" }, "Ctrl+Enter runs."));
}

function modeChoice(inputs, chat) {
  const choice = (mode, text, disabled) => element("label", {},
    element("input", { type: "radio", name: "mode", value: mode, disabled, on: { change: () => inputs.set({ mode }) } }), element("span", {}, text));
  const group = element("fieldset", { class: "modes" }, element("legend", { class: "spoken" }, "Prompt as"),
    choice("completion", "text", false), choice("chat", "chat", !chat),
    chat ? null : element("small", { class: "hint" }, "This model has no chat template."));
  const show = () => { for (const radio of group.querySelectorAll("input")) radio.checked = radio.value === inputs.get().mode; };
  inputs.subscribe(show);
  show();
  return group;
}

function lensChoices(info) {
  return info.lenses.map(({ name, held_out_kl: kl }) => [name, kl === null || kl === undefined ? name : `${name}`]);
}

/**
 * The panel. does = {run(), write(), runTask, writeTask, line}; gives {element, focus()}.
 */
export function promptPanel(inputs, info, does) {
  const onEnter = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    does.run();
  };
  const text = areaControl(inputs, "text", { placeholder: "The Eiffel Tower is in the city of", on: { keydown: onEnter } });
  const second = areaControl(inputs, "text2", { placeholder: "The Colosseum is in the city of", on: { keydown: onEnter } });
  const textField = labelled("Prompt", text), chatField = turnsEditor(inputs, does.run);
  const hint = element("small", { class: "spoken", id: "prompt-hint" }, "Enter runs, Shift+Enter begins a new line.");
  text.setAttribute("aria-describedby", hint.id);
  const secondField = labelled("Second prompt", second);
  const lens = labelled("Lens", choiceControl(inputs, "lens", lensChoices(info)));
  const compare = labelled("Compare with", choiceControl(inputs, "compare",
    [["none", "nothing"], ...(info.lenses.length > 1 ? [["lens", "another lens"]] : []), ["prompt", "another prompt"]]));
  const secondLens = labelled("Second lens", choiceControl(inputs, "lens2", lensChoices(info)));
  const answer = labelled("Answer to follow", textControl(inputs, "answer", { placeholder: "the next token", size: "12", on: { keydown: onEnter } }));
  const runButton = button("Run", does.run, { class: "primary" });
  const writeButton = button("Write", does.write);
  const sampling = element("div", { class: "controls", role: "group", "aria-label": "Writing options", hidden: "" },
    labelled("Temperature", numberControl(inputs, "temperature", 0, 10, 0.1)),
    labelled("Top p", numberControl(inputs, "topP", 0.01, 1, 0.01)),
    labelled("Seed", numberControl(inputs, "seed", 0, 2 ** 32 - 1)));
  const more = button("Writing options", () => openSampling(sampling.hidden), { class: "quiet" });
  function openSampling(open) {
    sampling.hidden = !open;
    more.setAttribute("aria-expanded", String(open));
  }
  const panel = element("section", { class: "panel prompt", "aria-label": "Prompt" },
    element("div", { class: "typed" }, modeChoice(inputs, info.model.chat), textField, chatField, secondField),
    element("div", { class: "asks" }, element("div", { class: "controls" }, lens, compare, secondLens, answer, runButton, does.runTask.stopButton),
      element("div", { class: "controls" },
        labelled("New tokens", numberControl(inputs, "newTokens", 1, info.limits.new_tokens)),
        writeButton, does.writeTask.stopButton, more), sampling, does.line.element), hint);
  function show() {
    const { mode, compare: against, temperature, topP, seed } = inputs.get();
    textField.hidden = mode !== "completion";
    chatField.hidden = mode !== "chat";
    secondField.hidden = against !== "prompt";
    secondLens.hidden = against !== "lens";
    answer.hidden = against !== "none";
    panel.classList.toggle("two", against === "prompt");
    if (temperature !== 0 || topP !== 1 || seed !== 0) openSampling(true);  // what is not as usual is seen
  }
  inputs.subscribe(show);
  openSampling(false);
  show();
  return { element: panel, focus: () => (inputs.get().mode === "chat" ? chatField.querySelector("textarea") : text).focus() };
}
