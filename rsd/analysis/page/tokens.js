// A trace as coloured tokens: a row for each step, with what the teacher likes best struck out where something else stands.
const FULL = Math.log(1e5), EVEN = Math.log(1e3), CHUNK = 400;
const IMPROBABLE = Math.log(page.threshold);

// Of token i of trace t: how strongly it is coloured, 0 to 1, and by which colour.
const colours = {
  student: (t, i) => [-logprob(t.student[i]) / FULL, ""],
  gap: (t, i) => {
    if (!t.teacher || t.teacher[i] === UNKNOWN) return [0, ""];
    const gap = (logprob(t.teacher[i]) - logprob(t.student[i])) / EVEN;
    return [Math.abs(gap), gap < 0 ? "cool" : ""];
  },
  acceptance: (t, i) => [logprob(t.student[i]) < IMPROBABLE ? 0.75 : 0, ""],
  origin: (t, i) => [!t.teacher || t.unknown.has(i) ? 0 : t.own.has(i) ? 0.55 : t.likes.has(i) ? 0.45 : 0,
    t.own?.has(i) ? "cool" : "violet"],
  weight: (t, i) => [weighs(t, i) ?? 0, "weight"],
};
const weighs = (t, i) => t.weight && t.weight[i] !== UNKNOWN ? t.weight[i] / LEVELS : null;


function cell(label, strength, colour = "") {
  const made = make("span", `t cell ${colour}`, label);
  made.style.setProperty("--h", strength);
  return made;
}

const said = (what, ...signs) => make("span", "said", ...signs, ` ${what}`);

function legend(mode, traces) {  // what the colours say
  const cells = (...some) => make("span", "cells", ...some.map(c => cell(...c)));
  const made = {
    student: () => [said("", cells(["1", 0], ["0.1", 0.2], ["0.01", 0.4], ["0.001", 0.6], ["1e−4", 0.8], ["≤ 1e−5", 1])),
      said(`improbable: below ${page.threshold}`, make("span", "t low", "token"))],
    gap: () => [said("", cells(["student 1000 ×", 1, "cool"], ["30 ×", 0.5, "cool"], ["equal", 0], ["30 ×", 0.5], ["teacher 1000 ×", 1])),
      said("how much likelier a token is to one than to the other")],
    acceptance: () => [said(`would fall as a proposal: student probability below ${page.threshold}`, cell("token", 0.75)),
      said("would stand", cell("token", 0))],
    origin: () => [said("the teacher's likeliest", cell("token", 0)), said("another of the teacher's", cell("token", 0.45, "violet")),
      said("the student's own (a fallback)", cell("token", 0.55, "cool"))],
    weight: () => [said("", cells(...[0, 0.25, 0.5, 0.75, 1].map(w => [w, w, "weight"]))),
      said("how much a token is to count in training; at 0.5 the student's own step is as valid as the teacher's")],
  }[mode]();
  if (["gap", "origin"].includes(mode) && traces.some(t => !t.teacher))
    made.push(said("No sidecar tells this of a trace without colours."));
  if (mode === "weight" && traces.some(t => !t.weight)) made.push(said("A trace without colours has no weights."));
  return made;
}

function signs(traces) {  // what else is marked
  const instead = name => [make("del", "", "Let"), make("span", `t ${name}`, "4")];
  const made = traces.some(t => t.likes.size) ? [
    said("the teacher likes the one struck out best; what stands instead is another of the teacher's", ...instead("other")),
    said("or the student's own (a fallback)", ...instead("own")),
  ] : [];
  const own = traces.some(t => t.own && [...t.own].some(i => !t.likes.has(i)));
  if (own) made.push(said("the student's own, and what the teacher likes best as well", make("span", "t own", "4")));
  return [...made, said("a step", make("span", "number", "3")), said("a line break", make("i", "nl")),
    said("a space at an end of a line, or one of several", make("i", "sp", " "))];
}

function drawn(t, mode) {  // the rows of a trace, and its tokens' elements
  const spans = [], rows = [], chunks = [];
  const ends = [...t.steps.slice(1), t.n];
  let at = 0;  // in the text
  t.steps.forEach((first, n) => {
    const row = make("div", "step");
    row.dataset.n = n + 1;
    for (let i = first; i < ends[n]; i++) {
      if (t.likes.has(i)) row.append(make("del", "", visible(t.likes.get(i))));
      const span = token(t, i, at, i === first);
      at += t.pieces[i].length;
      spans.push(span);
      row.append(span);
    }
    rows.push([row, ends[n] - first]);
  });
  for (let i = 0; i < rows.length;) {  // what is out of sight is laid out when it comes into sight
    const chunk = make("div", "chunk");
    let size = 0;
    while (i < rows.length && (!size || size + rows[i][1] <= CHUNK)) {
      chunk.append(rows[i][0]);
      size += rows[i++][1];
    }
    chunk.style.containIntrinsicBlockSize = `auto ${Math.ceil(size / 9) * 1.8}em`;
    chunks.push(chunk);
  }
  const view = {trace: t, spans, chunks};
  colour(view, mode);
  return view;
}

function colour(view, mode) {
  const of = colours[mode], t = view.trace;
  view.spans.forEach((span, i) => {
    const [strength, name] = of(t, i), h = Math.min(1, strength);
    for (const one of ["cool", "violet", "weight"]) span.classList.toggle(one, name === one);
    if (h > 0.005) span.style.setProperty("--h", h.toFixed(2));
    else span.style.removeProperty("--h");
    span.classList.toggle("low", mode === "student" && logprob(t.student[i]) < IMPROBABLE);
  });
}

function token(t, i, at, begins) {
  const piece = t.pieces[i], span = make("span", "t");
  if (t.own?.has(i)) span.classList.add("own");
  else if (t.likes.has(i)) span.classList.add("other");
  if (/^\p{Default_Ignorable_Code_Point}*$/u.test(piece)) span.classList.add("empty");
  // Nothing that turns the direction of text may reach beyond its token.
  if (/[\u202a-\u202e\u2066-\u2069]/.test(piece)) span.style.unicodeBidi = "isolate";
  // Signs for line breaks, tabs, and for spaces that one would not see: at an end of a line, or several in a row.
  for (const part of piece.split(/(\n|\t| +)/)) {
    if (!part) continue;
    const around = [begins ? "\n" : t.text[at - 1] ?? "\n", t.text[at += part.length] ?? "\n"];
    const spaces = part.startsWith(" ") && (part.length > 1 || around.some(c => c === " " || c === "\n")) ? "sp" : "";
    const name = {"\n": "nl", "\t": "tab"}[part] ?? spaces;
    span.append(name ? make("i", name, part) : visible(part));
    begins = false;
  }
  return span;
}

const visible = text => text.replace(/[\0-\x08\x0b-\x1f]/g, c => String.fromCodePoint(0x2400 + c.codePointAt(0)));
