"""The script of the page: values under the pointer, and one run highlighted among several."""

import base64
import hashlib

SCRIPT = """
const {names, runs, charts} = JSON.parse(document.getElementById("curves").textContent);
const format = new Intl.NumberFormat("en-US", {maximumSignificantDigits: 4}).format;
const [box, line, row] = ["values", "pointer", ""].map((name) =>
  Object.assign(document.createElement("div"), {className: name}));
const swatches = document.querySelectorAll(".legend .swatch");

function show(svg, event) {
  const {key, over, unit, size} = svg.dataset, {isShare, values} = charts[key];
  const [left, right, low, high] = JSON.parse(svg.dataset.axis);
  const frame = svg.getBoundingClientRect(), share = (event.clientX - frame.left) / frame.width;
  const along = Math.min(Math.max((share - left) / (right - left), 0), 1);
  const isLog = svg.classList.contains("log"), scaled = isLog ? Math.log : Number;
  const x = scaled(low) + (scaled(high) - scaled(low)) * along;
  box.replaceChildren(...runs.map((run, i) => {
    const distances = run[over].map((other) => Math.abs(scaled(other / size) - x));
    const at = distances.indexOf(Math.min(...distances)), y = values[i][at], told = row.cloneNode();
    if (runs.length > 1) told.append(swatches[i].cloneNode(), names[i] + ": ");
    const text = isShare ? `${format(100 * y)}%` : format(y), shown = y === null ? "none" : text;
    told.append(at < 0 ? "none" : `${shown} at ${format(run[over][at] / size)} ${unit}`);
    return told;
  }));
  line.style.left = `${100 * (left + along * (right - left))}%`;
  box.style.left = share < 0.5 ? `${100 * share + 3}%` : "auto";
  box.style.right = share < 0.5 ? "auto" : `${103 - 100 * share}%`;
  svg.parentNode.append(line, box);
}

for (const svg of document.querySelectorAll("svg[data-key]")) {
  svg.addEventListener("pointermove", (event) => show(svg, event));
  svg.addEventListener("pointerleave", () => [box, line].forEach((part) => part.remove()));
}

let chosen = -1;
const highlight = (run) => document.querySelectorAll("svg .run").forEach((part) =>
  part.classList.toggle("faint", run >= 0 && !part.classList.contains("run" + run)));
document.querySelectorAll(".legend button").forEach((button, run, buttons) => {
  button.addEventListener("pointerenter", () => highlight(run));
  button.addEventListener("pointerleave", () => highlight(chosen));
  button.addEventListener("click", () => {
    chosen = chosen === run ? -1 : run;
    buttons.forEach((other, i) => other.setAttribute("aria-pressed", i === chosen));
    highlight(chosen);
  });
});
"""

# For the page's policy, which allows no other script.
SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
