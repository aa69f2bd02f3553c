// Small controls that every panel is made of. Knows: how a control shows one field of the inputs, how a line says what
// goes on, how one thing runs at a time. Does not know: what is asked of the server.

import { element } from "./text.js";
import { ServerError } from "./api.js";

let controlCount = 0;

/** A control under its label. `hint` is read out with it. */
export function labelled(label, control, hint = "") {
  control.id ||= `control-${++controlCount}`;
  const note = hint && element("small", { id: `${control.id}-hint`, class: "hint" }, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return element("div", { class: "field" }, element("label", { for: control.id }, label), control, note || null);
}

/** Keeps `control` and the field `key` of the store alike; `read` gives the value, undefined while it is no value. */
function bound(inputs, key, control, event, read = (node) => node.value) {
  const show = () => {
    const value = String(inputs.get()[key] ?? "");
    if (control.value !== value && read(control) !== inputs.get()[key]) control.value = value;
  };
  control.addEventListener(event, () => {
    const value = read(control);
    control.toggleAttribute("aria-invalid", value === undefined);
    if (value !== undefined) inputs.set({ [key]: value });
  });
  control.value = String(inputs.get()[key] ?? "");
  inputs.subscribe(show);
  return control;
}

/** A field of one line. */
export function textControl(inputs, key, attributes = {}) {
  return bound(inputs, key, element("input", { type: "text", autocomplete: "off", spellcheck: "false", ...attributes }), "input");
}

/** A field of several lines, as high as what is in it. */
export function areaControl(inputs, key, attributes = {}) {
  const area = element("textarea", { rows: "1", spellcheck: "false", ...attributes });
  const fit = () => fitHeight(area);
  bound(inputs, key, area, "input");
  area.addEventListener("input", fit);
  inputs.subscribe(fit);
  requestAnimationFrame(fit);
  return area;
}

/** Makes a text area as high as its text. */
export function fitHeight(area) {
  area.style.setProperty("height", "auto");
  if (area.scrollHeight) area.style.setProperty("height", `${area.scrollHeight + 2}px`);
}

/** A number within a range. */
export function numberControl(inputs, key, low, high, step = 1) {
  const control = element("input", { type: "number", min: String(low), max: String(high), step: String(step), inputmode: "decimal" });
  const read = (node) => (node.value !== "" && node.valueAsNumber >= low && node.valueAsNumber <= high ? node.valueAsNumber : undefined);
  return bound(inputs, key, control, "input", read);
}

/** A choice among [value, text] pairs. */
export function choiceControl(inputs, key, choices) {
  const options = choices.map(([value, text]) => element("option", { value }, text));
  const control = bound(inputs, key, element("select", {}, options), "change");
  if (control.selectedIndex < 0) control.selectedIndex = 0;
  return control;
}

/** A button. */
export function button(text, click, attributes = {}) {
  return element("button", { type: "button", on: { click }, ...attributes, class: `btn ${attributes.class ?? ""}` }, text);
}

/** A line that says what goes on or went wrong, aloud as well: {element, say(text), fail(error), refuse(text), clear()}. */
export function statusLine() {
  const line = element("p", { class: "status", role: "status", hidden: "" });
  const show = (text, failed) => {
    line.textContent = text;
    line.hidden = !text;
    line.classList.toggle("failed", failed);
  };
  return {
    element: line,
    say: (text) => show(text, false),
    fail: (error) => show(error instanceof ServerError ? error.message : `The page failed: ${error.message}`, true),
    refuse: (text) => show(text, true),
    clear: () => show("", false),
  };
}

/**
 * One thing that runs at a time, with its line and its stop button: {run(work), stop(), stopButton, busy()}.
 * `work(signal)` is left when another run begins or someone stops it; its errors stand in the line.
 */
export function oneAtATime(line, waiting = "Waiting for the model …") {
  let current = null;
  const stopButton = button("Stop", () => task.stop(), { class: "halt", hidden: "" });
  const task = {
    stopButton,
    busy: () => current !== null,
    stop() {
      if (current === null) return;
      current.abort();
      current = null;
      stopButton.hidden = true;
      line.say("Stopped.");
    },
    async run(work) {
      current?.abort();
      const mine = current = new AbortController();
      line.clear();
      stopButton.hidden = false;
      const slow = setTimeout(() => { if (current === mine && line.element.hidden) line.say(waiting); }, 400);
      try {
        await work(mine.signal);
        if (current === mine && line.element.textContent === waiting) line.clear();
      } catch (error) {
        if (error.name !== "AbortError" && current === mine) {
          line.fail(error);
          if (!(error instanceof ServerError)) console.error(error);
        }
      } finally {
        clearTimeout(slow);
        if (current === mine) {
          current = null;
          stopButton.hidden = true;
        }
      }
    },
  };
  return task;
}

/** A note beside an answer whose question is no longer what the inputs say: {element, answers(asked)}; `now()` gives what they ask. */
export function staleNote(inputs, now) {
  const note = element("p", { class: "stale", role: "status", hidden: "" }, "These are answers to what was asked before: what is asked now differs.");
  let asked = null;
  const show = () => { note.hidden = asked === null || JSON.stringify(now()) === asked; };
  inputs.subscribe(show);
  return { element: note, show, answers(request) { asked = request && JSON.stringify(request); show(); } };
}

/** What `queue` events say, in words. */
export function placeInQueue({ position }) {
  return position > 0 ? `Waiting: ${position} before this in the queue.` : "Waiting for the model …";
}
