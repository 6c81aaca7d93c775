"use strict";
const page = JSON.parse(document.getElementById("page").textContent);
const $ = (id) => document.getElementById(id);
const WARM_MS = 1000, WARM_CALLS = 40; // the browser compiles for a quick start first, and then for speed
const SHORT_MS = 1500, LONG_MS = 8000;
const LEAST_MS = 2; // of one reading of the clock, whose steps are a tenth: quick calls are read together
const TOP = 5, SHOWN = 24;
const KINDS = {
  float32: Float32Array, float64: Float64Array, bool: Uint8Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array,
};

let ort, session, loadMs, feeds, busy = false;

function el(name, attributes = {}, ...inside) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...inside);
  return made;
}

function state(name, text) {
  document.body.dataset.state = name;
  $("status").textContent = text;
}

function fail(error) {
  const told = String(error?.message ?? error);
  $("trouble").textContent = told;
  $("trouble").hidden = false;
  $("answer").hidden = $("times").hidden = true; // they are of what was asked before
  state("failed", "");
}

// What the page carries, unpacked.

async function unpacked(name) {
  const parts = [];
  for (const text of carried[name]) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    parts.push(await new Response(stream).arrayBuffer());
  }
  delete carried[name];
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load() {
  const script = URL.createObjectURL(new Blob([await unpacked("script")], { type: "text/javascript" }));
  ort = await import(script);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpacked("binary")).buffer;
  ort.env.logLevel = "error";
  const externalData = [];
  for (const path of page.beside) externalData.push({ path, data: await unpacked(path) });
  const network = await unpacked("network");
  const began = performance.now();
  session = await ort.InferenceSession.create(network, {
    executionProviders: ["wasm"], graphOptimizationLevel: "all", externalData,
  });
  loadMs = performance.now() - began;
}

// Inputs: a picture, a text, or numbers.

function pictureForm() {
  const { height, width, crop, mean, std } = page.picture;
  const file = el("input", { type: "file", id: "file", accept: "image/*" });
  const canvas = el("canvas", { width, height, hidden: true });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "the picture as the network sees it");
  const label = el("label", { htmlFor: "file" }, "A picture: choose one, or drop it here");
  const drop = el("div", { className: "drop" }, label, file, canvas);
  const kept = crop < 1 ? `, of which the middle ${Math.round(100 * crop)} % is kept` : "";
  const channels = `channels as (value − ${mean.join(", ")}) / ${std.join(", ")}, values from 0 to 1`;
  const told = `Cut to ${width} × ${height} pixels around the middle${kept}; ${channels}.`;
  const take = async (given) => {
    if (!given) return;
    const image = await createImageBitmap(given).catch(() => null);
    if (image === null) throw new Error(`${given.name} is no picture that this browser reads.`);
    canvas.hidden = false;
    await answer({ [page.picture.input]: picture(image, canvas) });
  };
  file.addEventListener("change", () => guarded(() => take(file.files[0])));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    guarded(() => take(event.dataTransfer.files[0]));
  });
  $("form").append(drop, el("p", { className: "hint" }, told));
}

function picture(image, canvas) {
  const { height, width, channels, crop, mean, std, first } = page.picture;
  const scale = crop * Math.min(image.width / width, image.height / height);
  const [w, h] = [scale * width, scale * height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.clearRect(0, 0, width, height);
  context.drawImage(image, (image.width - w) / 2, (image.height - h) / 2, w, h, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height).data, area = width * height;
  const values = new Float32Array(channels * area);
  for (let at = 0; at < area; at++) {
    const rgb = [pixels[4 * at], pixels[4 * at + 1], pixels[4 * at + 2]];
    const given = channels === 1 ? [0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]] : rgb;
    given.forEach((value, c) => {
      const place = first ? c * area + at : at * channels + c;
      values[place] = (value / 255 - mean[c % mean.length]) / std[c % std.length];
    });
  }
  return new ort.Tensor("float32", values, first ? [1, channels, height, width] : [1, height, width, channels]);
}

function textForm() {
  const text = el("textarea", { id: "text" });
  $("form").append(el("label", { htmlFor: "text" }, "A text"), text, el("button", { type: "submit" }, "Answer"));
  const pieces = new Map(page.text.vocabulary.map((piece, at) => [piece, at]));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(() => answer(tokens(text.value, pieces)));
  });
}

function tokens(text, pieces) {
  const { ids, mask, length, most } = page.text;
  const special = (name) => pieces.get(name);
  const inner = wordPieces(text, pieces).slice(0, (length ?? most) - 2);
  const found = [special("[CLS]"), ...inner, special("[SEP]")];
  const total = length ?? found.length;
  const made = {};
  for (const { name, type } of page.inputs) {
    const own = Array.from({ length: total }, (_, at) => {
      if (name === ids) return found[at] ?? special("[PAD]") ?? 0;
      return name === mask && at < found.length ? 1 : 0;
    });
    made[name] = tensor(type, own, [1, total]);
  }
  return made;
}

// The pieces of BERT: words and signs, each cut into the longest pieces that the vocabulary has.
function wordPieces(text, pieces) {
  let plain = text.replace(/[\u0000\ufffd\p{Cc}\p{Cf}]/gu, (c) => (/\s/.test(c) ? " " : ""));
  if (page.text.lower) plain = plain.toLowerCase().normalize("NFD").replace(/\p{Mn}/gu, "");
  const apart = plain.replace(/[\p{P}$+<=>^`|~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]/gu, " $& ");
  return apart.split(/\s+/u).filter(Boolean).flatMap((word) => pieced(word, pieces));
}

function pieced(word, pieces) {
  const letters = [...word], found = [];
  if (letters.length > 100) return [pieces.get("[UNK]")];
  for (let start = 0; start < letters.length; ) {
    let end = letters.length, piece;
    for (; end > start; end--) {
      piece = pieces.get((start ? "##" : "") + letters.slice(start, end).join(""));
      if (piece !== undefined) break;
    }
    if (end === start) return [pieces.get("[UNK]")];
    found.push(piece);
    start = end;
  }
  return found;
}

function numbersForm() {
  const fields = page.inputs.map(({ name, type, shape }, at) => {
    const field = el("textarea", { id: `input-${at}`, className: "numbers", spellcheck: false });
    $("form").append(el("label", { htmlFor: field.id }, `${name}: ${type} [${shape.join(", ")}]`), field);
    return field;
  });
  const how = "Numbers as JSON: lists in lists, or one list of all.";
  const drawn = "What is left empty is drawn: floats from −1 to 1, else zeros; ones for a mask.";
  $("form").append(el("p", { className: "hint" }, `${how} ${drawn}`), el("button", { type: "submit" }, "Answer"));
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(() => answer(numbers(fields.map((field) => field.value))));
  });
}

function numbers(texts) {
  const axes = {}, made = {};
  const given = page.inputs.map((input, at) => (texts[at].trim() ? read(input, texts[at], axes) : null));
  page.inputs.forEach((input, at) => {
    const sizes = input.shape.map((size) => (typeof size === "number" ? size : axes[size] ?? 1));
    const { values, shape } = given[at] ?? drawn(input, sizes);
    made[input.name] = tensor(input.type, values, shape);
  });
  return made;
}

function read({ name, shape }, text, axes) {
  let held;
  try {
    held = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name} is no JSON: ${error.message}.`);
  }
  const own = [];
  for (let part = held; Array.isArray(part); part = part[0]) own.push(part.length);
  const values = (Array.isArray(held) ? held.flat(Infinity) : [held]).map(Number);
  if (values.some(Number.isNaN)) throw new Error(`${name} holds what is no number.`);
  const sizes = own.length === shape.length ? own : shape.map((size) => (typeof size === "number" ? size : null));
  const known = sizes.reduce((product, size) => product * (size ?? 1), 1);
  const free = sizes.filter((size) => size === null).length;
  if (free) sizes[sizes.lastIndexOf(null)] = values.length / known; // of several, the last is the one that grows
  const whole = sizes.map((size) => size ?? 1);
  const fits = whole.every((size, at) => typeof shape[at] !== "number" || size === shape[at]);
  if (!fits || whole.reduce((product, size) => product * size, 1) !== values.length) {
    const found = `${values.length} numbers as [${own.join(", ")}]`;
    throw new Error(`${name} has ${found}, where [${shape.join(", ")}] are taken.`);
  }
  shape.forEach((size, at) => { if (typeof size !== "number") axes[size] = whole[at]; });
  return { values, shape: whole };
}

function drawn({ name, type }, shape) {
  const count = shape.reduce((product, size) => product * size, 1);
  let seed = 1;
  const next = () => (seed = (1103515245 * seed + 12345) % 2147483648) / 1073741824 - 1;
  const filler = type.startsWith("float") ? next : () => (name.includes("mask") ? 1 : 0);
  return { values: Array.from({ length: count }, filler), shape };
}

function tensor(type, values, shape) {
  if (!KINDS[type]) throw new Error(`This page has no numbers of type ${type}.`);
  const whole = type.endsWith("int64") ? (value) => BigInt(Math.trunc(value)) : undefined;
  return new ort.Tensor(type, KINDS[type].from(values, whole), shape);
}

// Answers.

function show(found) {
  $("answers").replaceChildren(...session.outputNames.flatMap((name) => shown(name, found[name])));
  $("answer").hidden = false;
}

function shown(name, { type, dims, data }) {
  const values = Array.from(data, Number), classes = dims.length <= 2 && values.length === dims[dims.length - 1];
  const title = session.outputNames.length > 1 || !classes ? [el("h3", {}, `${name} [${dims.join(", ")}]`)] : [];
  const named = page.labels?.length === values.length || page.classes;
  if (classes && values.length > 1 && named && type.startsWith("float")) return [...title, ranked(values)];
  const first = values.slice(0, SHOWN).map((value) => Number(value.toPrecision(5))).join(", ");
  if (values.length <= SHOWN) return [...title, el("pre", {}, first)];
  const [least, most] = [Math.min, Math.max].map((end) => values.reduce((a, b) => end(a, b)).toPrecision(4));
  return [...title, el("pre", {}, `${first}, … ${values.length - SHOWN} more, from ${least} to ${most}`)];
}

function ranked(values) {
  const sum = values.reduce((a, b) => a + b, 0), most = Math.max(...values);
  const shares = values.every((value) => value >= 0 && value <= 1) && Math.abs(sum - 1) < 1e-3;
  const powers = values.map((value) => Math.exp(value - most)), total = powers.reduce((a, b) => a + b, 0);
  const rows = values.map((value, at) => ({ at, value, share: shares ? value : powers[at] / total }));
  rows.sort((a, b) => b.value - a.value);
  return el("ol", {}, ...rows.slice(0, TOP).map(({ at, value, share }) => {
    const name = page.labels ? page.labels[at] : `class ${at}`;
    const row = el("li", {},
      el("span", { className: "name" }, name),
      el("span", { className: "value", title: `score ${value.toPrecision(5)}` }, `${(100 * share).toFixed(1)} %`),
      el("meter", { value: share, min: 0, max: 1 }));
    row.lastChild.setAttribute("aria-label", `${name}: share`);
    row.dataset.class = at;
    row.dataset.score = value;
    return row;
  }));
}

// Times.

async function timed(milliseconds) {
  const taken = [];
  let calls = 0;
  const breathe = () => new Promise((done) => setTimeout(done));
  for (let began = performance.now(), warm = 0; warm < WARM_CALLS && performance.now() - began < WARM_MS; warm++) {
    await session.run(feeds);
    await breathe();
  }
  for (let began = performance.now(); taken.length < 3 || performance.now() - began < milliseconds; ) {
    let together = 0, took = 0;
    for (const before = performance.now(); took < LEAST_MS; together++) {
      await session.run(feeds);
      took = performance.now() - before;
    }
    taken.push(took / together);
    calls += together;
    await breathe();
  }
  return { taken: taken.sort((a, b) => a - b), calls };
}

function measured(firstMs, { taken, calls }) {
  const quantile = (share) => taken[Math.min(taken.length - 1, Math.floor(share * taken.length))];
  const found = {
    median_ms: quantile(0.5), quarter_ms: quantile(0.25), fastest_ms: taken[0], calls, first_ms: firstMs,
    load_ms: loadMs, threads: ort.env.wasm.numThreads, bytes: page.bytes,
    runtime: ort.env.versions.web ?? page.runtime, browser: navigator.userAgent,
  };
  const ms = (value) => (value < 1000 ? `${value.toPrecision(3)} ms` : `${(value / 1000).toPrecision(3)} s`);
  const rows = [
    ["An answer (median)", ms(found.median_ms)],
    ["The fastest", ms(found.fastest_ms)],
    ["The first", ms(found.first_ms)],
    ["Loading it", ms(found.load_ms)],
    ["The network", page.size],
    ["Threads", String(found.threads)],
  ];
  $("measured").replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  $("measured").dataset.figures = JSON.stringify(found);
  const how = `${found.calls} calls after warming up, by this page's clock, of the network alone`;
  $("told").textContent = `${how}, without preparing its input. onnxruntime-web ${found.runtime}, WebAssembly.`;
  $("times").hidden = false;
}

async function measure(firstMs, milliseconds) {
  state("measuring", "Measuring …");
  measured(firstMs, await timed(milliseconds));
  state("answered", "");
}

let firstMs;
async function answer(given) {
  feeds = given;
  state("answering", "Answering …");
  const began = performance.now(), found = await session.run(feeds);
  firstMs ??= performance.now() - began;
  show(found);
  await measure(firstMs, SHORT_MS);
}

async function guarded(act) {
  if (busy) return;
  busy = true;
  $("trouble").hidden = true;
  document.querySelectorAll("button").forEach((button) => { button.disabled = true; });
  try {
    await act();
  } catch (error) {
    fail(error);
  }
  document.querySelectorAll("button").forEach((button) => { button.disabled = false; });
  busy = false;
}

$("again").addEventListener("click", () => guarded(() => measure(firstMs, LONG_MS)));
guarded(async () => {
  (page.picture ? pictureForm : page.text ? textForm : numbersForm)();
  await load();
  state("ready", "Ready.");
});
