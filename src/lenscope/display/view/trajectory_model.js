// What a trajectory says, by layer row l and position column p (indices into its layers and positions). No page here.

import { clipText, visibleProse, visibleToken } from "./text.js";

/** Nats of KL to the model on held-out text above which a lens knows little of a layer. */
export const WEAK_KL = 2;

/** An unpacked trajectory as questions and answers; null stands for what is not known. */
export function trajectoryModel(result) {
  const { layers, positions, ids, arrays, vocabulary, target } = result;
  const L = layers.length, P = positions.length, topShape = arrays.top_ids.shape, k = topShape[2];
  const topIds = arrays.top_ids.values, topLogs = arrays.top_log_probs.values;
  const known = (value) => value === undefined || Number.isNaN(value) ? null : value;
  const held = result.held_out_kl, heldAt = new Map(held ? held.layers.map((layer, i) => [layer, held.kl[i]]) : []);
  const doubts = new Map(result.doubts ? result.doubts.layers.map((layer, i) => [layer, result.doubts.why[i]]) : []);
  const model = {
    result, layers, positions, L, P, k, vocabularies: [vocabulary],
    hasMeasure: (name) => Object.hasOwn(arrays, name),
    token: (id) => vocabulary.get(id) ?? `#${id}`,
    input: (p) => vocabulary.get(ids[positions[p]]) ?? `#${ids[positions[p]]}`,
    /** The id that cross-entropy and rank are about at a position, null where there is none. */
    target: (p) => target ?? ids[positions[p] + 1] ?? null,
    value(measure, l, p) {
      const value = known(arrays[measure]?.values[l * P + p]);
      return measure === "rank" && value < 0 ? null : value;
    },
    values(measure) {
      const all = arrays[measure]?.values;
      return all ? Array.from(all).filter((v) => !Number.isNaN(v) && (measure !== "rank" || v >= 0)) : [];
    },
    first: (l, p) => topIds[(l * P + p) * k],
    top(l, p) {
      const from = (l * P + p) * k;
      return Array.from({ length: k }, (_, i) => ({ id: topIds[from + i], probability: Math.exp(topLogs[from + i]) }));
    },
    /** Place of an id among the most probable, -1 where it is none of them. */
    placeInTop(id, l, p) {
      const from = (l * P + p) * k;
      for (let i = 0; i < k; i++) if (topIds[from + i] === id) return i;
      return -1;
    },
    probability(id, l, p) {
      const place = model.placeInTop(id, l, p);
      return place < 0 ? null : known(Math.exp(topLogs[(l * P + p) * k + place]));
    },
    rank(id, l, p) {
      if (id === model.target(p)) return model.value("rank", l, p);
      const place = model.placeInTop(id, l, p);
      return place < 0 ? null : place;
    },
    depth: (p) => result.depth?.[p] ?? null,
    settled: (l, p) => (result.depth?.[p] ?? Infinity) <= layers[l],
    heldOut: (l) => heldAt.get(layers[l]) ?? null,
    weak: (l) => (heldAt.get(layers[l]) ?? 0) > WEAK_KL,
    /** Why the lens is not to be trusted at a layer, in words; null where it is. */
    doubt: (l) => doubts.get(layers[l]) ?? null,
    rowOf: (layer) => layers.indexOf(layer),
    columnOf: (position) => positions.indexOf(position),
    layerInWords(l) {
      const layer = layers[l];
      return layer === 0 ? "the input of the first block" : layer === result.n_layers ? "the output of the last block"
        : `after block ${layer} of ${result.n_layers}`;
    },
  };
  return model;
}

/**
 * Trajectories, those of the logit lens with what another lens's report says of it: such reports measure both on the same
 * text of the same model. Whatever nothing is known of stays as it is.
 */
export function withSharedReports(results) {
  const known = results.find((result) => result.held_out_kl?.logit_lens);
  return results.map((result) => (known && result.model === known.model ? withLogitLensReport(result, known.held_out_kl) : result));
}

/** What some lens of a server's model ({lenses}) is known to do on held-out text; null where there is none. */
export function reportOf(info) {
  return info.lenses.map((lens) => lens.held_out_kl).find((held) => held?.logit_lens) ?? null;
}

/** A result in which what the logit lens says is judged by the report of another lens; both sides of a comparison are. */
export function withLogitLensReport(result, held) {
  if (!held?.logit_lens) return result;
  if (result.sides) return { ...result, sides: result.sides.map((side) => withLogitLensReport(side, held)) };
  if (result.kind === "comparison") return { ...result, first: withLogitLensReport(result.first, held), second: withLogitLensReport(result.second, held) };
  if (result.held_out_kl || result.lens !== "logit lens") return result;
  return { ...result, held_out_kl: { layers: held.layers, kl: held.logit_lens, logit_lens: held.logit_lens } };
}

/** The indices of values within a window [low, high]; all of them where there is none, or none are within. */
export function indicesWithin(values, limits) {
  const all = [...values.keys()];
  const within = limits ? all.filter((i) => values[i] >= limits[0] && values[i] <= limits[1]) : all;
  return within.length ? within : all;
}

/** Numbers as runs: 0–4, 7. */
export function runsInWords(numbers) {
  const runs = [];
  for (const n of numbers) {
    const last = runs[runs.length - 1];
    if (last && n === last[1] + 1) last[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => a === b ? `${a}` : `${a}–${b}`).join(", ");
}

/** Layers as a sentence names them: layer 5, layers 6–20, layers 8–10, 13. */
export function layersInWords(layers) {
  return `${layers.length === 1 ? "layer" : "layers"} ${runsInWords(layers)}`;
}

/** A sentence on the layers of which the lens knows little; null where there are none, or nothing is known. */
export function weakLayersInWords(model) {
  const rows = model.layers.map((_, l) => l).filter((l) => model.weak(l));
  if (!rows.length) return null;
  const values = rows.map((l) => model.heldOut(l)), low = Math.min(...values).toFixed(1), high = Math.max(...values).toFixed(1);
  const many = low === high ? `${low}` : `${low}–${high}`;
  return `On held-out text “${clipText(visibleProse(model.result.lens), 60)}” is ${many} nats of KL from the model at `
    + `${layersInWords(rows.map((l) => model.layers[l]))}: it knows little there.`;
}

/** A sentence on the layers at which the lens is not to be trusted; null where there are none, or nothing is known. */
export function doubtsInWords(model) {
  if (!model.result.doubts) return null;
  return `“${clipText(visibleProse(model.result.lens), 60)}” is ${visibleProse(model.result.doubts.line)}.`;
}

/** What a screen reader says of a cell. */
export function cellInWords(model, l, p) {
  const share = model.value("max_probability", l, p);
  return `${visibleToken(model.token(model.first(l, p)))}${share === null ? "" : `, probability ${share.toPrecision(3)}`}; layer ${model.layers[l]}, `
    + `position ${model.positions[p]} after ${visibleToken(model.input(p))}${model.doubt(l) === null ? "" : `; not to be trusted: ${visibleProse(model.doubt(l))}`}`;
}

/** The class of a cell's marks that no choice of measure changes: the target in bold, the staircase of prediction depth. */
export function fixedMarks(model, l, p, before, after) {
  let marks = model.first(l, p) === model.target(p) ? " hit" : "";
  if (model.weak(l)) marks += " weak";
  if (model.doubt(l) !== null) marks += " doubted";
  if (model.settled(l, p)) {
    const edges = (model.layers[l] === model.depth(p) ? " eb" : "") + (before !== null && !model.settled(l, before) ? " el" : "")
      + (after !== null && !model.settled(l, after) ? " er" : "");
    if (edges) marks += " e" + edges;
  }
  return marks;
}
