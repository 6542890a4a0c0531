// The explorer: a state in the address, a question for every change of it, the answer on the page.

import * as dials from "./dials.js";
import { at, showAnswer, showPlan, showProblems, showScatter, showWhy } from "./panels.js";
import { ask, fromHash, number, toHash } from "./state.js";

/** @type {import("./state.js").State} */
let state = {};
let start = {};
/** @type {string[]} names of the settings that make a strategy */
let split = [];
let answer = null;
let points = {};
/** @type {any[]} */
let planned = [];
let asking = false;
let again = false;
let revision = 0;
let movedAt = 0;
/** Neighbours that are simulated in one question: a dial that moves meanwhile waits for no more than these. */
const AT_ONCE = 3;

const width = (id) => Math.max(280, Math.floor(at(id).getBoundingClientRect().width));
const say = (words) => { at("status").textContent = words; };

/** Ask for the state; while an answer is under way, only the newest state waits. */
async function refresh() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  const began = movedAt || performance.now();
  const asked = JSON.stringify(state);
  const { ok, answer: found } = await ask("api/estimate", { state, width: width("picture-waterfall"), wide: width("picture-timeline"), planned });
  if (ok) {
    answer = found;
    dials.show(state, found.dials, found.now);
    dials.mark([]);
    showProblems([]);
    showAnswer(found);
    points = found.scatter.points;
    showScatter(found.scatter);
  } else {
    dials.mark(found.problems.map((problem) => problem.where));
    showProblems(found.problems, answer !== null);
  }
  document.body.dataset.updateMs = String(Math.round(performance.now() - began));
  document.body.dataset.revision = String(++revision);
  say(ok ? `updated in ${document.body.dataset.updateMs} ms` : "this cannot run");
  asking = false;
  movedAt = 0;
  if (again) {
    again = false;
    refresh();
  } else if (ok) {
    scatter(asked);
  }
}

/** Simulate what is one step away, a few at a time, in place of its bounds; ends where the state has moved on. */
async function scatter(asked) {
  for (let simulate = AT_ONCE, left = 1; left > 0; simulate += AT_ONCE) {
    const { ok, answer: found } = await ask("api/scatter", { state: JSON.parse(asked), width: width("picture-scatter"), planned, simulate });
    if (!ok || asking || asked !== JSON.stringify(state)) return;
    points = found.points;
    showScatter(found);
    left = found.left;
  }
  document.body.dataset.scattered = asked;
}

/** Take over settings, put them into the address, and ask.
 * @param {object} change */
function turn(change) {
  for (const [name, value] of Object.entries(change)) {
    if (value === undefined) delete state[name];
    else state[name] = value;
  }
  // What was made for other stages, or for another recomputation, goes with them.
  if (["pp", "vp", "model"].some((name) => name in change) && !("layers_per_stage" in change)) delete state.layers_per_stage;
  if (["pp", "vp", "model"].some((name) => name in change) && String(state.recompute_layers).includes(",")
    && !("recompute_layers" in change)) delete state.recompute_layers;
  if ("recompute" in change && !("recompute_layers" in change)) delete state.recompute_layers;
  // A loop schedule has virtual stages exactly if there is more than one per rank.
  if ("vp" in change && !("schedule" in change)) {
    if (state.vp > 1 && state.schedule === "1f1b") state.schedule = "interleaved";
    if (state.vp === 1 && state.schedule === "interleaved") state.schedule = "1f1b";
  }
  if (("model" in change || "cluster" in change || "nodes" in change)) planned = [];
  history.replaceState(null, "", toHash(state));
  movedAt ||= performance.now();
  refresh();
}

async function plan() {
  const button = at("plan");
  button.disabled = true;
  say("planning ...");
  const { ok, answer: found } = await ask("api/plan", { state });
  button.disabled = false;
  if (!ok) {
    showProblems(found.problems);
    say("no plan");
    return;
  }
  planned = found.rows;
  showPlan(found);
  say("planned");
  document.body.dataset.planned = String(found.rows.length);
  if (planned.length) adopt(planned[0].change);
}

/** Go to a neighbour: what it changes, with as many replicas as that leaves. */
function follow(change) {
  turn({ dp: undefined, ...change });
}

/** Go to a planned strategy: its settings replace all of the split. */
function adopt(change) {
  turn({ ...Object.fromEntries(split.map((name) => [name, undefined])), ...change });
}

async function share() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("link copied");
  } catch {
    say("the address above is the link");
  }
}

function clicked(event) {
  const found = event.target.closest("[data-term], [data-point], [data-planned]");
  if (!found) return;
  const { term, point, planned: index } = found.dataset;
  if (term && answer?.document.terms[term]) showWhy(answer.document.terms[term]);
  else if (point && points[point]) (point.startsWith("p") ? adopt : follow)(points[point]);
  else if (index) adopt(planned[Number(index)].change);
}

function changed(name, value, done) {
  const stops = typeof value === "string" && !["model", "cluster", "framework"].includes(name);
  const words = ["schedule", "recompute", "context_kind", "precision", "optimizer"].includes(name);
  const read = stops && !words ? number(value) : value;
  if (done && JSON.stringify(state[name]) === JSON.stringify(read)) return;
  turn({ [name]: read });
}

function fromAddress() {
  state = { ...start, ...fromHash(location.hash) };
}

async function begin() {
  const { ok, answer: found } = await ask("api/catalogue", {});
  if (!ok) {
    showProblems(found.problems, false);
    return;
  }
  start = found.start;
  split = found.split;
  fromAddress();
  dials.build(found.words, found.names, changed);
  dials.show(state, {}, {});
  at("plan").addEventListener("click", plan);
  at("share").addEventListener("click", share);
  at("reset").addEventListener("click", () => { state = {}; turn({ ...start }); });
  at("dials").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", clicked);
  addEventListener("hashchange", () => { fromAddress(); refresh(); });
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(refresh, 200);
  });
  refresh();
}

begin();
