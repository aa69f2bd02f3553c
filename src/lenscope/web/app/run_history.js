// Earlier runs of this tab. Knows: results that are kept, states that outlive a reload. Does not know: how they are shown.

import { element, visibleProse } from "./text.js";
import { button } from "./controls.js";
import { requestInWords } from "./requests.js";

const HISTORY_KEY = "lenscope-history";
const MOST_RUNS = 30;
const MOST_STORED = 2_000_000;  // characters; a browser gives a tab about five million

function storedRuns() {
  try {
    const runs = JSON.parse(sessionStorage.getItem(HISTORY_KEY) ?? "[]");
    return Array.isArray(runs) ? runs.filter((run) => run && typeof run.hash === "string" && run.asked?.endpoint).slice(0, MOST_RUNS) : [];
  } catch {
    return [];  // what stands there is not ours
  }
}

/**
 * The runs, newest first: {element, remember(asked, result, hash), result(asked)}. Opening one calls open(run), where run =
 * {asked, hash, result}; after a reload `result` is missing, and the server's cache has it.
 */
export function runHistory(open) {
  let runs = storedRuns();
  const list = element("ol", {}), menu = element("details", { class: "menu" }, element("summary", {}, "Earlier runs"), list);
  const key = (asked) => JSON.stringify(asked);

  function draw() {
    menu.hidden = !runs.length;
    list.replaceChildren(...runs.map((run) => element("li", {},
      button(visibleProse(requestInWords(run.asked)), () => { menu.open = false; open(run); }, { dir: "auto" }),
      element("time", { datetime: run.at }, new Date(run.at).toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false })))));
  }
  function store() {
    let kept = runs.map(({ asked, hash, at }) => ({ asked, hash, at })), text = JSON.stringify(kept);
    while (text.length > MOST_STORED) text = JSON.stringify(kept = kept.slice(0, -1));
    try { sessionStorage.setItem(HISTORY_KEY, text); } catch { /* a full store: the runs of this page stay in its memory */ }
  }
  draw();
  return {
    element: menu,
    remember(asked, result, hash) {
      runs = [{ asked, result, hash, at: new Date().toISOString() }, ...runs.filter((run) => key(run.asked) !== key(asked))].slice(0, MOST_RUNS);
      store();
      draw();
    },
    /** The address of the newest run follows what is pinned and chosen in it. */
    follow(asked, hash) {
      const run = runs.find((other) => key(other.asked) === key(asked));
      if (run) { run.hash = hash; store(); }
    },
    result: (asked) => runs.find((run) => key(run.asked) === key(asked))?.result ?? null,
  };
}
