// Measures by name, and scales: from a value to a place on the colour ramp, the same for all that a page shows.

/** Steps of the colour ramp: classes q0 … q15, in view.css. */
export const RAMP_STEPS = 16;

/** What measures are called and how their scales run: name, unit, what they say, `high` a fixed end, `log` a log scale. */
export const MEASURES = {
  "between:js": { name: "JS distance", unit: "nats", says: "Jensen–Shannon distance of the two" },
  "between:total_variation": { name: "total variation", unit: "", says: "total variation of the two", high: 1 },
  "between:kl": { name: "KL first ‖ second", unit: "nats", says: "KL(first ‖ second)" },
  "between:kl_back": { name: "KL second ‖ first", unit: "nats", says: "KL(second ‖ first)" },
  max_probability: { name: "probability", unit: "", says: "probability of the top token", high: 1 },
  entropy: { name: "entropy", unit: "nats", says: "entropy" },
  kl: { name: "KL to final", unit: "nats", says: "KL(final ‖ this layer)" },
  cross_entropy: { name: "cross-entropy", unit: "nats", says: "cross-entropy" },
  rank: { name: "rank", unit: "", says: "rank", log: true },
};

/** A scale from 0: at(value) in [0, 1], with ticks. Heavy tails are cut at the 95th percentile, and the last tick says so. */
export function makeScale(measure, values) {
  const { high: fixed, log } = MEASURES[measure] ?? {};
  const sorted = Float64Array.from(values).sort();
  const max = sorted.length ? sorted[sorted.length - 1] : 0, usual = sorted[Math.floor(0.95 * (sorted.length - 1))] || 0;
  const cut = !log && !fixed && usual > 0 && max > 1.5 * usual;
  const least = cut ? usual : max || 1, power = 10 ** Math.floor(Math.log10(least));
  const round = power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((m) => m * power >= least * 0.999);
  const high = fixed || (log ? Math.max(max, 1) : round);
  const bend = log ? Math.log1p : (v) => v;
  const at = (value) => Math.min(1, Math.max(0, bend(value) / bend(high)));
  const decades = [0, 1, 10, 100, 1e3, 1e4, 1e5].filter((v) => v < high / 8);
  const marks = log ? [...decades, high] : [0, high / 2, high];
  return { measure, at, ticks: marks.map((value, i) => ({ at: at(value), value, over: cut && i === marks.length - 1 })), high, min: sorted.length ? sorted[0] : 0, max, cut };
}

/** The class of a value on a scale: q0 … q15, or "none" where it is not known. */
export function stepClass(scale, value) {
  return value === null ? "none" : `q${Math.round(scale.at(value) * (RAMP_STEPS - 1))}`;
}
