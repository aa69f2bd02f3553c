// What hands do to a grid: look, open, move by keys, choose rows and columns by dragging over heads, drag cells.

import { placeOfEvent } from "./layer_table.js";

const CELL_TYPE = "application/x-lenscope-cell";
let draggedInPage = null;  // what is dragged from anywhere on this page: other types than text keep their form

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], PageUp: [-8, 0], PageDown: [8, 0] };

function placeAfterKey([r, c], key, far, rows, columns) {
  const by = MOVES[key];
  const to = by ? [r + by[0], c + by[1]] : key === "Home" ? [far ? 0 : r, 0] : key === "End" ? [far ? rows - 1 : r, columns - 1] : null;
  return to && [Math.min(rows - 1, Math.max(0, to[0])), Math.min(columns - 1, Math.max(0, to[1]))];
}

/**
 * Listens to a grid of layer_table.js and calls back, places being [row, column]:
 * look(place), open(place), pin(place), letGo(), chooseRows(low, high), chooseColumns(low, high), label(place);
 * drag(place) gives what a dragged cell carries; over(place or null) while something is held over; drop(place, dragged).
 * A place over a column's head has row null. `shape()` gives {rows, columns}.
 */
export function addGestures(table, shape, on) {
  const node = table.element;
  let pointer = "", choosing = null, carried = null;  // a table that scrolls under a resting pointer is not looked at

  node.addEventListener("pointerover", (event) => {
    const place = placeOfEvent(event), here = `${event.screenX},${event.screenY}`;
    if (!place || here === pointer || choosing) return;
    pointer = here;
    const cell = event.target.closest(".cell");
    if (!cell.title) cell.title = on.label(place);
    on.look(place);
  });
  node.addEventListener("pointermove", (event) => { pointer = `${event.screenX},${event.screenY}`; }, { passive: true });
  node.addEventListener("click", (event) => {
    const place = placeOfEvent(event);
    if (!place) return;
    table.setStop(place);
    on.open(place);
  });
  node.addEventListener("focusin", (event) => {
    const place = placeOfEvent(event);
    if (!place) return;
    event.target.setAttribute("aria-label", on.label(place));
    table.setStop(place);
    on.look(place);
  });
  node.addEventListener("keydown", (event) => {
    if (event.altKey) return;
    const { rows, columns } = shape(), here = placeOfEvent(event) ?? table.stop(), far = event.ctrlKey || event.metaKey;
    const to = placeAfterKey(here, event.key, far, rows, columns);
    if (to) table.focus(to);
    else if (far) return;
    else if (event.key === "Enter" || event.key === " ") on.open(here);
    else if (event.key === "p") on.pin(here);
    else if (event.key === "t" && on.drag) carried = on.carry(on.drag(here), here);
    else if (event.key === "d" && on.drop && (carried ?? draggedInPage) !== null) on.drop(here, carried ?? draggedInPage);
    else if (event.key === "Escape") {
      if (!choosing) return void on.letGo();
      endChoosing(false);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  // ---- windows: drag over heads ----
  function headAt(event) {
    const box = node.getBoundingClientRect(), { size, left, top } = table.place(), { rows, columns } = shape();
    const c = Math.floor((event.clientX - box.left + left - size.left) / size.column);
    const r = Math.floor((event.clientY - box.top + top - size.top) / size.row);
    return [Math.min(rows - 1, Math.max(0, r)), Math.min(columns - 1, Math.max(0, c))];
  }
  function preview() {
    const inside = (value) => choosing !== null && value >= Math.min(choosing.from, choosing.to) && value <= Math.max(choosing.from, choosing.to);
    for (const head of node.querySelectorAll(".head-cell")) head.classList.toggle("chosen", choosing?.axis === 1 && inside(head.headPlace.c));
    for (const head of node.querySelectorAll(".row-head")) head.classList.toggle("chosen", choosing?.axis === 0 && inside(head.place.r));
  }
  function endChoosing(apply) {
    const { axis, from, to } = choosing;
    choosing = null;
    preview();
    if (apply && from !== to) (axis ? on.chooseColumns : on.chooseRows)(Math.min(from, to), Math.max(from, to));
  }
  node.addEventListener("pointerdown", (event) => {
    const column = event.target.closest(".head-cell"), row = event.target.closest(".row-head");
    if (event.pointerType === "touch" || event.button || !(column || row)) return;  // fingers scroll; fields choose too
    const axis = column ? 1 : 0, at = headAt(event)[axis];
    choosing = { axis, from: at, to: at };
    node.setPointerCapture(event.pointerId);
    event.preventDefault();
    preview();
  });
  node.addEventListener("pointermove", (event) => {
    if (!choosing) return;
    choosing.to = headAt(event)[choosing.axis];
    preview();
  });
  node.addEventListener("pointerup", () => { if (choosing) endChoosing(true); });
  node.addEventListener("pointercancel", () => { if (choosing) endChoosing(false); });

  // ---- cells that are dragged, and what is dropped on cells and heads ----
  node.addEventListener("dragstart", (event) => {
    const place = placeOfEvent(event);
    if (!place || !on.drag) return;
    draggedInPage = on.drag(place);
    const text = typeof draggedInPage === "string" ? draggedInPage : JSON.stringify(draggedInPage);
    event.dataTransfer.setData(CELL_TYPE, text);
    event.dataTransfer.setData("text/plain", on.label(place));
    event.dataTransfer.effectAllowed = "copy";
  });
  node.addEventListener("dragend", () => on.over?.(null));
  function target(event) {
    const head = event.target.closest?.(".head-cell");
    return head ? [null, head.headPlace.c] : placeOfEvent(event);
  }
  if (on.drop) {
    node.addEventListener("dragover", (event) => {
      const place = target(event);
      if (!place || !event.dataTransfer.types.includes(CELL_TYPE)) return;
      event.preventDefault();
      event.dataTransfer.dropEffect = "copy";
      on.over?.(place);
    });
    node.addEventListener("dragleave", (event) => { if (!node.contains(event.relatedTarget)) on.over?.(null); });
    node.addEventListener("drop", (event) => {
      const place = target(event);
      if (!place) return;
      event.preventDefault();
      on.over?.(null);
      on.drop(place, draggedInPage ?? event.dataTransfer.getData(CELL_TYPE));
    });
  }
}

/** Keeps what was taken by a key for any grid of this page, as if it were dragged. */
export function carryCell(data) {
  draggedInPage = data;
  return data;
}
