// One network in onnxruntime-web, in Node.js. Questions come on stdin and answers go to stdout: each is a line of JSON,
// then the bytes of its tensors. Lines of answers begin with a zero, since the runtime prints its own account there.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [script, binary, network, profiled, ...beside] = process.argv.slice(2);
const KINDS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

let ort, session, feeds = {};

async function load() {
  ort = await import(pathToFileURL(script).href);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = new Uint8Array(readFileSync(binary)).buffer;
  ort.env.logLevel = "error";
  const externalData = beside.map((path) => ({ path: path.split("/").pop(), data: readFileSync(path) }));
  const began = performance.now();
  session = await ort.InferenceSession.create(readFileSync(network), {
    executionProviders: ["wasm"], graphOptimizationLevel: "all", enableProfiling: profiled === "1", externalData,
  });
  const told = { load_ms: performance.now() - began, version: ort.env.versions.web };
  return { ...told, inputs: session.inputNames, outputs: session.outputNames };
}

function take(question, bytes) {
  let at = 0;
  feeds = {};
  for (const { name, type, shape, length } of question.inputs) {
    const own = new Uint8Array(bytes.subarray(at, at + length)).buffer;
    feeds[name] = new ort.Tensor(type, new KINDS[type](own), shape);
    at += length;
  }
}

async function run() {
  const found = await session.run(feeds);
  const tensors = session.outputNames.map((name) => found[name]);
  const parts = tensors.map(({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  const outputs = tensors.map(({ type, dims }, i) => ({ type, shape: dims, length: parts[i].byteLength }));
  return [{ outputs }, parts];
}

async function calls(seconds, least) {
  const ms = [], cpu = process.cpuUsage(), began = performance.now();
  for (let last = began; ms.length < least || last - began < 1e3 * seconds; ) {
    await session.run(feeds);
    const now = performance.now();
    ms.push(now - last);
    last = now;
  }
  const used = process.cpuUsage(cpu);
  return { ms, processor_ms: (used.user + used.system) / 1e3 / ms.length };
}

async function answer(question, bytes) {
  if (question.do === "take") return [take(question, bytes) ?? {}, []];
  if (question.do === "run") return take(question, bytes), run();
  if (question.do === "time") return [await calls(question.seconds, question.least), []];
  session.endProfiling();
  return [{}, []];
}

function write(told, parts = []) {
  process.stdout.write(`\0${JSON.stringify(told)}\n`);
  for (const part of parts) process.stdout.write(part);
}

async function guarded(make) {
  try {
    write(...(await make()));
  } catch (error) {
    write({ error: String(error?.message ?? error) });
  }
}

await guarded(async () => [await load()]);
let held = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  held = held.length ? Buffer.concat([held, chunk]) : chunk;
  for (let end; (end = held.indexOf(10)) >= 0; ) {
    const question = JSON.parse(held.subarray(0, end).toString());
    if (held.length < end + 1 + question.bytes) break;
    const bytes = held.subarray(end + 1, end + 1 + question.bytes);
    held = held.subarray(end + 1 + question.bytes);
    await guarded(() => answer(question, bytes));
  }
}
