// What the keys do. Knows: the list. Does not know: who listens.

import { element } from "./text.js";
import { button } from "./controls.js";

const KEYS = [
  ["Enter", "in a prompt: run it (in a chat: Ctrl+Enter)"],
  ["arrows", "in a grid: go from cell to cell; Home, End, Page Up and Page Down go further"],
  ["Enter", "on a cell: choose its state, as a click does; its details and what can be done with it are shown"],
  ["p", "on a cell: follow its top token and its rank through the layers"],
  ["Escape", "let go of a cell, or close what is open"],
  ["w", "ask what the chosen state means"],
  ["t", "take the state; d on a cell of another prompt puts it there, as “Put it here” and dragging do"],
  ["/", "go to the prompt"],
  ["g", "go to the grid"],
  ["?", "show this"],
];

/** The window with the keys: {element, open()}. */
export function keyHelp() {
  const window = element("dialog", { class: "help", "aria-label": "Keys" }, element("h2", {}, "Everything works by keyboard"),
    element("dl", {}, KEYS.map(([key, does]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, does)])),
    button("Close", () => window.close(), { class: "primary" }));
  return { element: window, open: () => window.showModal() };
}

/** Calls does[key]() for keys that are pressed outside fields. */
export function listenToKeys(does) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, dialog[open]")) return;
    if (!Object.hasOwn(does, event.key)) return;
    event.preventDefault();
    does[event.key]();
  });
}

/** Menus of the page (details.menu) close by Escape and by a click elsewhere. */
export function closeMenus() {
  const open = () => [...document.querySelectorAll("details.menu[open]")];
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of open()) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  document.addEventListener("pointerdown", (event) => {
    for (const menu of open()) if (!menu.contains(event.target)) menu.open = false;
  });
}
