"""What every page has, as it stands in it."""

STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5b6472; --line: #c9ced6; --mark: #d95f02; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; max-width: 72rem; margin: 1.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .2rem 0; color: var(--soft); }
label { margin-right: 1rem; }
select { font: inherit; padding: .1rem .3rem; }
.tokens { display: flex; flex-wrap: wrap; gap: .2rem; max-height: 16rem; overflow: auto; padding: .25rem; }
.tokens > * { font: 14px/1.5 ui-monospace, monospace; border: 1px solid var(--line); border-radius: .25rem;
  padding: 0 .3rem; background: #fff; color: #000; min-height: 1.6em; unicode-bidi: isolate; }
button { cursor: pointer; }
button[aria-pressed="true"] { border-color: var(--mark); box-shadow: 0 0 0 1px var(--mark); }
:focus-visible { outline: 3px solid #1f6feb; outline-offset: 1px; }
.columns { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
.columns > section { flex: 1 1 20rem; min-width: 0; }
ol { margin: 0; padding-left: 1.6rem; min-height: 9rem; }
canvas { border: 1px solid var(--line); image-rendering: pixelated; max-width: 100%; cursor: crosshair; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { border: 1px solid var(--line); padding: .1rem .5rem; text-align: left; white-space: nowrap;
  unicode-bidi: isolate; }
code { font: 14px ui-monospace, monospace; }
[hidden] { display: none; }
"""

BODY = """
<p><label>Attention of <select id="view"></select></label>
<label>Layer <select id="layer"></select></label>
<label>Head <select id="head"></select></label></p>
<h2 id="queries-title">Tokens that look</h2>
<p>Point at a token, or tab here and move with the arrow keys, Home and End.</p>
<div class="tokens" id="queries" role="group" aria-labelledby="queries-title"></div>
<h2 id="keys-title">Where the token looks</h2>
<p>The darker, the more, beside the strongest of the token; a tooltip has the weight.</p>
<div class="tokens" id="keys" role="group" aria-labelledby="keys-title"></div>
<div class="columns">
<section><h2 id="strongest-title">Most of all</h2>
<p id="chosen" aria-live="polite"></p>
<ol id="strongest" aria-labelledby="strongest-title"></ol></section>
<section><h2>The whole head</h2>
<p>Queries down, keys across; point at a row.</p>
<canvas id="matrix" aria-hidden="true"></canvas></section>
</div>
<section id="lens" hidden><h2 id="lens-title">Logit lens</h2>
<p>What the model would say next after each layer, had it no others: the last is what it says.</p>
<div class="table" tabindex="0" role="region" aria-labelledby="lens-title"><table id="lens-table"></table></div>
</section>
<noscript><p>This page needs scripts to be allowed; it loads nothing.</p></noscript>
"""

SCRIPT = """
"use strict";
const ONE = 65535, STRONGEST = 5, LARGEST_MATRIX = 480;
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const head = document.createElement("canvas");
const state = { view: 0, layer: 0, head: 0, focused: 0, hovered: null };

for (const view of data.views) {
  const bytes = Uint8Array.from(atob(view.weights), (character) => character.charCodeAt(0));
  view.weights = new Uint16Array(bytes.buffer);
}

const current = () => data.views[state.view];
const shownQuery = () => (state.hovered === null ? state.focused : state.hovered);
const percent = (weight) => (100 * weight).toFixed(1) + " %";

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// The weights of a query, of one head or the mean of all (head -1).
function row(query) {
  const view = current(), length = view.keys.length, sums = new Float64Array(length);
  const heads = state.head < 0 ? [...Array(view.heads).keys()] : [state.head];
  for (const head of heads) {
    const start = ((state.layer * view.heads + head) * view.queries.length + query) * length;
    for (let key = 0; key < length; key++) sums[key] += view.weights[start + key] / (ONE * heads.length);
  }
  return sums;
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(([text, number]) => {
    const option = element("option", text);
    option.value = number;
    return option;
  }));
  select.value = value;
}

function chooseView() {
  const view = current();
  state.layer = Math.min(state.layer, view.layers - 1);
  state.head = Math.min(state.head, view.heads - 1);
  state.focused = view.queries.length - 1;
  state.hovered = null;
  fill(at("layer"), [...Array(view.layers).keys()].map((i) => ["" + (i + 1), i]), state.layer);
  fill(at("head"), [["mean of all", -1], ...[...Array(view.heads).keys()].map((i) => ["" + (i + 1), i])], state.head);
  at("queries").replaceChildren(...view.queries.map((token, i) => {
    const button = element("button", token);
    button.type = "button";
    button.dataset.query = i;
    button.setAttribute("aria-label", token + ", token " + (i + 1));
    return button;
  }));
  at("keys").replaceChildren(...view.keys.map((token) => element("span", token)));
  at("lens").hidden = !(data.lens && view.lens);
  chooseHead();
}

function chooseHead() {
  drawHead();
  show();
}

function show() {
  const view = current(), query = shownQuery(), weights = row(query), largest = Math.max(...weights);
  [...at("queries").children].forEach((button, i) => {
    button.tabIndex = i === state.focused ? 0 : -1;
    button.setAttribute("aria-pressed", i === query);
  });
  [...at("keys").children].forEach((span, i) => {
    span.style.backgroundColor = "rgba(253, 141, 60, " + Math.sqrt(weights[i] / largest).toFixed(3) + ")";
    span.dataset.weight = weights[i].toFixed(5);
    span.title = "token " + (i + 1) + ": " + percent(weights[i]);
  });
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a] || a - b).slice(0, STRONGEST);
  const where = state.head < 0 ? "the mean of all heads" : "head " + (state.head + 1);
  at("chosen").textContent = "Token " + (query + 1) + ", in layer " + (state.layer + 1) + ", " + where
    + ", most at token " + (order[0] + 1) + ": " + percent(weights[order[0]]);
  at("strongest").replaceChildren(...order.map((key) => {
    const item = element("li", "");
    item.append(element("code", view.keys[key]), " (token " + (key + 1) + ") " + percent(weights[key]));
    return item;
  }));
  drawMatrix(query);
  if (!at("lens").hidden) showLens(query);
}

// A pixel a weight, drawn when another head is chosen; what is seen is this, enlarged.
function drawHead() {
  const view = current(), rows = view.queries.length, columns = view.keys.length;
  head.width = columns;
  head.height = rows;
  const pen = head.getContext("2d"), image = pen.createImageData(columns, rows);
  for (let y = 0; y < rows; y++) {
    row(y).forEach((weight, x) => {
      const shade = Math.sqrt(weight);
      image.data.set([255 - 2 * shade, 255 - 114 * shade, 255 - 195 * shade, 255], 4 * (y * columns + x));
    });
  }
  pen.putImageData(image, 0, 0);
}

function drawMatrix(query) {
  const canvas = at("matrix"), cell = Math.max(1, Math.floor(LARGEST_MATRIX / Math.max(head.width, head.height)));
  canvas.width = head.width * cell;
  canvas.height = head.height * cell;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(head, 0, 0, canvas.width, canvas.height);
  pen.strokeStyle = "#1f6feb";
  pen.strokeRect(0.5, query * cell + 0.5, canvas.width - 1, Math.max(cell - 1, 1));
}

function showLens(query) {
  const heading = element("tr", "");
  heading.append(element("th", "layer"), ...data.lens.tokens[0][query].map((_, i) => element("th", "" + (i + 1))));
  const lines = data.lens.tokens.map((tokens, layer) => {
    const line = element("tr", "");
    line.append(element("th", "" + (layer + 1)), ...tokens[query].map((token, i) => {
      const cell = element("td", ""), probability = data.lens.probabilities[layer][query][i];
      cell.append(element("code", token), " " + percent(probability));
      cell.style.backgroundColor = "rgba(107, 174, 214, " + probability.toFixed(3) + ")";
      return cell;
    }));
    return line;
  });
  at("lens-table").replaceChildren(heading, ...lines.reverse());
}

fill(at("view"), data.views.map((view, i) => [view.name, i]), 0);
at("view").parentElement.hidden = data.views.length < 2;
at("view").addEventListener("change", (event) => { state.view = +event.target.value; chooseView(); });
at("layer").addEventListener("change", (event) => { state.layer = +event.target.value; chooseHead(); });
at("head").addEventListener("change", (event) => { state.head = +event.target.value; chooseHead(); });

function hover(query) {
  if (state.hovered !== query) { state.hovered = query; show(); }
}
at("queries").addEventListener("mouseover", (event) => {
  if (event.target.dataset.query !== undefined) hover(+event.target.dataset.query);
});
at("queries").addEventListener("mouseleave", () => hover(null));
at("queries").addEventListener("focusin", (event) => {
  state.focused = +event.target.dataset.query;
  state.hovered = null;
  show();
});
at("queries").addEventListener("keydown", (event) => {
  const last = current().queries.length - 1, from = state.focused;
  const to = { ArrowLeft: from - 1, ArrowUp: from - 1, ArrowRight: from + 1, ArrowDown: from + 1, Home: 0, End: last };
  if (!(event.key in to)) return;
  event.preventDefault();
  at("queries").children[Math.min(Math.max(to[event.key], 0), last)].focus();
});
at("matrix").addEventListener("mousemove", (event) => {
  const box = at("matrix").getBoundingClientRect();
  const query = Math.floor((event.clientY - box.top) / box.height * current().queries.length);
  hover(Math.min(Math.max(query, 0), current().queries.length - 1));
});
at("matrix").addEventListener("mouseleave", () => hover(null));
chooseView();
"""
