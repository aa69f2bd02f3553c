// A PNG of what is shown, painted from the boxes and texts as they stand on the screen. Knows: colours, borders, letters,
// plain SVG shapes. Does not know: what is drawn.

const PIXELS = 2;  // of the picture for each of the screen
const LARGEST_SIDE = 12_000;

function isClear(colour) {
  return colour === "transparent" || /,\s*0\)$/.test(colour) || / \/ 0\)$/.test(colour);
}

function paintBox(context, box, style) {
  if (!isClear(style.backgroundColor)) {
    context.fillStyle = style.backgroundColor;
    context.fillRect(box.left, box.top, box.width, box.height);
  }
  const sides = [["Top", 0, 0, 1, 0], ["Bottom", 0, 1, 1, 0], ["Left", 0, 0, 0, 1], ["Right", 1, 0, 0, 1]];
  for (const [side, right, bottom, wide, high] of sides) {
    const width = parseFloat(style[`border${side}Width`]);
    if (!width || style[`border${side}Style`] === "none" || isClear(style[`border${side}Color`])) continue;
    context.fillStyle = style[`border${side}Color`];
    context.fillRect(right ? box.right - width : box.left, bottom ? box.bottom - width : box.top, wide ? box.width : width, high ? box.height : width);
  }
}

/** Lines around a box that are no borders: its outline, and the borders of what a style puts on it. */
function paintFrames(context, node, box, style) {
  const width = parseFloat(style.outlineWidth);
  if (style.outlineStyle !== "none" && width && !isClear(style.outlineColor)) {
    const out = parseFloat(style.outlineOffset) + width / 2;
    context.strokeStyle = style.outlineColor;
    context.lineWidth = width;
    context.strokeRect(box.left - out, box.top - out, box.width + 2 * out, box.height + 2 * out);
  }
  for (const pseudo of ["::before", "::after"]) {
    const over = getComputedStyle(node, pseudo);
    if (over.content === "none" || over.position !== "absolute" || over.inset !== "0px") continue;
    context.save();
    context.globalAlpha *= parseFloat(over.opacity);
    paintBox(context, box, over);
    context.restore();
  }
}

function paintText(context, node, style) {
  if (!node.data.trim()) return;
  const range = document.createRange();
  context.fillStyle = style.color;
  context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  context.textBaseline = "middle";
  context.direction = style.direction;
  let start = 0;  // of the line that is measured; a text node may lie on several
  let before = null;
  const line = (from, to) => {
    range.setStart(node, from);
    range.setEnd(node, to);
    const box = range.getBoundingClientRect();
    context.textAlign = style.direction === "rtl" ? "right" : "left";
    context.fillText(node.data.slice(from, to).replace(/\s/g, " "), style.direction === "rtl" ? box.right : box.left, box.top + box.height / 2);
  };
  for (let i = 0; i < node.data.length; i++) {
    range.setStart(node, i);
    range.setEnd(node, i + 1);
    const { top, height } = range.getBoundingClientRect();
    if (before !== null && height && Math.abs(top - before) > height / 2) { line(start, i); start = i; }
    if (height) before = top;
  }
  line(start, node.data.length);
}

function paintShape(context, node, style) {
  const matrix = node.getScreenCTM();
  if (!matrix || style.visibility === "hidden") return;
  const value = (name) => node[name]?.baseVal?.value ?? 0;
  const path = new Path2D();
  if (node.localName === "path") path.addPath(new Path2D(node.getAttribute("d") ?? ""));
  else if (node.localName === "line") { path.moveTo(value("x1"), value("y1")); path.lineTo(value("x2"), value("y2")); }
  else if (node.localName === "rect") path.rect(value("x"), value("y"), value("width"), value("height"));
  else if (node.localName === "circle") path.arc(value("cx"), value("cy"), value("r"), 0, 2 * Math.PI);
  else if (node.points) for (const [i, { x, y }] of [...node.points].entries()) path[i ? "lineTo" : "moveTo"](x, y);
  else return;
  context.save();
  context.transform(matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f);
  if (style.fill !== "none" && node.localName !== "line" && node.localName !== "polyline") {
    context.globalAlpha = parseFloat(style.fillOpacity) * parseFloat(style.opacity);
    context.fillStyle = style.fill;
    context.fill(path);
  }
  if (style.stroke !== "none" && parseFloat(style.strokeWidth)) {
    context.globalAlpha = parseFloat(style.strokeOpacity) * parseFloat(style.opacity);
    context.strokeStyle = style.stroke;
    context.lineWidth = parseFloat(style.strokeWidth);
    context.setLineDash(style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(/[ ,]+/).map(parseFloat));
    context.stroke(path);
  }
  context.restore();
}

function clipsChildren(style) {
  return [style.overflowX, style.overflowY].some((overflow) => overflow !== "visible");
}

function paintNode(context, node) {
  if (node instanceof Text) {
    const style = getComputedStyle(node.parentElement);
    if (style.visibility !== "hidden") paintText(context, node, style);
    return;
  }
  if (!(node instanceof Element)) return;
  const style = getComputedStyle(node), box = node.getBoundingClientRect();
  if (style.display === "none" || style.opacity === "0") return;
  context.save();
  context.globalAlpha *= parseFloat(style.opacity);
  if (node instanceof HTMLCanvasElement) context.drawImage(node, box.left, box.top, box.width, box.height);
  else if (node instanceof SVGElement && !(node instanceof SVGSVGElement) && node.localName !== "text") paintShape(context, node, style);
  else if (node instanceof HTMLElement && style.visibility !== "hidden") paintBox(context, box, style);
  if (node instanceof HTMLElement && style.visibility !== "hidden") paintFrames(context, node, box, style);
  if (node instanceof HTMLElement && clipsChildren(style)) {
    context.beginPath();
    context.rect(box.left, box.top, box.width, box.height);
    context.clip();
  }
  if (node instanceof HTMLInputElement || node instanceof HTMLTextAreaElement) paintValue(context, node, style, box);
  else if (node instanceof HTMLSelectElement) paintValue(context, { value: node.selectedOptions[0]?.text ?? "" }, style, box);
  else if (node.localName !== "title" && node.localName !== "desc") {
    const late = [];  // what sticks lies above what scrolls under it
    for (const child of node.childNodes) {
      if (node instanceof HTMLDetailsElement && !node.open && child.localName !== "summary") continue;
      if (child instanceof Element && getComputedStyle(child).position === "sticky") late.push(child);
      else paintNode(context, child);
    }
    late.forEach((child) => paintNode(context, child));
  }
  context.restore();
}

function paintValue(context, node, style, box) {
  context.fillStyle = style.color;
  context.font = `${style.fontSize} ${style.fontFamily}`;
  context.textBaseline = "middle";
  context.fillText(node.type === "radio" || node.type === "checkbox" || node.type === "range" ? "" : (node.value || node.placeholder || "").split("\n")[0], box.left + parseFloat(style.paddingLeft) + 1, box.top + box.height / 2);
}

/** A PNG (Blob) of an element as it stands on the screen. */
export async function pictureOf(node) {
  const box = node.getBoundingClientRect(), canvas = document.createElement("canvas");
  const scale = Math.min(PIXELS, LARGEST_SIDE / Math.max(box.width, box.height));
  canvas.width = Math.ceil(box.width * scale);
  canvas.height = Math.ceil(box.height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.translate(-box.left, -box.top);
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(box.left, box.top, box.width, box.height);
  paintNode(context, node);
  return new Promise((give, fail) => {
    canvas.toBlob((blob) => (blob ? give(blob) : fail(new Error("the browser gave no picture"))), "image/png");
  });
}
