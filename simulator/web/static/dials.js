// The dials: a slider over sensible stops with a box for any value, lists of words, names of the catalogue.

/** @typedef {import("./state.js").State} State */

const DIALS = [
  ["what", "model", "model", "names-models"],
  ["what", "cluster", "cluster", "names-clusters"],
  ["what", "nodes", "nodes", "stops"],
  ["what", "framework", "framework", "names-frameworks"],
  ["split", "tp", "tensor", "stops"],
  ["split", "pp", "pipeline", "stops"],
  ["split", "vp", "virtual stages", "stops"],
  ["split", "dp", "data", "stops"],
  ["split", "cp", "context", "stops"],
  ["split", "ep", "expert", "stops"],
  ["split", "etp", "expert-tensor", "stops"],
  ["options", "schedule", "schedule", "words"],
  ["options", "micro_batch", "micro-batch", "stops"],
  ["options", "zero", "ZeRO stage", "stops"],
  ["options", "recompute", "recompute", "words"],
  ["options", "context_kind", "context kind", "words"],
  ["options", "sequence_parallel", "sequence par.", "switch"],
  ["run", "global_batch", "global batch", "stops"],
  ["run", "seq_len", "seq. length", "stops"],
  ["run", "precision", "precision", "words"],
  ["run", "optimizer", "optimizer", "words"],
];

/** @type {Map<string, {row: HTMLElement, kind: string, box: any, slider?: HTMLInputElement, stops: number[]}>} */
const controls = new Map();

/** Build every dial. `changed(name, value, done)` is called while a slider moves (done false) and when a value is set.
 * @param {Record<string, string[]>} words
 * @param {Record<string, string[]>} names
 * @param {(name: string, value: any, done: boolean) => void} changed */
export function build(words, names, changed) {
  for (const [kind, list] of Object.entries(names)) {
    const options = list.map((name) => Object.assign(document.createElement("option"), { value: name }));
    document.getElementById(`names-${kind}`).replaceChildren(...options);
  }
  for (const [group, name, label, kind] of DIALS) {
    const row = document.createElement("div");
    row.className = "dial";
    const caption = document.createElement("label");
    caption.textContent = label;
    caption.htmlFor = `dial-${name}`;
    row.append(caption);
    const control = { row, kind, box: null, stops: [] };
    controls.set(name, control);
    if (kind === "stops") withStops(control, name, label, changed);
    else if (kind === "words") withWords(control, name, words[name], changed);
    else if (kind === "switch") withSwitch(control, name, changed);
    else withNames(control, name, kind, changed);
    document.getElementById(`group-${group}`).append(row);
  }
}

function withStops(control, name, label, changed) {
  const slider = document.createElement("input");
  slider.type = "range";
  slider.min = "0";
  slider.setAttribute("aria-label", `${label}, slider`);
  slider.dataset.slider = name;
  const box = document.createElement("input");
  box.id = `dial-${name}`;
  box.inputMode = "numeric";
  box.spellcheck = false;
  slider.addEventListener("input", () => {
    const value = control.stops[Number(slider.value)];
    box.value = name === "dp" && slider.value === "0" ? "" : String(value);
    slider.setAttribute("aria-valuetext", box.value || "automatic");
    changed(name, box.value, false);
  });
  slider.addEventListener("change", () => changed(name, box.value, true));
  box.addEventListener("change", () => changed(name, box.value, true));
  control.slider = slider;
  control.box = box;
  control.row.append(slider, box);
}

function withWords(control, name, words, changed) {
  const select = document.createElement("select");
  select.id = `dial-${name}`;
  select.className = "wide";
  select.append(...words.map((word) => Object.assign(document.createElement("option"), { value: word, textContent: word })));
  select.addEventListener("change", () => changed(name, select.value, true));
  control.box = select;
  control.row.append(select);
}

function withSwitch(control, name, changed) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", id: `dial-${name}` });
  box.addEventListener("change", () => changed(name, box.checked, true));
  control.box = box;
  control.row.append(box);
}

function withNames(control, name, list, changed) {
  const box = Object.assign(document.createElement("input"), { id: `dial-${name}`, className: "wide", spellcheck: false });
  box.setAttribute("list", list);
  box.addEventListener("change", () => changed(name, box.value, true));
  control.box = box;
  control.row.append(box);
}

/** Put the state into the dials; the one that is being used keeps its text.
 * @param {State} state @param {Record<string, number[]>} stops @param {Record<string, number>} now */
export function show(state, stops, now) {
  for (const [name, control] of controls) {
    const value = state[name];
    if (control.kind === "switch") control.box.checked = value !== false;
    else if (control.kind === "stops") place(control, name, value, stops[name], now[name]);
    else if (document.activeElement !== control.box || control.kind === "words") control.box.value = value ?? "";
  }
}

function place(control, name, value, stops, now) {
  if (stops) {
    // The first stop of dp is "what the others leave".
    control.stops = name === "dp" ? [0, ...stops] : stops;
    control.slider.max = String(control.stops.length - 1);
  }
  const shown = value ?? (name === "dp" ? 0 : now);
  const exact = control.stops.indexOf(shown);
  const near = control.stops.findIndex((stop) => stop >= shown);
  if (document.activeElement !== control.slider) {
    control.slider.value = String(exact >= 0 ? exact : near >= 0 ? near : control.stops.length - 1);
  }
  control.slider.setAttribute("aria-valuetext", value === undefined && name === "dp" ? `automatic, ${now}` : String(shown));
  if (document.activeElement !== control.box) control.box.value = value === undefined && name === "dp" ? "" : String(shown ?? "");
  if (name === "dp") control.box.placeholder = `auto ${now ?? ""}`;
}

/** Mark the dials that problems point to.
 * @param {string[]} names */
export function mark(names) {
  const wrong = new Set(names.map((name) => name.replace(/^-+/, "").replaceAll("-", "_")));
  for (const [name, control] of controls) {
    control.row.classList.toggle("wrong", wrong.has(name));
    control.box.setAttribute("aria-invalid", String(wrong.has(name)));
  }
}
