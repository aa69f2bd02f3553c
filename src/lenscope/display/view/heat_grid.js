// Heat maps whose cells are all seen at once: rows × columns, read by pointer and keys, with words where there is room.

import { element, formatNumber, visibleProse } from "./text.js";
import { stepClass } from "./scale.js";
import { rampLegend, spanScale } from "./result_parts.js";

const HEAT_MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-8, 0], PageDown: [8, 0] };

/**
 * A heat map: {element, paint(look), point([r, c], held)}. Row 0 is the top one.
 *
 * given = {label, corner, rows: [nodes of heads], columns: [nodes of heads], words: whether cells are wide enough for words};
 * look = {className(r, c), nodes(r, c) or null, describe(r, c)}; on = {look([r, c]), open([r, c]), letGo()}.
 */
export function createHeatGrid(given, on = {}) {
  const R = given.rows.length, C = given.columns.length, cells = [];
  let stop = [0, 0], pointed = null, describe = () => "", hovered = "";
  const cellNode = (r, c) => {
    const node = element("div", { role: "gridcell", class: "heat-cell", tabindex: r || c ? "-1" : "0", "aria-colindex": String(c + 2) });
    node.heatPlace = [r, c];
    return node;
  };
  const every = given.words ? 1 : Math.max(1, Math.ceil(C / 16));
  const heads = element("div", { role: "row", class: "heat-row heat-heads", "aria-rowindex": "1" },
    element("div", { role: "columnheader", class: "heat-corner" }, given.corner ?? ""),
    given.columns.map((nodes, c) => element("div", { role: "columnheader", class: c % every ? "heat-head spare" : "heat-head", "aria-colindex": String(c + 2) }, nodes)));
  const rows = given.rows.map((nodes, r) => {
    cells.push(Array.from({ length: C }, (_, c) => cellNode(r, c)));
    return element("div", { role: "row", class: "heat-row", "aria-rowindex": String(r + 2) }, element("div", { role: "rowheader", class: "heat-name" }, nodes), cells[r]);
  });
  const node = element("div", { class: `heat-grid${given.words ? " words" : ""}`, role: "grid", "aria-label": given.label, "aria-rowcount": String(R + 1),
    "aria-colcount": String(C + 1), style: { "--columns": String(C) } }, element("div", { class: "heat-canvas" }, heads, rows));

  const placeAt = (event) => event.target.closest?.(".heat-cell")?.heatPlace ?? null;
  const setStop = (place) => {
    cells[stop[0]]?.[stop[1]]?.setAttribute("tabindex", "-1");
    stop = place;
    cells[place[0]]?.[place[1]]?.setAttribute("tabindex", "0");
  };
  node.addEventListener("pointerover", (event) => {
    const place = placeAt(event), here = `${event.screenX},${event.screenY}`;
    if (!place || here === hovered) return;
    hovered = here;
    const cell = cells[place[0]][place[1]];
    if (!cell.title) cell.title = describe(...place);
    on.look?.(place);
  });
  node.addEventListener("click", (event) => {
    const place = placeAt(event);
    if (!place) return;
    setStop(place);
    on.open?.(place);
  });
  node.addEventListener("focusin", (event) => {
    const place = placeAt(event);
    if (!place) return;
    event.target.setAttribute("aria-label", describe(...place));
    setStop(place);
    on.look?.(place);
  });
  node.addEventListener("keydown", (event) => {
    const by = HEAT_MOVES[event.key], far = event.ctrlKey || event.metaKey, [r, c] = stop;
    const to = by ? [r + by[0], c + by[1]] : event.key === "Home" ? [far ? 0 : r, 0] : event.key === "End" ? [far ? R - 1 : r, C - 1] : null;
    if (event.altKey) return;
    if (to) cells[Math.min(R - 1, Math.max(0, to[0]))][Math.min(C - 1, Math.max(0, to[1]))].focus();
    else if (event.key === "Enter" || event.key === " ") on.open?.(stop);
    else if (event.key === "Escape") return void on.letGo?.();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return {
    element: node,
    paint(look) {
      describe = look.describe;
      cells.forEach((row, r) => row.forEach((cell, c) => {
        cell.className = `heat-cell ${look.className(r, c)}`;
        cell.removeAttribute("title");
        cell.removeAttribute("aria-label");
        const nodes = look.nodes?.(r, c);
        cell.replaceChildren(...(nodes ? [nodes].flat(9) : []));
      }));
    },
    point(place, held) {
      if (pointed) cells[pointed[0]]?.[pointed[1]]?.removeAttribute("aria-selected");
      pointed = place;
      if (!place) return;
      cells[place[0]]?.[place[1]]?.setAttribute("aria-selected", String(held));
      if (!node.contains(document.activeElement)) setStop(place);
    },
  };
}

/** A heat map of a figure, with its ramp and a line that reads its cells; `scale` is one that several maps share. */
export function drawHeatPanel(panel, scale) {
  const R = panel.rows.length, own = scale ?? spanScale(panel.values.flat(), { log: panel.log, high: panel.high });
  const value = (r, c) => panel.values[R - 1 - r]?.[c] ?? null;
  const words = panel.columns.length <= 12;
  const readout = element("p", { class: "readout", role: "status" }, element("span", { class: "hint" }, "Point, or use arrow keys, to read values."));
  const doubted = (r) => Boolean(panel.doubted?.[R - 1 - r]);
  const rowName = (r) => `${doubted(r) ? "?" : ""}${visibleProse(panel.rows[R - 1 - r])}`, columnName = (c) => visibleProse(panel.columns[c]);
  const says = (r, c) => `${panel.y} ${rowName(r)}, ${panel.x} ${columnName(c)}: ${formatNumber(value(r, c))}`;
  const read = ([r, c]) => {
    const text = panel.texts?.[R - 1 - r]?.[c];
    readout.replaceChildren(element("b", {}, formatNumber(value(r, c))), element("span", {}, `${visibleProse(panel.y)} ${rowName(r)}, ${visibleProse(panel.x)} ${columnName(c)}`),
      text ? element("bdi", { class: "token" }, visibleProse(text)) : "");
    grid.point([r, c], false);
  };
  const grid = createHeatGrid({ label: visibleProse(`${panel.title}: ${panel.colour}`), corner: "", words,
    rows: panel.rows.map((_, r) => rowName(r)), columns: panel.columns.map((_, c) => columnName(c)) }, { look: read, open: read });
  grid.paint({ className: (r, c) => stepClass(own, value(r, c)) + (doubted(r) ? " doubted" : ""), describe: says,
    nodes: (r, c) => (words ? element("bdi", {}, panel.texts ? visibleProse(panel.texts[R - 1 - r][c]) : formatNumber(value(r, c))) : null) });
  return element("figure", { class: "chart heat" },
    element("figcaption", {}, element("b", {}, element("bdi", {}, visibleProse(panel.title))), element("span", {}, visibleProse(`rows: ${panel.y}, columns: ${panel.x}`)),
      panel.note && element("span", {}, `? and pale: ${visibleProse(panel.note)}`)),
    rampLegend(own, visibleProse(panel.colour)), grid.element, readout);
}
