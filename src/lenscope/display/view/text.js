// Text that cannot do harm: elements are built, never parsed; tokens show what is invisible; numbers have three digits.
// Tokens, prompts and names are untrusted: they reach the page as text nodes and attributes alone.

const BLANK_MARKS = { " ": "·", "\n": "↵", "\r": "␍", "\t": "⇥" };
const INVISIBLE_RUNS = /([ \n\r\t])\1*|[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Z}\u115f\u1160\u2800\u3164\uffa0]/gu;
const JOINERS = /[\u200c\u200d]/;  // kept inside a token (emoji, Persian, Devanagari), named when alone
const TOKEN_LIMIT = 200;  // characters of a token that the page shows at most
const SVG_NAMES = "http://www.w3.org/2000/svg";

/** Puts attributes on a node and children into it; `on`, `style` and `data` are objects, false and null are left out. */
export function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "style") for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    else if (name === "data") for (const [key, text] of Object.entries(value)) node.dataset[key] = text;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  addChildren(node, children);
  return node;
}

function addChildren(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) addChildren(node, child);
    else if (child !== null && child !== undefined && child !== false) {
      node.append(child instanceof Node ? child : String(child));
    }
  }
}

/** An HTML element: element("p", {class: "note", on: {click}}, "text", node, [more]). */
export function element(tag, attributes, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** An SVG element, as `element` makes HTML ones. */
export function svgElement(tag, attributes, ...children) {
  return furnish(document.createElementNS(SVG_NAMES, tag), attributes, children);
}

function codePointName(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A token as [text, isMark] parts in which nothing is invisible; long ones are cut to 200 characters. */
export function tokenParts(text) {
  if (text === "") return [["∅", true]];
  const token = text.length > TOKEN_LIMIT ? text.slice(0, TOKEN_LIMIT) : text;
  const parts = /^\p{M}/u.test(token) ? [["◌", true]] : [];
  const marks = /^ +$/.test(token) ? { " ": "␣" } : BLANK_MARKS;  // a blank alone is easier to see as a box
  let end = 0;
  for (const match of token.matchAll(INVISIBLE_RUNS)) {
    const [run, blank] = match;
    if (JOINERS.test(run) && token.length > 1) continue;
    if (match.index > end) parts.push([token.slice(end, match.index), false]);
    const mark = blank && (marks[blank] ?? BLANK_MARKS[blank]);
    parts.push([!blank ? codePointName(run) : run.length > 3 ? `${mark}×${run.length}` : mark.repeat(run.length), true]);
    end = match.index + run.length;
  }
  if (end < token.length) parts.push([token.slice(end), false]);
  if (text.length > TOKEN_LIMIT) parts.push([`… ${text.length} characters`, true]);
  return parts;
}

/** A token as one line of text in which nothing is invisible: for titles and labels. */
export function visibleToken(text) {
  return tokenParts(text).map(([part]) => part).join("");
}

/** A token's nodes: its text, and faint marks for what is invisible. */
export function tokenNodes(text) {
  const parts = tokenParts(text), alone = parts.every(([, mark]) => mark);  // marks beside text are faint
  return parts.map(([part, mark]) =>
    mark ? element("i", { class: alone || part.startsWith("U+") ? "mark full" : "mark" }, part) : part);
}

/** A token as a span that keeps its direction to itself. */
export function tokenElement(text) {
  return element("bdi", { class: "token" }, tokenNodes(text));
}

/** Running text, with nothing in it that could reorder or hide what stands around it. */
export function visibleProse(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, (c) =>
    /[\n\t\u200c\u200d]/.test(c) ? c : c === "\r" ? "" : codePointName(c));
}

/** A text cut to so many characters, its end as … where it is longer. */
export function clipText(text, length) {
  const head = [...String(text).slice(0, 2 * length)];
  return head.length > length || text.length > 2 * length ? head.slice(0, length - 1).join("") + "…" : text;
}

/** Three significant digits; whole numbers whole; – for what is not known. */
export function formatNumber(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Number.isInteger(value)) return value.toLocaleString("en").replace(/,/g, "\u202f").replace("-", "−");
  if (Math.abs(value) < 1e-3) return value.toExponential(1).replaceAll("-", "−");
  return String(+value.toPrecision(3)).replace("-", "−");
}

/** A probability in per cent, as people say it: 63%, 4.2%, 0.31%, < 0.01%. */
export function formatShare(share) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  const percent = 100 * share;
  if (percent > 0 && percent < 0.01) return "< 0.01%";
  return `${percent >= 99.95 ? percent.toFixed(0) : percent >= 9.95 ? percent.toFixed(0) : percent >= 0.995 ? percent.toFixed(1) : percent.toFixed(2)}%`;
}

/** A name of a model or a lens, cut where it is long; the whole of it is its title. */
export function nameElement(text) {
  return element("bdi", { title: text.length > 80 ? clipText(visibleProse(text), 2000) : null }, clipText(visibleProse(text), 80));
}
