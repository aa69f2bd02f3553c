// A trajectory that grows while the model writes. Knows: how columns are joined. Does not know: nodes, the network.

/** Columns of two (L, P) or (L, P, k) arrays side by side; `take` lists [array, column] for each column of the result. */
function joinedColumns(arrays, take) {
  const [L, , k = 1] = arrays[0].shape, P = take.length;
  const values = new arrays[0].values.constructor(L * P * k);
  for (let l = 0; l < L; l++) {
    take.forEach(([which, column], p) => {
      const { values: from, shape } = arrays[which], at = (l * shape[1] + column) * k;
      values.set(from.subarray(at, at + k), (l * P + p) * k);
    });
  }
  return { values, shape: arrays[0].shape.length === 3 ? [L, P, k] : [L, P] };
}

/** `whole` with the columns of `piece`; where both have a position, that of the piece counts, which knows more. */
export function withColumns(whole, piece) {
  const positions = [...new Set([...whole.positions, ...piece.positions])].sort((a, b) => a - b);
  const take = positions.map((position) => {
    const late = piece.positions.indexOf(position);
    return late >= 0 ? [1, late] : [0, whole.positions.indexOf(position)];
  });
  const arrays = Object.fromEntries(Object.keys(whole.arrays).filter((name) => piece.arrays[name])
    .map((name) => [name, joinedColumns([whole.arrays[name], piece.arrays[name]], take)]));
  const depth = take.map(([which, column]) => [whole, piece][which].depth[column]);
  return { ...whole, positions, arrays, depth, vocabulary: new Map([...whole.vocabulary, ...piece.vocabulary]) };
}

/** `whole` with one more token at its end, which has no column of its own yet. */
export function withToken(whole, id, text) {
  return { ...whole, ids: [...whole.ids, id], text: whole.text + text, vocabulary: new Map([...whole.vocabulary, [id, text]]) };
}
