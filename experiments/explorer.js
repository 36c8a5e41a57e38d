"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const id = name => document.getElementById(name);
const DASHES = ["none", "6 3", "2 3", "8 3 2 3"];  // heads with the same color differ in their dashes
const SVG = "http://www.w3.org/2000/svg";
const ROW = 26;  // height of a token beside the lines, in pixels
const MIN_WEIGHT = 0.05;  // smaller weights have no line

// An array of 16-bit integers in base64; see `encode` in explorer.py.
function decode(coded) {
  const bytes = Uint8Array.from(atob(coded.data), character => character.charCodeAt(0));
  const codes = new DataView(bytes.buffer), scale = (coded.high - coded.low) / 65535;
  return Float64Array.from({length: bytes.length / 2}, (_, i) => coded.low + scale * codes.getUint16(2 * i, true));
}
function add(parent, kind, text = "", name = "") {
  const element = document.createElement(kind);
  element.textContent = text;
  if (name) element.className = name;
  parent.append(element);
  return element;
}
function addTokens(parent, tokens) {
  for (const token of tokens) { add(parent, "bdi", token); parent.append(" "); }
}
function fill(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  if (names[before] !== undefined) select.value = before;
}
const format = value => value.toFixed(4);
const isolate = text => `\u2068${text}\u2069`;  // keeps the direction of a token from the text around it

// Attention.
let sentence, view, weights, selected = new Set(), pinned = null;
const numLayers = () => view.weights.shape[0], numHeads = () => view.weights.shape[1];
const size = () => [view.queries.length, view.keys.length];
const headName = head => head === "mean" ? "mean" : `head ${head + 1}`;
const color = head => head === "mean" ? "var(--accent)" : data.colors[head % data.colors.length];
const dashes = head => head === "mean" ? "none" : DASHES[Math.floor(head / data.colors.length) % DASHES.length];
const isMarked = (mark, side, index) => mark !== null && mark.side === side && mark.index === index;

function layerWeight(layer, head, query, key) {
  const [queries, keys] = size();
  return weights[((layer * numHeads() + head) * queries + query) * keys + key];
}
// The weight that is drawn: of one layer or the mean of all, of one head or the mean of the selected ones.
function weight(head, query, key) {
  const layers = id("layer").value === "mean" ? [...Array(numLayers()).keys()] : [Number(id("layer").value)];
  const heads = head === "mean" ? [...selected] : [head];
  let sum = 0;
  for (const layer of layers) for (const index of heads) sum += layerWeight(layer, index, query, key);
  return sum / (layers.length * heads.length);
}
const shownHeads = () => id("combine").value === "mean" ? (selected.size ? ["mean"] : []) : [...selected].sort((a, b) => a - b);

// Adds a line in the color and with the dashes of a head.
function addLine(svg, head) {
  const path = document.createElementNS(SVG, "path");
  Object.assign(path.style, {stroke: color(head), strokeDasharray: dashes(head)});
  svg.append(path);
  return path;
}
function drawLines(mark) {
  const svg = id("lines").querySelector("svg"), [queries, keys] = size();
  svg.replaceChildren();
  for (const head of shownHeads()) {
    for (let query = 0; query < queries; query++) for (let key = 0; key < keys; key++) {
      if (mark && (mark.side === "query" ? query : key) !== mark.index) continue;
      const value = weight(head, query, key);
      if (value < MIN_WEIGHT) continue;
      const path = addLine(svg, head);
      const [from, to] = [query, key].map(index => (index + 0.5) * ROW);
      path.setAttribute("d", `M0 ${from} C40 ${from} 60 ${to} 100 ${to}`);
      Object.assign(path.style, {strokeWidth: 0.5 + 3.5 * value, opacity: 0.2 + 0.8 * value});
      Object.assign(path.dataset, {head, query, key, weight: format(value)});
    }
  }
  for (const token of id("lines").querySelectorAll(".token")) {
    const place = [token.dataset.side, Number(token.dataset.index)];
    token.classList.toggle("marked", isMarked(mark, ...place));
    token.setAttribute("aria-pressed", isMarked(pinned, ...place));
  }
  writeReadout(mark ? largestWeights(mark) : "Point at a token, or move to it with Tab and the arrow keys, to see its largest weights. Enter keeps it selected.");
}
// Returns the largest weights of a token, as text.
function largestWeights({side, index}) {
  const isQuery = side === "query";
  const [names, others, axis] = isQuery ? [view.queries, view.keys, view.queryAxis] : [view.keys, view.queries, view.keyAxis];
  const lines = shownHeads().map(head => {
    const values = others.map((name, i) => [isQuery ? weight(head, index, i) : weight(head, i, index), name]);
    values.sort((a, b) => b[0] - a[0]);
    return `${headName(head)}: ${values.slice(0, 3).map(([value, name]) => `${isolate(name)} ${format(value)}`).join(", ")}`;
  });
  return `${isolate(names[index])} (${axis})\n${lines.join("\n")}`;
}
function writeReadout(text) {
  id("readout").textContent = shownHeads().length ? text : "No head is selected.";
}
// Adds a column of tokens. One is in the order of Tab; the arrow keys move between them.
function tokenColumn(side, names) {
  const column = add(id("lines"), "div", "", side);
  column.setAttribute("role", "group");
  column.setAttribute("aria-label", side === "query" ? view.queryAxis : view.keyAxis);
  names.forEach((name, index) => {
    const token = add(column, "button", "", "token");
    add(token, "bdi", name);
    token.type = "button";
    token.title = name;
    token.tabIndex = index ? -1 : 0;
    Object.assign(token.dataset, {side, index});
    const mark = {side, index};
    token.addEventListener("focus", () => {
      column.querySelector("[tabindex='0']").tabIndex = -1;
      token.tabIndex = 0;
    });
    for (const event of ["mouseenter", "focus"]) token.addEventListener(event, () => drawLines(mark));
    for (const event of ["mouseleave", "blur"]) token.addEventListener(event, () => drawLines(pinned));
    token.addEventListener("click", () => {
      pinned = isMarked(pinned, side, index) ? null : mark;
      drawLines(pinned);
    });
    token.addEventListener("keydown", event => {
      const target = {ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: names.length - 1}[event.key];
      if (event.key === "Escape") { pinned = null; drawLines(null); }
      if (target === undefined || !column.children[target]) return;
      event.preventDefault();
      column.children[target].focus();
    });
  });
}
function drawAttention() {
  const isLines = id("form").value === "lines";
  id("lines").hidden = !isLines;
  id("matrices-box").hidden = isLines;
  if (isLines) { drawLines(pinned); return; }
  writeReadout(`Rows: ${view.queryAxis}. Columns: ${view.keyAxis}.\nPoint at a cell, or move to a matrix with Tab and to a cell with the arrow keys.`);
  drawMatrices(id("matrices"), shownHeads().map(head => ({
    title: headName(head), rows: view.queries, columns: view.keys, rowAxis: view.queryAxis, columnAxis: view.keyAxis,
    value: (query, key) => weight(head, query, key), limit: 1, readout: id("readout"),
  })));
}
function showView() {
  view = sentence.views[id("view").value];
  weights = decode(view.weights);
  pinned = null;
  const before = id("layer").value;
  id("layer").replaceChildren(...Array.from({length: numLayers()}, (_, i) => new Option(`${i + 1} of ${numLayers()}`, i)));
  if (numLayers() > 1) id("layer").append(new Option("mean of the layers", "mean"));
  id("layer").value = [...id("layer").options].some(option => option.value === before) ? before : numLayers() - 1;
  id("lines").replaceChildren();
  for (const axis of [view.queryAxis, "", view.keyAxis]) add(id("lines"), "div", axis, "axis");
  tokenColumn("query", view.queries);
  const svg = document.createElementNS(SVG, "svg"), height = ROW * Math.max(...size());
  for (const [name, value] of Object.entries({viewBox: `0 0 100 ${height}`, height, preserveAspectRatio: "none", "aria-hidden": true})) svg.setAttribute(name, value);
  add(id("lines"), "div").append(svg);
  tokenColumn("key", view.keys);
  drawAttention();
}
// Adds a checkbox for each head; all views have the same number of heads.
function listHeads(count) {
  selected = new Set(Array(count).keys());
  for (const head of selected) {
    const label = add(id("heads"), "label"), input = add(label, "input");
    Object.assign(input, {type: "checkbox", checked: true});
    label.append(` ${head + 1} `);
    const swatch = document.createElementNS(SVG, "svg");
    swatch.setAttribute("class", "swatch");
    addLine(swatch, head).setAttribute("d", "M0 3 H30");
    label.append(swatch);
    input.addEventListener("change", () => select(input.checked ? [...selected, head] : [...selected].filter(index => index !== head)));
  }
}
function select(heads) {
  selected = new Set(heads);
  id("heads").querySelectorAll("input").forEach((input, head) => input.checked = selected.has(head));
  drawAttention();
}

// Search.
const SIGNS = {kept: "✓ kept", finished: "■ finished", dropped: "✗ dropped"};
function showStep() {
  const number = Number(id("step").value), step = sentence.steps[number - 1];
  id("step-name").textContent = `Step ${number} of ${sentence.steps.length}`;
  // A button with `disabled` would lose the keyboard focus.
  id("previous").setAttribute("aria-disabled", number === 1);
  id("next").setAttribute("aria-disabled", number === sentence.steps.length);
  id("candidates").replaceChildren();
  for (const candidate of step.candidates) {
    const row = add(id("candidates"), "tr", "", candidate.fate);
    addTokens(add(row, "td", "", "hypothesis"), candidate.tokens);
    add(row, "td", SIGNS[candidate.fate], "left");
    add(row, "td", format(candidate.probability));
    add(row, "td", format(candidate.logProb));
  }
  id("completed").replaceChildren();
  for (const hypothesis of step.completed) {
    const row = add(id("completed"), "tr");
    addTokens(add(row, "td", "", "hypothesis"), hypothesis.tokens);
    add(row, "td", format(hypothesis.score));
  }
  if (!step.completed.length) add(add(id("completed"), "tr"), "td", "none yet", "muted");
}

// Positions and embeddings.
function showPositions() {
  const shown = data.positions[id("position-view").value], values = decode(shown.values);
  const [rows, columns] = shown.values.shape;
  const labels = (count, first) => Array.from({length: count}, (_, i) => String(i + first));
  id("position-readout").textContent = "Point at a cell, or move to the matrix with Tab and to a cell with the arrow keys.";
  drawMatrices(id("position-matrix"), [{
    title: `${shown.title} (rows: ${shown.rowAxis}, columns: ${shown.columnAxis})`,
    rows: labels(rows, shown.firstRow), columns: labels(columns, shown.firstColumn), rowAxis: shown.rowAxis, columnAxis: shown.columnAxis,
    value: (row, column) => values[row * columns + column], readout: id("position-readout"),
    limit: values.reduce((limit, value) => Math.max(limit, Math.abs(value)), 0) || 1,
  }]);
}
function showTokens() {
  fill(id("token"), data.neighbors[id("table").value].tokens.map(token => token.name));
  showNeighbors();
}
function showNeighbors() {
  const token = data.neighbors[id("table").value].tokens[id("token").value];
  id("nearest").replaceChildren();
  for (const [name, cosine] of token.nearest) {
    const row = add(id("nearest"), "tr");
    add(add(row, "td"), "bdi", name);
    add(row, "td", format(cosine));
    add(add(row, "td", "", "left"), "span", "", "bar").style.width = `${Math.max(0, 8 * cosine)}rem`;
  }
}
function showSentence() {
  sentence = data.sentences[id("sentence").value];
  id("text").textContent = sentence.text;
  id("translated").hidden = sentence.output === null;
  id("output").textContent = sentence.output;
  const isFirst = !id("view").options.length;
  fill(id("view"), sentence.views.map(item => item.title));
  if (isFirst) id("view").value = sentence.views.length - 1;  // cross-attention, if the model has it
  showView();
  id("search").hidden = !sentence.steps.length;
  if (sentence.steps.length) { Object.assign(id("step"), {max: sentence.steps.length, value: 1}); showStep(); }
}

id("summary").textContent = `${data.run}: ${data.summary}`;
fill(id("sentence"), data.sentences.map((item, i) => `${i + 1}. ${item.text.slice(0, 60)}`));
id("choice").hidden = data.sentences.length === 1;
listHeads(data.sentences[0].views[0].weights.shape[1]);
fill(id("position-view"), data.positions.map(item => item.title));
id("positions").hidden = !data.positions.length;
fill(id("table"), data.neighbors.map(item => item.title));
const moveStep = distance => { id("step").value = Number(id("step").value) + distance; showStep(); };
const events = [["sentence", "change", showSentence], ["view", "change", showView], ["layer", "change", drawAttention],
  ["form", "change", drawAttention], ["combine", "change", drawAttention], ["all", "click", () => select(Array(numHeads()).keys())],
  ["next-head", "click", () => select([selected.size === 1 ? ([...selected][0] + 1) % numHeads() : 0])],
  ["step", "input", showStep], ["previous", "click", () => moveStep(-1)], ["next", "click", () => moveStep(1)],
  ["position-view", "change", showPositions], ["table", "change", showTokens], ["token", "change", showNeighbors]];
for (const [name, event, action] of events) id(name).addEventListener(event, action);
function redraw() {
  drawAttention();
  if (data.positions.length) showPositions();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } });
showSentence();
if (data.positions.length) showPositions();
showTokens();
