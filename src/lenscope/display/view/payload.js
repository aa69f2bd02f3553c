// Payloads as Python packs them → heads with typed arrays. The inverse of display/payload.py.

const ARRAY_TYPES = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

async function inflated(encoded) {
  const text = atob(encoded), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Bytes that lie plane by plane (all first ones, all second ones …) → numbers; a page runs on little-endian machines. */
function planesToNumbers(bytes, { dtype, offset, length }) {
  const Kind = ARRAY_TYPES[dtype], width = Kind.BYTES_PER_ELEMENT;
  if (width === 1) return bytes.slice(offset, offset + length);
  const target = new Uint8Array(length * width);
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0, from = offset + plane * length; i < length; i++) target[i * width + plane] = bytes[from + i];
  }
  return new Kind(target.buffer);
}

/**
 * A payload with its arrays: {...head, arrays: {name: {values, shape}}}. A vocabulary {ids, texts} becomes a Map from id
 * to text. Payloads within the payload (the sides of a comparison) are unpacked too.
 */
export async function unpackResult(payload) {
  const result = { ...payload };
  if (payload.arrays) {
    if (payload.arrays.encoding !== "deflate") throw new Error(`arrays are packed as ${payload.arrays.encoding}, which this page cannot read`);
    const bytes = await inflated(payload.arrays.data);
    result.arrays = Object.fromEntries(Object.entries(payload.arrays.index).map(([name, entry]) =>
      [name, { values: planesToNumbers(bytes, entry), shape: entry.shape }]));
  }
  for (const [name, value] of Object.entries(payload)) {
    if (name === "arrays" || value === null || typeof value !== "object") continue;
    if (name === "vocabulary") result.vocabulary = new Map(value.ids.map((id, i) => [id, value.texts[i]]));
    else if (Array.isArray(value) && value[0]?.arrays) result[name] = await Promise.all(value.map(unpackResult));
    else if (value.arrays) result[name] = await unpackResult(value);
  }
  return result;
}

/** One number of an array {values, shape} at an index for each dimension; null where it is not known. */
export function numberAt({ values, shape }, ...index) {
  let at = 0;
  for (let d = 0; d < shape.length; d++) at = at * shape[d] + index[d];
  const value = values[at];
  return value === undefined || Number.isNaN(value) ? null : value;
}
