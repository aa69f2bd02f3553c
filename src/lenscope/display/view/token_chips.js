// Pinned tokens: up to five ids, each with a number and a colour, and the field that looks for more.

import { element, tokenElement, visibleToken } from "./text.js";

/** Token ids that can be pinned at once. */
export const MOST_PINS = 5;

/** The pins with an id put in or, where it is one of them, taken out; unchanged where there is no room. */
export function togglePin(pins, id, text) {
  if (pins.some((pin) => pin.id === id)) return pins.filter((pin) => pin.id !== id);
  return pins.length < MOST_PINS ? [...pins, { id, text }] : pins;
}

/** The class of the n-th pin's colour. */
export const pinClass = (n) => `pin-${n + 1}`;

/** Chips of pinned tokens, each with a button that lets go: nodes. */
export function pinChips(store) {
  return store.get().pins.map((pin, n) => element("li", { class: `chip ${pinClass(n)}` },
    element("b", { "aria-hidden": "true" }, n + 1), tokenElement(pin.text),
    element("button", { type: "button", "aria-label": `Stop following ${visibleToken(pin.text)}`, title: `Stop following (id ${pin.id})`,
      on: { click: () => store.set({ pins: togglePin(store.get().pins, pin.id) }) } }, "×")));
}

/** Tokens of vocabularies that match what was typed, best first: the same, then beginning with it, then holding it. */
export function matchingTokens(vocabularies, query, limit = 20) {
  const wanted = query.trim().toLowerCase(), matches = new Map();
  for (const vocabulary of vocabularies) {
    for (const [id, text] of vocabulary) {
      if (matches.has(id)) continue;
      const plain = text.trim().toLowerCase(), at = plain.indexOf(wanted);
      if (wanted && at >= 0) matches.set(id, { id, text, order: plain === wanted ? 0 : at === 0 ? 1 : 2, length: plain.length });
      else if (wanted === String(id)) matches.set(id, { id, text, order: 3, length: 0 });
    }
  }
  return [...matches.values()].sort((a, b) => a.order - b.order || a.length - b.length || a.id - b.id).slice(0, limit)
    .map(({ id, text }) => ({ id, text }));
}

let searchFields = 0;

/** A field that finds tokens and pins the chosen one; search(query) gives [{id, text}], or a promise of it. */
export function tokenSearch(store, search) {
  const listId = `tokens-${++searchFields}`;
  let options = [], chosen = -1, asked = 0;
  const list = element("ul", { id: listId, role: "listbox", "aria-label": "Matching tokens", class: "options", hidden: true });
  const input = element("input", { type: "text", role: "combobox", "aria-label": "Follow a token", placeholder: "Follow a token …", autocomplete: "off",
    spellcheck: "false", "aria-expanded": "false", "aria-controls": listId, "aria-autocomplete": "list", maxlength: "80" });

  function show() {
    list.replaceChildren(...options.map((option, i) => element("li", { role: "option", id: `${listId}-${i}`, "aria-selected": String(i === chosen),
      on: { pointerdown: (event) => { event.preventDefault(); take(i); } } }, tokenElement(option.text), element("small", {}, option.id))));
    if (!options.length && input.value.trim()) list.append(element("li", { class: "nothing", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "No such token here."));
    list.hidden = !input.value.trim();
    input.setAttribute("aria-expanded", String(!list.hidden));
    if (chosen >= 0) input.setAttribute("aria-activedescendant", `${listId}-${chosen}`);
    else input.removeAttribute("aria-activedescendant");
    list.children[chosen]?.scrollIntoView({ block: "nearest" });
  }
  function take(i) {
    const option = options[i];
    if (!option) return;
    const { pins } = store.get();
    if (!pins.some((pin) => pin.id === option.id)) store.set({ pins: togglePin(pins, option.id, option.text) });
    close();
  }
  function close() {
    input.value = "";
    options = [];
    chosen = -1;
    show();
  }
  input.addEventListener("input", async () => {
    const turn = ++asked, query = input.value;
    const answer = query.trim() ? await Promise.resolve(search(query)).catch(() => []) : [];
    if (turn !== asked) return;
    options = answer.slice(0, 20);
    chosen = options.length ? 0 : -1;
    show();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      chosen = options.length ? (chosen + (event.key === "ArrowDown" ? 1 : -1) + options.length) % options.length : -1;
      show();
    } else if (event.key === "Enter") take(chosen);
    else if (event.key === "Escape" && input.value) close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  input.addEventListener("blur", close);
  return { element: element("div", { class: "token-search" }, input, list), setRoom(room) {
    input.disabled = !room;
    input.placeholder = room ? "Follow a token …" : "Five are followed";
  } };
}
