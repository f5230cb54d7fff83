"use strict";
// Everything a model's text says is put in by textContent, never as markup.
const $ = (id) => document.getElementById(id);
const make = (tag, parent, text, name) => {
  const node = parent.appendChild(document.createElement(tag));
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};

async function unpacked(id) {
  const text = atob($(id).textContent.trim()), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// white space and control characters can be seen
const MARKS = { "\n": "⏎\n", "\t": "⇥\t", "\r": "␍" };
const shown = (piece) => piece === "" ? "∅" : piece.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
  (c) => MARKS[c] || (c < "\u0100" ? "\\x" + c.charCodeAt(0).toString(16).padStart(2, "0") : "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")));
const inline = (piece) => shown(piece).replaceAll("⏎\n", "⏎").replaceAll("⇥\t", "⇥").replace(/ /g, "·");
const percent = (p) => p >= 0.0995 ? (100 * p).toFixed(0) + " %" : p >= 1e-4 ? (100 * p).toPrecision(2) + " %" : p.toExponential(0);
const shade = (value, mark = "--mark") => `rgba(var(${mark}), ${Math.max(0, Math.min(1, value)).toFixed(3)})`;
const signed = (value) => value < 0 ? shade(-value, "--mark") : shade(value, "--cold");

let facts, weights, chosen = 0, head = null, kind = 0;

// behind the text's last token stands what comes next, where something does
const isNext = (t) => t === facts.tokens.length;
const last = () => facts.tokens.length - (facts.next ? 0 : 1);
const topOf = (t) => isNext(t) ? facts.next : facts.top && facts.top[t];
const ranked = (parent, pairs) => bars(make("div", parent, "", "bars"), pairs.map(([word, q]) => [facts.words[word], q]), percent);

// ---------------------------------------------------------------- text

// of: the colour of token t of a side, "tokens" or "source"; null: none
const COLOURS = {
  probability: { name: "surprise: −log₂ p of each token", low: "0 bits", high: "12 bits", needs: () => facts.p,
    of: (t, side) => side === "source" || facts.p[t] === null ? null : shade(-Math.log2(Math.max(facts.p[t], 1e-30)) / 12) },
  entropy: { name: "entropy: how open it was", low: "0 bits", high: "10 bits", needs: () => facts.entropy,
    of: (t, side) => side === "source" || facts.entropy[t] === null ? null : shade(facts.entropy[t] / Math.LN2 / 10, "--cold") },
  attention: { name: "what the chosen token looks at, by the chosen head", low: "0", high: "1", needs: () => facts.attention.length,
    of: (t, side) => facts.attention[kind].by !== "tokens" || facts.attention[kind].of !== side ? null
      : shade(weight(head[0], head[1], Math.min(chosen, facts.tokens.length - 1), t), "--cold") },
  input: { name: "attribution of the prediction below to each token", low: "against", high: "for", needs: () => facts.input, two: true,
    of: (t, side) => signed(facts.input[side === "source" ? "source" : "values"][t] / facts.input.largest) },
};

function drawText() {
  const colour = COLOURS[$("colour").value], scale = [0, 0.25, 0.5, 0.75, 1];
  const plain = $("colour").value === "probability" ? "--mark" : "--cold";
  $("low").textContent = colour.low; $("high").textContent = colour.high;
  $("scale").style.background = "linear-gradient(to right," +
    scale.map((x) => colour.two ? signed(2 * x - 1) : shade(x, plain)) + ")";
  const paint = (box, side) => [...box.children].forEach((node, t) => {
    node.style.background = t < facts[side].length && colour.of(t, side) || "transparent";
  });
  paint($("text"), "tokens");
  paint($("source"), "source");
  [...$("text").children].forEach((node, t) => node.classList.toggle("chosen", t === chosen));
}

function drawDetail() {
  const box = $("detail");
  box.replaceChildren();
  const title = make("div", box);
  const p = facts.p && facts.p[chosen];
  if (isNext(chosen)) make("span", title, "What would come next:");
  else {
    make("strong", title, inline(facts.tokens[chosen]));
    const none = facts.next !== undefined ? "the first one is given" : topOf(chosen) ? "hidden in the text" : "never hidden";
    make("span", title, `  token ${chosen} of ${facts.tokens.length}` + (facts.p ? p === null ? `; ${none}`
      : `; p = ${percent(p)}, ${(-Math.log2(p)).toFixed(1)} bits; entropy ${(facts.entropy[chosen] / Math.LN2).toFixed(1)} bits` : ""));
  }
  if (topOf(chosen)) ranked(box, topOf(chosen));
  if (facts.labels) bars(make("div", box, "", "bars"), facts.labels, percent);
}

function bars(box, rows, format) {
  const largest = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-9);
  for (const [name, value] of rows) {
    const row = make("div", box);
    make("b", row, inline(name));
    const bar = make("i", row, undefined, value < 0 ? "minus" : "");
    bar.style.width = (100 * Math.abs(value) / largest).toFixed(1) + "%";
    make("em", row, format(value));
  }
}

function alternatives(t) {
  const box = document.createElement("div");
  if (isNext(t)) make("div", box, "What would come next:");
  else if (facts.p && facts.p[t] !== null) make("div", box, `${inline(facts.tokens[t])}   p = ${percent(facts.p[t])}`);
  if (topOf(t)) ranked(box, topOf(t));
  return box;
}

// ---------------------------------------------------------------- lens

function drawLens() {
  const table = $("lens"), { rows, words, p } = facts.lens;
  for (let r = rows.length - 1; r >= 0; r--) {
    const row = make("tr", table);
    make("th", row, rows[r]);
    words[r].forEach((top, t) => {
      const cell = make("td", row, inline(facts.words[top[0]]));
      cell.style.background = shade(p[r][t][0], "--cold");
      cell.classList.toggle("dark", p[r][t][0] > 0.6);
      cell.dataset.at = [r, t];
    });
  }
  const row = make("tr", table, undefined, "own");
  make("th", row, facts.lens.own);
  facts.tokens.forEach((_, t) => { make("td", row, inline(facts.lens.targets[t])).dataset.at = [-1, t]; });
  table.addEventListener("click", (event) => event.target.dataset.at && choose(+event.target.dataset.at.split(",")[1] + facts.lens.ahead));
  tips(table, (node) => {
    if (!node.dataset.at) return null;
    const [r, t] = node.dataset.at.split(",").map(Number);
    if (r < 0) return null;
    const box = document.createElement("div");
    make("div", box, `after ${rows[r]}, at ${inline(facts.tokens[t])}: KL to the end ${facts.lens.kl[r][t].toFixed(2)} nats`);
    ranked(box, words[r][t].map((word, i) => [word, p[r][t][i]]));
    return box;
  });
}

function markLens() {
  for (const cell of $("lens").getElementsByTagName("td"))
    cell.classList.toggle("chosen", +cell.dataset.at.split(",")[1] + facts.lens.ahead === chosen);
}

// ---------------------------------------------------------------- attention

// weights are kept as bytes: levels of the square root, for causal models of what a query can see alone
function weight(layer, n, t, s) {
  const { start, heads, queries, keys, causal } = facts.attention[kind];
  if (causal && s > t) return 0;
  const each = causal ? queries * (queries + 1) / 2 : queries * keys;
  const at = start + (layer * heads + n) * each + (causal ? t * (t + 1) / 2 + s : t * keys + s);
  return (weights[at] / facts.levels) ** 2;
}

function drawHead(canvas, layer, n, most) {
  const { queries, keys } = facts.attention[kind], step = Math.max(1, Math.ceil(Math.max(queries, keys) / most));
  const H = Math.ceil(queries / step), W = Math.ceil(keys / step), context = canvas.getContext("2d");
  canvas.width = W; canvas.height = H;
  const image = context.createImageData(W, H);
  const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--cold").split(",").map(Number);
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
    let largest = 0;
    // the largest of a square: a line of single tokens stays visible
    for (let t = y * step; t < Math.min(queries, (y + 1) * step); t++)
      for (let s = x * step; s < Math.min(keys, (x + 1) * step); s++) largest = Math.max(largest, weight(layer, n, t, s));
    image.data.set([red, green, blue, 255 * Math.sqrt(largest)], 4 * (y * W + x));
  }
  context.putImageData(image, 0, 0);
}

function drawThumbs() {
  const { layers, heads } = facts.attention[kind], box = $("thumbs");
  box.replaceChildren();
  box.style.gridTemplateColumns = `auto repeat(${heads}, auto)`;
  make("span", box, "");
  for (let n = 0; n < heads; n++) make("span", box, "head " + n);
  const waiting = [];
  for (let l = 0; l < layers; l++) {
    make("span", box, "layer " + l);
    for (let n = 0; n < heads; n++) {
      const canvas = make("canvas", box);
      canvas.dataset.head = [l, n];
      canvas.setAttribute("aria-label", `attention of layer ${l}, head ${n}`);
      canvas.addEventListener("click", () => chooseHead(l, n));
      waiting.push([canvas, l, n]);
    }
  }
  // a row at a time: the page can be used meanwhile
  const some = () => {
    for (const [canvas, l, n] of waiting.splice(0, heads)) drawHead(canvas, l, n, 58);
    if (waiting.length) requestAnimationFrame(some); else document.body.dataset.drawn = "yes";
  };
  some();
}

function chooseHead(layer, n) {
  head = [layer, n];
  drawHead($("big"), layer, n, 1 << 12);
  for (const canvas of $("thumbs").getElementsByTagName("canvas"))
    canvas.classList.toggle("chosen", canvas.dataset.head === `${layer},${n}`);
  const told = Object.entries(facts.scores || {}).map(([name, all]) => `${name} ${all[layer][n].toFixed(2)}`);
  $("big-label").textContent = `Layer ${layer}, head ${n}: rows are the tokens that look, columns what they look at. ` +
    (facts.attention[kind].scored ? told.join(", ") : "");
  drawText();
}

function drawScores() {
  for (const [name, all] of Object.entries(facts.scores || {})) {
    const found = all.flatMap((row, l) => row.map((value, n) => [value, l, n])).sort((a, b) => b[0] - a[0]).slice(0, 6);
    const line = make("p", $("scores"), `${facts.told[name]}: `);
    for (const [value, l, n] of found) {
      const button = make("button", line, `L${l}H${n} ${value.toFixed(2)}`);
      button.addEventListener("click", () => { $("which").value = kind = facts.attention.findIndex((one) => one.scored); drawThumbs(); chooseHead(l, n); });
    }
  }
}

// ---------------------------------------------------------------- attribution

function drawDirect() {
  const { names, values, targets, layers, columns } = facts.direct, t = chosen - facts.direct.ahead;
  const table = $("direct");
  table.replaceChildren();
  if (!values[t]) { $("direct-title").textContent = "Nothing predicts the first token."; return; }
  $("direct-title").textContent = `What was added to the logit of ${inline(targets[t])}` +
    (facts.direct.ahead ? `, read behind ${inline(facts.tokens[t])}` : "");
  const value = new Map(names.map((name, i) => [name, values[t][i]]));
  const largest = Math.max(...values[t].map(Math.abs), 1e-9), rest = names.filter((name) => !layers.flat().includes(name));
  const line = (title, parts) => {
    const row = make("tr", table);
    make("th", row, title);
    for (const name of parts) {
      const cell = make("td", row, name && value.has(name) ? value.get(name).toFixed(2) : "");
      if (name) {
        cell.style.background = signed(value.get(name) / largest);
        cell.classList.toggle("dark", Math.abs(value.get(name)) > 0.6 * largest);
      }
      cell.title = name || "";
    }
  };
  const top = make("tr", table);
  for (const name of ["", ...columns]) make("th", top, name);
  for (let l = layers.length - 1; l >= 0; l--) line("layer " + l, layers[l]);
  for (const name of rest) line(name, [name]);
}

function drawInput() {
  const { values, source, told } = facts.input, named = (side) => (value, t) => [facts[side][t], value];
  $("input-title").textContent = told;
  const all = [...source.map(named("source")), ...values.map(named("tokens"))];
  bars($("input"), all.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 20), (value) => value.toFixed(2));
}

// ---------------------------------------------------------------- all together

function choose(t) {
  chosen = Math.max(0, Math.min(last(), t));
  drawText(); drawDetail();
  if (facts.lens) markLens();
  if (facts.direct) drawDirect();
}

function tips(box, content) {
  const tip = $("tip");
  box.addEventListener("pointermove", (event) => {
    const found = content(event.target, event);
    tip.hidden = !found;
    if (!found) return;
    tip.replaceChildren(found);
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4)) + "px";
    tip.style.top = (event.clientY + 18 + height < innerHeight ? event.clientY + 18 : Math.max(4, event.clientY - height - 10)) + "px";
  });
  box.addEventListener("pointerleave", () => { tip.hidden = true; });
}

function fillText(box, tokens) {
  tokens.forEach((piece, t) => { make("span", box, shown(piece)).dataset.t = t; });
}

async function start() {
  facts = JSON.parse(new TextDecoder().decode(await unpacked("facts")));
  weights = await unpacked("attention");
  chosen = facts.chosen;
  head = [0, 0];
  $("title").textContent = facts.title;
  $("about").textContent = facts.about;
  for (const part of ["text", "lens", "heads", "from"]) $(part + "-note").textContent = facts.notes[part] || "";
  fillText($("text"), facts.tokens);
  if (facts.next) make("span", $("text"), "…", "next").dataset.t = facts.tokens.length;
  if (facts.source) { $("source").hidden = false; fillText($("source"), facts.source); }
  for (const [name, { name: told, needs }] of Object.entries(COLOURS)) if (needs()) make("option", $("colour"), told).value = name;
  $("colour").addEventListener("change", drawText);
  $("text").addEventListener("click", (event) => event.target.dataset.t && choose(+event.target.dataset.t));
  $("text").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) { choose(chosen + move); event.preventDefault(); }
  });
  tips($("text"), (node) => node.dataset.t ? alternatives(+node.dataset.t) : null);
  if (facts.lens) drawLens(); else $("lens-part").hidden = true;
  facts.attention.forEach((one, i) => { make("option", $("which"), one.name).value = i; });
  $("which-label").hidden = facts.attention.length < 2;
  // the scores are of these heads
  $("which").value = kind = Math.max(0, facts.attention.findIndex((one) => one.scored));
  $("which").addEventListener("change", () => { kind = +$("which").value; drawThumbs(); chooseHead(0, 0); });
  if (facts.attention.length) {
    drawThumbs(); drawScores();
    tips($("big"), (node, event) => {
      const { queries, keys, by, of } = facts.attention[kind], box = node.getBoundingClientRect();
      const t = Math.floor(queries * (event.clientY - box.top) / box.height), s = Math.floor(keys * (event.clientX - box.left) / box.width);
      if (t < 0 || s < 0 || t >= queries || s >= keys) return null;
      const told = document.createElement("div");
      told.textContent = `${inline(facts[by][t])} looks at ${inline(facts[of][s])}: ${weight(head[0], head[1], t, s).toFixed(3)}`;
      return told;
    });
    chooseHead(...facts.head);
  } else { $("heads-part").hidden = true; document.body.dataset.drawn = "yes"; }
  if (facts.input) drawInput();
  if (!facts.direct && !facts.input) $("from-part").hidden = true;
  choose(chosen);
  document.body.dataset.ready = "yes";
}

start().catch((error) => { $("about").textContent = "This page could not be drawn: " + error; });
