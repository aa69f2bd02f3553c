// A grid of rows × columns that draws only what is seen: cells are recycled as it scrolls, whatever its size.
// It knows places (row, column), the keyboard's stop, and printing. It does not know what is in a cell: its source says.

import { element } from "./text.js";

const SPARE_ROWS = 6, SPARE_COLUMNS = 4;  // drawn beyond what is seen, so that scrolling shows no gaps
const ROW_HEIGHT = 19, WIDEST_COLUMN = 104, NARROWEST_COLUMN = 64;

/**
 * A virtual grid: {element, setSource(source), repaint(), point(place, held), focus(place), reveal(place), cellAt(node), remove()}.
 *
 * source = {label, rows, columns (numbers of them), headRows: [{label, key(c), nodes(key), note(c)}], rowLabel(r), rowMark(r),
 * className(r, c), key(r, c), nodes(key), describe(r, c), rowTitle(r), draggable}. Cells of one key have the same content, which is built once.
 */
export function createLayerTable() {
  const heads = element("div", { class: "heads", role: "rowgroup" });
  const body = element("div", { class: "rows", role: "rowgroup" });
  const canvas = element("div", { class: "canvas" }, heads, body);
  const scroller = element("div", { class: "scroller", role: "grid", tabindex: "-1" }, canvas);
  let source = null, pool = [], headPool = [], size = {}, contents = new Map();
  let shown = [0, 0, 0, 0], stop = [0, 0], pointed = null, printing = false, wanted = null;

  const headWidth = () => printing || scroller.clientWidth < 620 ? 52 : 76;
  const headHeight = () => source.headRows.reduce((sum, _, i) => sum + (i ? 16 : 32), 4);

  function measureSize() {
    const left = headWidth(), width = printing ? 1020 : scroller.clientWidth;
    const free = width - left, columns = Math.max(1, source.columns);
    const column = printing ? Math.min(WIDEST_COLUMN, free / columns)
      : Math.min(WIDEST_COLUMN, Math.max(NARROWEST_COLUMN, Math.floor(free / columns)));
    size = { left, column, row: printing ? 13 : ROW_HEIGHT, top: headHeight(), height: scroller.clientHeight, width };
    scroller.classList.toggle("many", printing && column < 26);
    scroller.classList.toggle("narrow", left < 60);
    for (const [name, value] of [["--head", left], ["--column", column], ["--row", size.row]]) scroller.style.setProperty(name, `${value}px`);
    canvas.style.setProperty("width", `${left + column * source.columns}px`);
    canvas.style.setProperty("height", `${size.top + size.row * source.rows}px`);
    heads.style.setProperty("height", `${size.top}px`);
  }

  function buildPools() {
    const rows = printing ? source.rows : Math.min(source.rows, Math.ceil(Math.max(size.height, 400) / size.row) + SPARE_ROWS);
    const columns = printing ? source.columns : Math.min(source.columns, Math.ceil(size.width / size.column) + SPARE_COLUMNS);
    if (pool.length !== rows || (pool[0]?.cells.length ?? 0) !== columns) {
      body.replaceChildren();
      pool = Array.from({ length: rows }, () => {
        const cells = Array.from({ length: columns }, () => ({ node: element("div", { role: "gridcell", tabindex: "-1", class: "cell" }), r: -1, c: -1, key: null, left: -1, name: "" }));
        const head = element("div", { role: "rowheader", class: "row-head", "aria-colindex": "1" });
        const node = element("div", { role: "row", class: "row" }, head, cells.map((cell) => cell.node));
        for (const cell of cells) cell.node.place = cell;
        body.append(node);
        return { node, head, index: -1, cells };
      });
    }
    // what lies under a dragged cell stays where it can
    if (headPool.length !== source.headRows.length || headPool.some((cells) => cells.length !== columns)) buildHeads(columns);
    for (const row of pool) {
      row.index = -1;
      for (const cell of row.cells) cell.r = -1;
    }
  }

  function buildHeads(columns) {
    heads.replaceChildren();
    headPool = source.headRows.map((headRow, i) => {
      const cells = Array.from({ length: columns }, () => ({ node: element("div", { role: i ? "gridcell" : "columnheader", class: "head-cell" }), c: -1, key: null }));
      const corner = element("div", { class: "corner", role: i ? "rowheader" : "columnheader", "aria-colindex": "1" }, headRow.label);
      heads.append(element("div", { role: "row", class: i ? "head-row next" : "head-row", "aria-rowindex": String(i + 1) }, corner, cells.map((cell) => cell.node)));
      for (const cell of cells) cell.node.headPlace = cell;
      return cells;
    });
  }

  function content(key, nodes) {
    let template = contents.get(key);
    if (!template) {
      template = document.createDocumentFragment();
      template.append(...nodes(key));
      contents.set(key, template);
    }
    return template.cloneNode(true);
  }

  function paintCell(cell, r, c) {
    const name = `cell ${source.className(r, c)}`, key = source.key(r, c), node = cell.node;
    if (node === document.activeElement && (cell.r !== r || cell.c !== c) && cell.r >= 0) scroller.focus({ preventScroll: true });
    cell.r = r;
    if (cell.c !== c) node.setAttribute("aria-colindex", String(c + 2));
    cell.c = c;
    const left = size.left + c * size.column;
    if (cell.left !== left) node.style.setProperty("left", `${cell.left = left}px`);
    if (cell.name !== name) node.className = cell.name = name;
    if (cell.key !== key) {
      cell.key = key;
      node.replaceChildren(content(key, source.nodes));
    }
    if (node.hasAttribute("title")) node.removeAttribute("title");
    if (node.hasAttribute("aria-label")) node.removeAttribute("aria-label");
    const stopHere = stop[0] === r && stop[1] === c ? 0 : -1;
    if (node.tabIndex !== stopHere) node.tabIndex = stopHere;
    if (node.draggable !== Boolean(source.draggable)) node.draggable = Boolean(source.draggable);
    markPointed(cell);
  }

  function markPointed(cell) {
    const here = pointed && pointed.place[0] === cell.r && pointed.place[1] === cell.c;
    if (here) cell.node.setAttribute("aria-selected", String(pointed.held));
    else if (cell.node.hasAttribute("aria-selected")) cell.node.removeAttribute("aria-selected");
  }

  /** Puts the rows and columns that are seen now into the pool; what stays is not touched unless `all`. */
  function sync(all) {
    if (!source || !pool.length) return;
    const rows = pool.length, columns = pool[0].cells.length;
    const firstRow = Math.max(0, Math.min(source.rows - rows, Math.floor(scroller.scrollTop / size.row) - SPARE_ROWS / 2));
    const firstColumn = Math.max(0, Math.min(source.columns - columns, Math.floor(scroller.scrollLeft / size.column) - SPARE_COLUMNS / 2));
    if (!all && shown[0] === firstRow && shown[1] === firstColumn) return;
    shown = [firstRow, firstColumn, rows, columns];
    for (let r = firstRow; r < firstRow + rows; r++) {
      const row = pool[r % rows];
      if (row.index !== r || all) {
        row.index = r;
        row.node.style.setProperty("top", `${r * size.row}px`);
        row.node.setAttribute("aria-rowindex", String(r + 1 + headPool.length));
        row.head.replaceChildren(...source.rowLabel(r));
        row.head.className = `row-head ${source.rowMark?.(r) ?? ""}${pointed?.place[0] === r ? " on" : ""}`;
        const title = source.rowTitle?.(r) ?? "";
        if (title) row.head.title = title;
        else row.head.removeAttribute("title");
        row.head.place = { r, c: null };
      }
      for (let c = firstColumn; c < firstColumn + columns; c++) {
        const cell = row.cells[c % columns];
        if (all || cell.r !== r || cell.c !== c) paintCell(cell, r, c);
      }
    }
    headPool.forEach((cells, i) => {
      for (let c = firstColumn; c < firstColumn + columns; c++) {
        const cell = cells[c % columns];
        if (!all && cell.c === c) continue;
        cell.c = c;
        cell.node.style.setProperty("left", `${size.left + c * size.column}px`);
        cell.node.setAttribute("aria-colindex", String(c + 2));
        cell.node.className = `head-cell${pointed?.place[1] === c && !i ? " on" : ""}`;
        const headRow = source.headRows[i], note = headRow.note?.(c), key = headRow.key(c);
        cell.node.replaceChildren(...(note === undefined ? [] : [element("small", {}, note)]), content(key, headRow.nodes));
      }
    });
    scroller.tabIndex = nodeAt(stop) ? -1 : 0;
  }

  function nodeAt([r, c]) {
    const row = pool[r % pool.length], cell = row?.cells[c % row.cells.length];
    return cell && cell.r === r && cell.c === c ? cell.node : null;
  }

  function reshape() {
    if (!source || (!printing && !scroller.clientWidth)) return;
    measureSize();
    buildPools();
    sync(true);
    if (wanted && !printing) {
      const place = wanted;
      wanted = null;
      reveal(place);
    }
  }

  function point(place, held) {
    pointed = place && { place, held };
    for (const row of pool) {
      row.head.classList.toggle("on", place !== null && row.index === place[0]);
      for (const cell of row.cells) markPointed(cell);
    }
    for (const cell of headPool[0] ?? []) cell.node.classList.toggle("on", place !== null && cell.c === place[1]);
    if (place && !scroller.contains(document.activeElement)) setStop(place);
  }

  function setStop(place) {
    const before = nodeAt(stop);
    if (before) before.tabIndex = -1;
    stop = place;
    const node = nodeAt(stop);
    if (node) node.tabIndex = 0;
    scroller.tabIndex = node ? -1 : 0;
  }

  /** Scrolls as little as shows a cell whole. */
  function reveal([r, c]) {
    if (!scroller.clientWidth) return void (wanted = [r, c]);  // when it is on the page
    const x = c * size.column, y = r * size.row, width = scroller.clientWidth - size.left, height = scroller.clientHeight - size.top;
    if (x < scroller.scrollLeft) scroller.scrollLeft = x;
    else if (x + size.column > scroller.scrollLeft + width) scroller.scrollLeft = x + size.column - width;
    if (y < scroller.scrollTop) scroller.scrollTop = y;
    else if (y + size.row > scroller.scrollTop + height) scroller.scrollTop = y + size.row - height;
    sync(false);
  }

  function focus(place) {
    reveal(place);
    setStop(place);
    nodeAt(place)?.focus({ preventScroll: true });
  }

  scroller.addEventListener("scroll", () => sync(false), { passive: true });
  const watch = new ResizeObserver(() => {
    if (!printing && source && (scroller.clientWidth !== size.width || scroller.clientHeight !== size.height)) reshape();
  });
  watch.observe(scroller);
  const print = (on) => () => {
    printing = on;
    reshape();
  };
  const startPrinting = print(true), endPrinting = print(false);
  window.addEventListener("beforeprint", startPrinting);
  window.addEventListener("afterprint", endPrinting);

  return {
    element: scroller,
    setSource(next) {
      const grown = source && next.rows === source.rows && next.contents === source.contents;
      source = next;
      if (!grown) contents = new Map();
      stop = [Math.min(stop[0], next.rows - 1), Math.min(stop[1], next.columns - 1)];
      scroller.setAttribute("aria-label", next.label);
      scroller.setAttribute("aria-rowcount", String(next.rows + next.headRows.length));
      scroller.setAttribute("aria-colcount", String(next.columns + 1));
      scroller.style.setProperty("--columns", String(next.columns));
      scroller.style.setProperty("--rows", String(next.rows));
      scroller.style.setProperty("--heads", `${headHeight()}px`);
      for (const row of pool) for (const cell of row.cells) cell.key = null;
      reshape();
    },
    repaint: () => sync(true),
    point, focus, reveal,
    stop: () => stop,
    setStop,
    place: () => ({ left: scroller.scrollLeft, top: scroller.scrollTop, size }),
    remove() {
      watch.disconnect();
      window.removeEventListener("beforeprint", startPrinting);
      window.removeEventListener("afterprint", endPrinting);
      scroller.remove();
    },
  };
}

/** The place [row, column] of a cell that an event came from, null where it came from none. */
export function placeOfEvent(event) {
  const cell = event.target.closest?.(".cell")?.place;
  return cell && cell.r >= 0 ? [cell.r, cell.c] : null;
}
