// Everything that is not a picture: headline, tables, problems, the plan, the formula behind a number.

import { draw } from "./picture.js";

/** @param {string} id @returns {any} */
export const at = (id) => document.getElementById(id);

/** An element with words in it. Words are text, never markup.
 * @param {string} tag @param {string} words @param {string} [kind] @returns {HTMLElement} */
export function element(tag, words = "", kind = "") {
  const made = document.createElement(tag);
  if (words) made.textContent = words;
  if (kind) made.className = kind;
  return made;
}

/** A number that opens its formula and source.
 * @param {string} words @param {string} term @returns {HTMLElement} */
function number(words, term) {
  if (!term) return element("span", words);
  const made = element("button", words, "number");
  made.setAttribute("type", "button");
  made.setAttribute("aria-haspopup", "dialog");
  made.dataset.term = term;
  return made;
}

/** @param {string} id @param {string[]} heads @param {HTMLElement[][]} rows */
function table(id, heads, rows) {
  const head = element("thead");
  const titles = element("tr");
  titles.append(...heads.map((words) => Object.assign(element("th", words), { scope: "col" })));
  head.append(titles);
  const body = element("tbody");
  for (const cells of rows) {
    const row = element("tr");
    row.append(...cells.map((cell) => {
      const box = element("td");
      box.append(cell);
      return box;
    }));
    body.append(row);
  }
  at(id).replaceChildren(...(heads.length ? [head] : []), body);
}

function named(row) {
  const made = element("span", "", "");
  made.append(element("span", "", `swatch k-${row.part}`), row.name);
  return made;
}

/** @param {any} view the server's answer */
export function showAnswer(view) {
  const doc = view.document;
  at("title").textContent = doc.title;
  document.title = `${doc.title} - Shardwise`;
  at("fits").textContent = doc.verdict;
  at("fits").className = doc.fits ? "fits" : "over-limit";
  at("headline").replaceChildren(...doc.headline.map((row) => {
    const made = element("button");
    made.setAttribute("type", "button");
    made.setAttribute("aria-haspopup", "dialog");
    made.dataset.term = row.term;
    made.append(row.name, element("b", row.value), element("small", row.note));
    return made;
  }));
  for (const scene of view.pictures) draw(at(`picture-${scene.name}`), scene);
  const cells = (row) => [named(row), number(row.value, row.term), element("span", row.share)];
  table("rows-time", ["part", "time", "share", "hidden"], doc.time.map((row) => [...cells(row), element("span", row.hidden)]));
  table("rows-memory", ["part, fullest rank", "bytes", "share"], doc.memory.map(cells));
  table("rows-traffic", ["axis", "sent per device", "share"], doc.traffic.map(cells));
  at("notes").replaceChildren(...doc.notes.map((words) => element("li", words)));
  at("provenance").replaceChildren(...doc.provenance.flatMap((row) => [element("dt", `${row.what} (${row.kind})`), element("dd", row.source)]));
  // Words stay whole: a line that broke behind "--" would be misread.
  at("command").replaceChildren(...doc.command.split(" ").flatMap((word) => [element("span", word, "whole"), " "]));
}

/** @param {{message: string, where: string, hint: string}[]} problems @param {boolean} shown whether an older answer stands there */
export function showProblems(problems, shown = true) {
  at("problems").hidden = problems.length === 0;
  at("problems").replaceChildren(...problems.map((problem) => element("p", `${problem.message} ${problem.hint}`.trim())));
  for (const place of ["headline", ...document.querySelectorAll("#answer figure, #answer table")]) {
    (typeof place === "string" ? at(place) : place).classList.toggle("stale", problems.length > 0);
  }
  if (problems.length) {
    at("title").textContent = "This cannot run";
    at("fits").textContent = shown ? "What is shown is the last strategy that could." : "";
    at("fits").className = "over-limit";
  }
}

/** @param {any} view */
export function showScatter(view) {
  draw(at("picture-scatter"), view.picture);
  table("rows-nearby", ["one step away", "step time", "change", "memory"], view.nearby.map((row) => {
    const name = element("button", row.name, "number");
    name.setAttribute("type", "button");
    name.dataset.point = row.key;
    const least = row.bound ? "at least " : "";
    return [name, element("span", least + row.step), element("span", row.change), element("span", row.memory, row.fits ? "" : "over-limit")];
  }));
}

/** @param {any} view */
export function showPlan(view) {
  at("planned").hidden = false;
  at("proof").textContent = view.proof;
  table("plan-rows", ["strategy", "step time", "MFU", "memory", "why"], view.rows.map((row, index) => {
    const name = element("button", row.label, "number");
    name.setAttribute("type", "button");
    name.dataset.planned = String(index);
    const why = element("span", (index ? row.tie : "") + row.why);
    return [name, element("span", row.step), element("span", row.mfu), element("span", row.memory), why];
  }));
  for (const cell of document.querySelectorAll("#plan-rows td:last-child, #plan-rows th:last-child")) cell.classList.add("words");
  table("rejected", ["reason", "strategies"], view.rejected.map(([reason, count]) => [element("span", reason), element("span", count)]));
  at("plan-notes").replaceChildren(...view.notes.map((words) => element("li", words)));
}

/** @param {any} term a number's formula, values and source */
export function showWhy(term) {
  at("why-name").textContent = term.name;
  at("why-value").textContent = term.value;
  at("why-formula").textContent = term.formula;
  table("why-values", [], term.values.map(([name, value]) => [element("span", name), element("span", value)]));
  at("why-source").textContent = term.source;
  at("why").showModal();
}
