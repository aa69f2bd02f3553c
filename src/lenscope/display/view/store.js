// The state of a page in one place. Views read it, and are called when it changes.

/** What a page is like before anyone touched it. */
export function initialState() {
  return { measure: null, scale: null, pins: [], cell: null, layerWindow: null, positionWindow: null };
}

/**
 * A store: get() gives the state, set(changes) puts new values over old ones, subscribe(listener) calls
 * listener(state, names of what changed) after each change and returns a function that ends it.
 */
export function createStore(state) {
  let current = { ...initialState(), ...state };
  const listeners = new Set();
  return {
    get: () => current,
    set(changes) {
      const names = Object.keys(changes).filter((name) => !Object.is(current[name], changes[name]));
      if (!names.length) return;
      current = { ...current, ...changes };
      for (const listener of [...listeners]) listener(current, names);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}
