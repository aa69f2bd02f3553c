// What is asked of the server, from the inputs. Knows: the bodies of requests. Does not know: nodes, the network.

const TOP_K = 5;

/** The prompt that is typed: {text} or {turns}; null while there is none. */
export function typedPrompt(inputs) {
  if (inputs.mode === "completion") return inputs.text ? { text: inputs.text } : null;
  const turns = inputs.turns.filter((turn, i) => turn.content !== "" || i < inputs.turns.length - 1);
  return turns.length && turns.some((turn) => turn.content) ? { turns } : null;
}

/** What Run asks for, or with `writing` what Write asks for: {endpoint, request}; null while there is no prompt. */
export function mainRequest(inputs, writing = false) {
  const prompt = typedPrompt(inputs);
  if (prompt === null) return null;
  const common = { lens: inputs.lens, top_k: TOP_K };
  if (writing) {
    const { newTokens, temperature, topP, seed } = inputs;
    return { endpoint: "generation", request: { prompt, ...common, max_new_tokens: newTokens, temperature, top_p: topP, seed } };
  }
  if (inputs.compare === "lens") return { endpoint: "comparison", request: { first: prompt, second: prompt, ...common, second_lens: inputs.lens2 } };
  if (inputs.compare === "prompt") {
    return inputs.text2 ? { endpoint: "comparison", request: { first: prompt, second: { text: inputs.text2 }, ...common } } : null;
  }
  return { endpoint: "trajectory", request: { prompt, ...common, ...(inputs.answer ? { target: inputs.answer } : {}) } };
}

/** A prompt in a few words, for lists and titles. */
export function promptInWords(prompt, longest = 60) {
  const text = prompt.text ?? prompt.turns?.map((turn) => `${turn.role}: ${turn.content}`).join(" ⏎ ") ?? `${prompt.ids.length} tokens`;
  const letters = [...text.slice(0, 4 * longest)];
  return letters.length > longest ? `${letters.slice(0, longest - 1).join("")}…` : letters.join("");
}

/** A request in a few words. */
export function requestInWords({ endpoint, request }) {
  if (endpoint === "comparison") {
    return request.second_lens
      ? `${promptInWords(request.first)} · ${request.lens} against ${request.second_lens}`
      : `${promptInWords(request.first, 40)} against ${promptInWords(request.second, 40)} · ${request.lens}`;
  }
  const written = endpoint === "generation" ? ` · ${request.max_new_tokens} tokens written` : "";
  return `${promptInWords(request.prompt)} · ${request.lens}${written}`;
}

/** The target prompt: a named one, or the person's own text and where its placeholder is. */
export function targetOf(inputs, fallback) {
  if (inputs.goal !== "own") return { name: inputs.goal || fallback };
  const at = inputs.goalAt.trim();
  return { text: inputs.goalText, at: /^[-−]?\d+$/.test(at) ? Number(at.replace("−", "-")) : at || -1 };
}

/** Layers as typed: "" is every layer, else numbers and ranges such as "0, 4-8, 20-30/2"; null where it is neither. */
export function typedLayers(text, last) {
  if (!text.trim()) return [];
  const layers = new Set();
  for (const part of text.split(",")) {
    const range = /^\s*(\d+)\s*(?:[-–]\s*(\d+)\s*(?:\/\s*(\d+))?)?\s*$/.exec(part);
    if (!range) return null;
    const [low, high, step] = [Number(range[1]), Number(range[2] ?? range[1]), Number(range[3] ?? 1)];
    if (high > last || low > high || step < 1) return null;
    for (let layer = low; layer <= high; layer += step) layers.add(layer);
  }
  return [...layers].sort((a, b) => a - b);
}

/** What is common to the questions about one state. */
function questionAboutState(inputs, fallback) {
  return {
    target: targetOf(inputs, fallback),
    operation: inputs.operation,
    ...(inputs.mapping ? { mapping: inputs.mapping } : {}),
    ...(inputs.explainer ? { model: Number(inputs.explainer) } : {}),
    ...(inputs.contrast ? { contrast: inputs.contrast } : {}),
  };
}

/** "What does this state mean?": place = {prompt, layer, position}; layers = the target layers, [] for every one. */
export function explanationRequest(inputs, place, layers, fallback) {
  return {
    ...place,
    ...questionAboutState(inputs, fallback),
    ...(layers.length ? { layers } : {}),
    max_new_tokens: inputs.answerTokens,
    seed: inputs.seed,
  };
}

/** The whole source × target grid of one position. */
export function gridRequest(inputs, place, sources, layers, fallback) {
  return {
    prompt: place.prompt,
    position: place.position,
    ...questionAboutState(inputs, fallback),
    ...(sources.length ? { source_layers: sources } : {}),
    ...(layers.length ? { target_layers: layers } : {}),
    ...(inputs.reference ? { answers: [inputs.reference] } : {}),
    kind: inputs.gridKind,
    max_new_tokens: inputs.gridKind === "generate" ? inputs.answerTokens : 1,
  };
}

/** A run with the taken state written into it. */
export function moveRequest(inputs, place, into) {
  const { token, ...source } = place;
  return {
    prompt: { text: inputs.intoText },
    source,
    into: { layer: into[0], position: into[1] },
    operation: inputs.moveOperation,
    lens: inputs.lens,
    top_k: TOP_K,
  };
}

/** Plain and steered continuations of a prompt. */
export function steeringRequest(inputs, prompt, plus, layer) {
  const bare = ({ prompt: read, layer: at, position }) => ({ prompt: read, layer: at, position });
  return {
    prompt,
    layer,
    strength: inputs.strength,
    ...(inputs.steerPositions === "last" ? { positions: [-1] } : {}),
    vector: { plus: bare(plus), ...(inputs.minus ? { minus: bare(inputs.minus) } : {}) },
    operation: "add",
    max_new_tokens: inputs.steerTokens,
    temperature: inputs.temperature,
    seed: inputs.seed,
  };
}
