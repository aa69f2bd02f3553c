// Talks to the server. Knows: how requests, streams, files and errors travel. Does not know: what they mean.

const ACCESS_KEY = "lenscope-token";
const SILENT_SERVER = "The server does not answer. Start `lenscope serve` again, then repeat what you did.";

/** An error that the person can read: one plain line, with the status of the answer (0: no answer came). */
export class ServerError extends Error {
  constructor(line, status) {
    super(line);
    this.status = status;
  }
}

/** Moves the access token from the address into this tab's memory, so that no shared link carries it. */
export function keepAccessToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("token");
  if (!given) return;
  sessionStorage.setItem(ACCESS_KEY, given);
  fragment.delete("token");
  history.replaceState(null, "", `${location.pathname}${location.search}#${fragment}`);
}

function requestHeaders(body) {
  const token = sessionStorage.getItem(ACCESS_KEY);
  return { ...(body ? { "Content-Type": "application/json" } : {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

async function lineOfError(response) {
  try {
    const { error } = await response.json();
    if (typeof error === "string" && error) return error;
  } catch { /* what came is no JSON: the status says what can be said */ }
  return response.status === 401
    ? "The server asks for its token: open the address that `lenscope serve` printed."
    : `The server answered with status ${response.status}.`;
}

async function answerTo(path, body, signal) {
  let response;
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(path, { method: text ? "POST" : "GET", headers: requestHeaders(text), body: text, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(SILENT_SERVER, 0);
  }
  if (!response.ok) throw new ServerError(await lineOfError(response), response.status);
  return response;
}

async function bodyOf(response, read) {
  try {
    return await read(response);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The answer broke off. Repeat what you did.", 0);
  }
}

/** The JSON that the server gives at a path; with `body` it is sent there. */
export async function askServer(path, body, signal) {
  return bodyOf(await answerTo(path, body, signal), (response) => response.json());
}

/** A file that the server makes: {blob, name}. */
export async function fileFromServer(path, body, signal) {
  const response = await answerTo(path, body, signal);
  const name = /filename="?([^";]+)"?/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? "lenscope";
  return { blob: await bodyOf(response, (whole) => whole.blob()), name };
}

/** One event of a stream from its lines, or null for a comment that keeps the connection open. */
export function streamedEvent(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}

/**
 * Streams what the server sends: `on(name, data)` for each event, in order. Ends after "done"; "error" is thrown.
 * Leaving (signal) closes the connection, by which the server knows that nobody reads.
 */
export async function streamFromServer(path, body, on, signal) {
  const reader = (await answerTo(path, body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await bodyOf(reader, (open) => open.read());
      if (done) throw new ServerError("The stream ended before its last word. Repeat what you did.", 0);
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const event of blocks.map(streamedEvent)) {
        if (event === null) continue;
        if (event.name === "error") throw new ServerError(event.data.error ?? "The server stopped with an error.", 500);
        await on(event.name, event.data);
        if (event.name === "done") return;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
