// The whole source × target grid of one position. Knows: how it is asked for, its progress. Does not know: how it is drawn.

import { drawResult } from "./views.js";
import { createStore } from "./store.js";
import { unpackResult } from "./payload.js";
import { element } from "./text.js";
import { streamFromServer } from "./api.js";
import { choiceControl, button, labelled, numberControl, oneAtATime, placeInQueue, statusLine, textControl } from "./controls.js";
import { LAYERS_WANTED, contrastControl, questionControls } from "./explanation_panel.js";
import { gridRequest, typedLayers } from "./requests.js";

/** The panel: {element, ask(place), aim(place), leave(), asked()}. */
export function gridPanel(inputs, info) {
  const line = statusLine(), task = oneAtATime(line);
  const progress = element("progress", { "aria-label": "Cells that are done", max: "1", value: "0", hidden: "" });
  const drawnAt = element("div", { class: "drawn" });
  const tokens = labelled("New tokens", numberControl(inputs, "answerTokens", 1, info.limits.new_tokens));
  const panel = element("div", { class: "question" },
    element("div", { class: "controls" }, ...questionControls(inputs, info),
      labelled("Each cell", choiceControl(inputs, "gridKind", [["predict", "predicts the next token"], ["generate", "writes an answer"]])), tokens, contrastControl(inputs),
      labelled("Source layers", textControl(inputs, "gridSources", { placeholder: "all", size: "10" })),
      labelled("Target layers", textControl(inputs, "targetLayers", { placeholder: "all", size: "10" })),
      labelled("Answer to look for", textControl(inputs, "reference", { placeholder: "Paris", size: "10" })),
      button("Run the grid", () => ask(place), { class: "primary" }), task.stopButton),
    line.element, progress, drawnAt);
  let place = null, drawn = null, last = null;
  const showTokens = () => { tokens.hidden = inputs.get().gridKind !== "generate"; };
  inputs.subscribe(showTokens);
  showTokens();

  function clear() {
    drawn?.remove();
    drawn = last = null;
  }
  function ask(about) {
    place = about;
    if (!place) return undefined;
    const { gridSources, targetLayers: typed, explainer } = inputs.get();
    const sources = typedLayers(gridSources.trim() === "all" ? "" : gridSources, info.model.n_layers);
    const end = info.explaining_models[Number(explainer)]?.n_layers ?? info.model.n_layers;
    const layers = typed.trim() === "same" ? null : typedLayers(typed.trim() === "all" ? "" : typed, end);
    if (sources === null || layers === null) return line.refuse(LAYERS_WANTED);
    inputs.set({ asked: "grid" });
    return task.run(async (signal) => {
      const request = gridRequest(inputs.get(), place, sources, layers, info.targets[0]?.name);
      progress.removeAttribute("value");
      progress.hidden = false;
      try {
        await streamFromServer("/api/grid", request, async (name, data) => {
          if (name === "queue") line.say(placeInQueue(data));
          else if (name === "progress") {
            progress.max = data.total;
            progress.value = data.done;
            line.say(`${data.done} of ${data.total} cells are done.`);
          } else if (name === "result") {
            const grid = await unpackResult(data.payload);
            signal.throwIfAborted();
            clear();
            drawn = drawResult({ ...grid, key: "grid" }, createStore({}), {});
            drawnAt.replaceChildren(drawn.element);
            last = { endpoint: "grid", request };
          }
        }, signal);
        line.say("The grid is there.");
      } finally {
        progress.hidden = true;
      }
    });
  }
  return {
    element: panel,
    ask,
    aim(about) {
      if (place && JSON.stringify(about) !== JSON.stringify(place)) { task.stop(); clear(); line.clear(); }
      place = about;
    },
    leave: () => task.stop(),
    asked: () => last,
  };
}
