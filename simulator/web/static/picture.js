// Draws a scene (a list of shapes) as SVG. Only known tags and attributes pass; all words go in as text.

const SVG = "http://www.w3.org/2000/svg";
const TAGS = new Set(["rect", "line", "path", "polyline", "circle", "text"]);
const ATTRIBUTES = new Set([
  "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "d", "points", "class", "text-anchor", "rx",
  "transform",
]);

/** @param {HTMLElement} place @param {any} scene */
export function draw(place, scene) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "picture");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", scene.words);
  svg.setAttribute("viewBox", `0 0 ${scene.width} ${scene.height}`);
  svg.setAttribute("width", String(scene.width));
  svg.setAttribute("height", String(scene.height));
  for (const [tag, attributes, words, tip, data] of scene.shapes) {
    if (!TAGS.has(tag)) continue;
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (ATTRIBUTES.has(name)) element.setAttribute(name, String(value));
    }
    if (words) element.textContent = words;
    if (tip) element.appendChild(document.createElementNS(SVG, "title")).textContent = tip;
    if (data.term) element.dataset.term = data.term;
    if (data.point) element.dataset.point = data.point;
    svg.append(element);
  }
  place.replaceChildren(svg);
}
