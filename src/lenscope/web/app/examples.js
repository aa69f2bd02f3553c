// The worked examples on an empty page. Knows: how one is opened. Does not know: which there are.

import { element, visibleProse } from "./text.js";
import { askServer } from "./api.js";
import { emptyState } from "./url_state.js";

/** Pins that are named by their text, as ids: the token whose text is exactly that. */
async function pinsByText(texts) {
  const found = await Promise.all(texts.map((text) => askServer(`/api/tokens?query=${encodeURIComponent(text)}`)));
  return texts.flatMap((text, i) => found[i].filter((hit) => hit.text === text).slice(0, 1));
}

/** The state that an example opens, over the state of an empty page. */
export async function stateOfExample(example, lens) {
  const { pins = [], ...rest } = example.state;
  return { ...emptyState(), lens, ...rest, pins: await pinsByText(pins) };
}

/** The list of examples; `open(example)` is called with the one that is chosen. */
export function examplesList(examples, open) {
  return element("section", { class: "examples", "aria-label": "Worked examples" },
    element("h2", {}, "Type a prompt above and press Enter, or open a worked example"),
    element("ul", {}, examples.map((example) => element("li", {},
      element("button", { type: "button", on: { click: () => open(example) } },
        element("strong", {}, visibleProse(example.title)), element("span", {}, visibleProse(example.why)))))));
}
