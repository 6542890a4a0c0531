// The state of the page is in the address: what follows # holds every setting that was chosen.

/** @typedef {Record<string, string|number|boolean>} State */

const INTEGERS = new Set([
  "nodes", "global_batch", "seq_len", "tp", "pp", "dp", "cp", "ep", "etp", "vp", "zero", "micro_batch", "group_size",
  "shard_group", "recompute_layers",
]);
const SWITCHES = new Set(["sequence_parallel", "reshard_after_forward"]);

/** The settings in an address's fragment. Unknown keys are kept: the server says what is wrong with them.
 * @param {string} hash @returns {State} */
export function fromHash(hash) {
  /** @type {State} */
  const state = {};
  for (const [name, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (INTEGERS.has(name)) state[name] = /^-?\d{1,15}$/.test(text) ? Number(text) : text;
    else if (SWITCHES.has(name)) state[name] = text === "true";
    else state[name] = text;
  }
  return state;
}

/** @param {State} state @returns {string} */
export function toHash(state) {
  const pairs = Object.entries(state).map(([name, value]) => [name, String(value)]);
  return `#${new URLSearchParams(pairs)}`;
}

/** A number where the text is one, else the text (the server says what is wrong with it).
 * @param {string} text @returns {string|number|undefined} */
export function number(text) {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  return /^-?\d{1,15}$/.test(trimmed) ? Number(trimmed) : trimmed;
}

/** One question to the server.
 * @param {string} path @param {object} body @returns {Promise<{ok: boolean, answer: any}>} */
export async function ask(path, body) {
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const text = await response.text();
    const json = (response.headers.get("Content-Type") ?? "").startsWith("application/json");
    const answer = json ? JSON.parse(text) : { problems: [{ message: text.trim(), where: "", hint: "" }] };
    return { ok: response.ok, answer };
  } catch {
    const message = "The explorer does not answer. Is `shardwise explore` still running?";
    return { ok: false, answer: { problems: [{ message, where: "", hint: "" }] } };
  }
}
