"use strict";
// What the page holds: an index of all problems, and for each a block that is unpacked when it is asked for.
const LEAST = -25, LEVELS = 254, UNKNOWN = 255, KEPT = 40;
const at = id => document.getElementById(id);
const page = JSON.parse(at("index").textContent);
const blocks = at("blocks").textContent.trim().split("\n");
at("blocks").remove();
const unpacked = new Map(), two = page.names.length === 2;
page.problems.forEach((p, i) => p.block = i);

function make(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);  // strings become text
  return made;
}

function number(value, sign = "") {
  if (!value) return value === 0 ? "0" : "–";
  const size = Math.abs(value);
  const text = size < 1e-4 ? value.toExponential(2) : size < 1000 ? value.toPrecision(3) : value.toFixed(0);
  return (value > 0 ? sign : "") + text.replace(/-/g, "−");
}

const logprob = level => level === UNKNOWN ? null : LEAST * (level / LEVELS) ** 2;

function read(problem) {  // a promise of its prompt and traces
  const i = problem.block;
  if (!unpacked.has(i)) {
    if (unpacked.size >= KEPT) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(i, unpack(blocks[i]));
  }
  return unpacked.get(i);
}

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let from = 4 + new DataView(bytes.buffer).getUint32(0);
  const problem = JSON.parse(new TextDecoder().decode(bytes.subarray(4, from)));
  for (const t of problem.sides.flat()) {
    const column = () => bytes.subarray(from, from += t.n);
    const low = column(), high = column();
    t.student = column();
    t.local = column().map((difference, i) => difference + t.student[i]);  // of bytes: modulo 256
    t.teacher = t.own ? column() : null;
    t.weight = t.weighed ? column() : null;
    let end = 0;
    t.pieces = Array.from(low, (n, i) => t.text.slice(end, end += n + 256 * high[i]));
    const places = gaps => { let at = 0; return gaps.map(gap => at += gap); };
    t.steps = places(t.steps);
    if (t.weighed) t.weighed.places = places(t.weighed.places);
    t.likes = new Map(places(t.likes).map((i, k) => [i, t.liked[k]]));
    if (!t.own) continue;  // nothing is known of how it was made
    t.own = new Set(places(t.own));
    t.unknown = new Set(places(t.unknown));
  }
  return problem;
}
