// The start of the page of `lenscope serve`. Knows: which panels there are and how they act together. Does not know: how any
// of them works.

import { createStore } from "./store.js";
import { unpackResult } from "./payload.js";
import { reportOf, withLogitLensReport } from "./trajectory_model.js";
import { clipText, element, visibleProse } from "./text.js";
import { ServerError, askServer, keepAccessToken, streamFromServer } from "./api.js";
import { button, oneAtATime, placeInQueue, statusLine } from "./controls.js";
import { examplesList, stateOfExample } from "./examples.js";
import { exportMenu } from "./export_menu.js";
import { withColumns, withToken } from "./growing.js";
import { closeMenus, keyHelp, listenToKeys } from "./key_help.js";
import { promptPanel } from "./prompt_panel.js";
import { mainRequest, promptInWords } from "./requests.js";
import { resultPanel } from "./result_panel.js";
import { runHistory } from "./run_history.js";
import { statePanel } from "./state_panel.js";
import { emptyState, readState, writeState } from "./url_state.js";

const FIRST_TARGET = "entity";  // the target prompt that describes what it is given
const DRAW_EVERY = 200;  // milliseconds, while the model writes
const ADDRESS_AFTER = 250;  // milliseconds without a change

/** State of the address with what the server has filled in: a lens that is there, limits that hold. */
function stateFor(info, state) {
  const names = info.lenses.map(({ name }) => name), { targets, limits } = info;
  const usual = targets.find(({ name }) => name === FIRST_TARGET) ?? targets[0];
  return {
    ...state,
    lens: names.includes(state.lens) ? state.lens : names.at(-1),
    lens2: names.includes(state.lens2) ? state.lens2 : names[0],
    goal: state.goal === "own" || targets.some(({ name }) => name === state.goal) ? state.goal : usual?.name ?? "own",
    newTokens: Math.min(state.newTokens, limits.new_tokens),
    answerTokens: Math.min(state.answerTokens, limits.new_tokens),
    steerTokens: Math.min(state.steerTokens, limits.new_tokens),
  };
}

/** A sentence for a link to a lens that this server does not have. */
function lensMissed(info, { lens }) {
  return !lens || info.lenses.some(({ name }) => name === lens) ? ""
    : `The link names the lens “${clipText(visibleProse(lens), 60)}”, which is not served here. Another lens is shown.`;
}

/** A sentence for an answer that may lack its space: “Paris” and “ Paris” are two tokens. */
function spaceMissed({ target }) {
  return /^[\p{Script=Latin}\p{Script=Cyrillic}\p{Script=Greek}]/u.test(target ?? "")
    ? ` The answer “${clipText(visibleProse(target), 30)}” is followed without a space before it; a new word begins with one.` : "";
}

/** A trajectory that grows with the events of a generation; `draw(result, written, growing)` is called now and then, and at the end. */
async function streamedTrajectory(request, draw, say, signal) {
  let whole = null, drawnAt = 0, count = 0, written = "";
  await streamFromServer("/api/generation", request, async (name, data) => {
    if (name === "queue") say(placeInQueue(data));
    else if (name === "start") {
      whole = await unpackResult(data.payload);
      signal.throwIfAborted();
      draw(whole, written, false);
    } else if (name === "token") {
      whole = withToken(withColumns(whole, await unpackResult(data.payload)), data.id, data.text);
      signal.throwIfAborted();
      written += data.text;
      say(`${++count} of ${request.max_new_tokens} tokens are written.`);
      if (performance.now() - drawnAt > DRAW_EVERY) {
        draw(whole, written, true);
        drawnAt = performance.now();
      }
    }
    if (name === "done" && typeof data.text === "string") written = data.text;
  }, signal);
  draw(whole, written, true);
  return { ...whole, written };
}

function openPage(root, info) {
  const { state, complaint } = readState(location.hash);
  const inputs = createStore(stateFor(info, state));
  const line = statusLine(), runTask = oneAtATime(line), writeTask = oneAtATime(line);
  const help = keyHelp();
  const usual = { ...stateFor(info, emptyState()), lens: "" };  // a link names its lens: another server has others
  const address = () => writeState(inputs.get(), usual);
  const prompt = promptPanel(inputs, info, { run: () => run(false), write: () => run(true), runTask, writeTask, line });
  const runs = runHistory((entry) => { history.pushState(null, "", entry.hash); openAddress(); });
  const result = resultPanel(inputs, {
    opened: (place) => about.aim(place),
    asked: (place) => about.ask(place),
    taken: (place) => about.take(place),
    keep: keepWritten,
    rerun: () => run(result.current()?.endpoint === "generation"),
  });
  const about = statePanel(inputs, info, result.view);
  const examples = examplesList(info.examples, openExample);
  const work = element("div", { class: "work" }, result.element, about.element);
  const exports = exportMenu({ line, shown: () => work, shared: writeAddress, asked: () => [askedFor(result.current()), about.asked()].filter(Boolean) });

  function askedFor(entry) {
    return entry && { endpoint: entry.endpoint, request: entry.request };
  }
  /** The address follows the view; while something else is typed it goes on saying what is shown. */
  function writeAddress() {
    const { ran } = inputs.get();
    if (result.isStale() || (ran && result.current()?.endpoint !== ran)) return;  // what is shown runs no more, or not yet
    if (location.hash !== address()) history.replaceState(null, "", address());
    if (result.current()) runs.follow(askedFor(result.current()), address());
  }
  function draw(asked, unmarked, growing = false) {
    const drawn = withLogitLensReport(unmarked, reportOf(info));
    const before = result.current()?.result, { cell } = inputs.get();
    const sides = [before, drawn].map((one) => (one?.kind === "comparison" ? one.first : one)?.ids.join());
    if (before && !growing && sides[0] !== sides[1] && cell) inputs.set({ cell: null, positionWindow: null });
    examples.hidden = true;
    result.show({ ...asked, result: drawn, growing });
    document.title = `${clipText(visibleProse(promptInWords(asked.request.prompt ?? asked.request.first)), 60)} – lenscope`;
  }
  /** What was written becomes part of the prompt: a turn of the chat, or the end of the text. */
  function keepWritten(written) {
    const { mode, text, turns } = inputs.get();
    if (mode === "chat") inputs.set({ turns: [...turns.filter(({ content }) => content), { role: "assistant", content: written.trim() }, { role: "user", content: "" }] });
    else inputs.set({ text: text + written });
    prompt.focus();
  }
  function stopRuns() {
    runTask.stop();
    writeTask.stop();
  }
  async function run(writing, restored = false) {
    const asked = mainRequest(inputs.get(), writing);
    if (asked === null) {
      line.refuse(inputs.get().compare === "prompt" && inputs.get().text ? "Type a second prompt, or compare with nothing." : "Type a prompt first.");
      prompt.focus();
      return;
    }
    stopRuns();
    about.forget();
    inputs.set(restored ? { ran: asked.endpoint } : { ran: asked.endpoint, asked: "" });
    const asRun = address();  // whoever types on while it runs changes the address of the next run
    const addressOfRun = () => (result.isStale() ? asRun : address());
    let isNew = !restored;
    const show = (drawn, growing) => {
      draw(asked, drawn, growing);
      if (isNew && location.hash !== addressOfRun()) history.pushState(null, "", addressOfRun());
      isNew = false;
    };
    await (writing ? writeTask : runTask).run(async (signal) => {
      const begun = performance.now();
      const drawn = writing
        ? await streamedTrajectory(asked.request, (whole, written, growing) => show({ ...whole, written }, growing), line.say, signal)
        : await unpackResult(await askServer(`/api/${asked.endpoint}`, asked.request, signal));
      signal.throwIfAborted();
      if (!writing) show(drawn);
      runs.remember(asked, drawn, addressOfRun());
      line.say(`${writing ? "Written" : "Read"} in ${((performance.now() - begun) / 1000).toFixed(1)} s.${spaceMissed(asked.request)}`);
    });
  }
  /** Shows what the state says: from the runs that are kept, else from the server. */
  async function restore() {
    const { ran } = inputs.get(), asked = ran && mainRequest(inputs.get(), ran === "generation");
    if (!asked) {
      result.hide();
      about.close();
      examples.hidden = false;
      return;
    }
    const kept = runs.result(asked);
    if (kept) draw(asked, kept);
    else await run(ran === "generation", true);
    if (JSON.stringify(askedFor(result.current())) !== JSON.stringify(asked)) return;  // it failed, or something else was asked for
    const place = result.chosenPlace();
    if (place) about.aim(place);
    await about.again();
  }
  async function openAddress() {
    stopRuns();
    about.forget();
    const read = readState(location.hash);
    inputs.set(stateFor(info, read.state));
    await restore();
    const wrong = read.complaint || lensMissed(info, read.state);
    if (wrong) line.refuse(wrong);
  }
  async function openExample(example) {
    try {
      inputs.set(stateFor(info, await stateOfExample(example, inputs.get().lens)));
      history.pushState(null, "", address());
      await restore();
    } catch (error) {
      line.fail(error);
    }
  }

  let timer = 0;
  inputs.subscribe(() => {
    clearTimeout(timer);
    timer = setTimeout(writeAddress, ADDRESS_AFTER);
  });
  addEventListener("popstate", openAddress);
  closeMenus();
  listenToKeys({
    "?": help.open,
    "/": prompt.focus,
    g: () => (result.element.querySelector('[role="grid"] [tabindex="0"]') ?? result.element.querySelector('[tabindex="0"]'))?.focus(),
    w: () => withCell(about.ask),
    t: () => withCell(about.take),
  });
  function withCell(act) {
    const place = result.chosenPlace();
    return place ? act(place) : line.refuse("Choose a cell first.");
  }
  const { name, n_layers: layers } = info.model;
  root.replaceChildren(
    element("header", { class: "top-bar" }, element("h1", {}, "lenscope"), element("p", { class: "model" }, `${visibleProse(name)} · ${layers} layers`),
      runs.element, exports.element, button("Keys", help.open, { "aria-keyshortcuts": "?" })),
    element("main", {}, prompt.element, examples, work), help.element);
  const wrong = complaint || lensMissed(info, state);
  restore().then(() => { if (wrong) line.refuse(wrong); });
  if (!inputs.get().ran) prompt.focus();
}

async function startApp(root) {
  keepAccessToken();
  const line = statusLine();
  root.replaceChildren(element("main", {}, element("h1", {}, "lenscope"), line.element));
  line.say("Asking the server …");
  try {
    openPage(root, await askServer("/api/info"));
  } catch (error) {
    line.fail(error);
    root.querySelector("main").append(button("Try again", () => startApp(root), { class: "primary" }));
    if (!(error instanceof ServerError)) throw error;
  }
}

startApp(document.getElementById("app"));
