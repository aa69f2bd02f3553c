// What leaves the page: a link, files, a picture, the Python that gives the same. Knows: how each is handed to the person.
// Does not know: how files are made.

import { element } from "./text.js";
import { fileFromServer } from "./api.js";
import { button } from "./controls.js";
import { pictureOf } from "./picture.js";

const FILE_FORMATS = [["html", "HTML page"], ["json", "JSON"], ["parquet", "Parquet"]];
const ASKED_WORDS = { explanation: "What the state means", grid: "The grid of every layer", patched_trajectory: "The run with the state in it", steering: "The two texts" };

function handOver(blob, name) {
  const url = URL.createObjectURL(blob), link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * The menu: {element}. does = {asked() → what can be exported, as {endpoint, request}, the main result first; shown() → the
 * element to picture; line; shared()}.
 */
export function exportMenu(does) {
  const { line } = does;
  const field = element("textarea", { readonly: "", rows: "3", "aria-label": "Text to copy" });
  const window = element("dialog", { "aria-label": "Copy this text" },
    element("p", {}, "This browser does not let the page copy. The text is chosen: press Ctrl+C."), field, button("Close", () => window.close()));
  async function copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      line.say(done);
    } catch {
      field.value = text;
      window.showModal();
      field.select();
    }
  }
  async function guarded(work) {
    menu.open = false;
    try { await work(); } catch (error) { line.fail(error); }
  }
  async function fromServer(asked, format) {
    const { blob, name } = await fileFromServer("/api/export", { ...asked, format });
    if (format === "python") return copy(await blob.text(), "The Python that gives this result is copied.");
    handOver(blob, name);
    return line.say(`${name} is saved.`);
  }
  const save = async () => {
    handOver(await pictureOf(does.shown()), "lenscope.png");
    line.say("lenscope.png is saved: the view as it stands on the screen.");
  };
  const items = element("div", { class: "items" });
  const menu = element("details", { class: "menu", on: { toggle: () => menu.open && draw() } }, element("summary", {}, "Export"), items);
  const item = (text, work) => element("li", {}, button(text, () => guarded(work)));
  const formats = (asked) => [...FILE_FORMATS.map(([format, text]) => item(text, () => fromServer(asked, format))), item("Copy as Python", () => fromServer(asked, "python"))];
  function draw() {
    const all = does.asked();
    if (!all.length) return items.replaceChildren(element("p", {}, "There is nothing to export yet. Run a prompt first."));
    return items.replaceChildren(...all.map((asked, i) => {
      const words = i ? ASKED_WORDS[asked.endpoint] : "The result";
      return element("ul", { "aria-label": words }, element("li", { class: "group" }, words), formats(asked), i ? null : item("PNG of the view", save));
    }));
  }
  const share = button("Copy link", () => { does.shared(); return copy(location.href, "The link to this view is copied."); });
  return { element: element("div", { class: "controls" }, share, menu, window) };
}
