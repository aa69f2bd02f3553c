// The panel about one state: what it means, the whole grid, moving it, steering with it. Knows: which of them is open.
// Does not know: what each of them does.

import { element } from "./text.js";
import { button } from "./controls.js";
import { carryCell } from "./table_gestures.js";
import { explanationPanel } from "./explanation_panel.js";
import { gridPanel } from "./grid_panel.js";
import { patchPanel } from "./patch_panel.js";
import { placeInWords } from "./result_panel.js";
import { steeringPanel } from "./steering_panel.js";

const TABS = [["meaning", "Meaning"], ["grid", "Every layer"], ["move", "Move it"], ["steer", "Steer"]];

/** The panel: {element, aim(place), open(tab), ask(place), again(), take(place), close(), forget(), asked()}. */
export function statePanel(inputs, info, view) {
  const parts = { meaning: explanationPanel(inputs, info), grid: gridPanel(inputs, info), move: patchPanel(inputs, info, view), steer: steeringPanel(inputs, info) };
  const heading = element("h2", { tabindex: "-1" }, "No state is chosen");
  const takenLine = element("p", { class: "status", role: "status", hidden: "" });
  const tabs = TABS.map(([name, text]) => element("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `part-${name}`, on: { click: () => open(name), keydown: (event) => walk(event, name) } }, text));
  const bodies = TABS.map(([name]) => element("div", { role: "tabpanel", id: `part-${name}`, "aria-labelledby": `tab-${name}` }, parts[name].element));
  const take = button("Take this state", () => takeState(place), { disabled: "" });
  const subtract = button("Subtract this state", () => {
    inputs.set({ minus: place });
    sayTaken(`The state at ${placeInWords(place)} will be subtracted when you steer.`);
  }, { disabled: "" });
  const panel = element("section", { class: "panel state", "aria-label": "One state", hidden: "" },
    element("div", { class: "controls head" }, heading, take, subtract), takenLine,
    element("div", { role: "tablist", "aria-label": "What to do with the state", class: "tabs" }, tabs), bodies);
  let place = null;

  function sayTaken(text) {
    takenLine.textContent = text;
    takenLine.hidden = false;
  }
  function takeState(about) {
    inputs.set({ taken: about });
    carryCell(JSON.stringify(about));  // for the key that drops
    sayTaken(`Taken: the state at ${placeInWords(about)}. “Move it” writes it into the run of another prompt, “Steer” adds it to the states of the typed one.`);
  }
  function open(name) {
    inputs.set({ tab: name });
    if (name === "move") parts.move.show();
  }
  function show() {
    const { tab } = inputs.get();
    panel.parentElement?.classList.toggle("open", !panel.hidden);
    TABS.forEach(([name], i) => {
      tabs[i].setAttribute("aria-selected", String(name === tab));
      tabs[i].tabIndex = name === tab ? 0 : -1;
      bodies[i].hidden = name !== tab;
    });
  }
  function walk(event, name) {
    const at = TABS.findIndex(([other]) => other === name), last = TABS.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(TABS[to][0]);
    tabs[to].focus();
  }
  inputs.subscribe((_, names) => { if (names.includes("tab")) show(); });
  show();

  function aim(about) {
    place = about;
    panel.hidden = false;
    show();
    heading.textContent = `State at ${placeInWords(about)}`;
    take.disabled = subtract.disabled = false;
    parts.meaning.aim(about);
    parts.grid.aim(about);
    parts.steer.aim(about);
  }
  return {
    element: panel,
    aim,
    open,
    take(about) { aim(about); takeState(about); },
    /** Asks what a state means. */
    ask(about) {
      aim(about);
      open("meaning");
      return parts.meaning.ask(about);
    },
    /** Runs again what the address says was asked. */
    async again() {
      const { asked } = inputs.get();
      if ((asked === "meaning" || asked === "grid") && place) await parts[asked].ask(place);
      else if (asked === "move" || asked === "steer") {
        panel.hidden = false;
        show();
        await parts[asked].show(true);
      }
    },
    close() { panel.hidden = true; show(); },
    /** A new main result: what was chosen in the old one is gone. */
    forget() {
      for (const part of Object.values(parts)) part.leave();
      takenLine.hidden = true;
    },
    /** What can be exported of the open tab: {endpoint, request} or null. */
    asked: () => (panel.hidden ? null : parts[inputs.get().tab].asked()),
  };
}
