"use strict";
const PAGE = 10, FAINTEST = Math.log(1e5), SHORT = 600;
const at = id => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const byId = new Intl.Collator("en", {numeric: true});
const last = -Infinity; // of problems without a difference
const orders = {
  gain: (p, q) => (q.delta ?? last) - (p.delta ?? last),
  loss: (p, q) => (p.delta ?? -last) - (q.delta ?? -last),
  id: (p, q) => byId.compare(p.id, q.id),
  length: (p, q) => q.length - p.length,
};
let found = [], page = 0;

function make(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);  // strings become text
  return made;
}

function number(value, sign = "") {
  if (!value) return value === null ? "–" : "0";
  const size = Math.abs(value);
  const text = size < 1e-4 ? value.toExponential(2) : size < 1000 ? value.toPrecision(3) : value.toFixed(0);
  return (value > 0 ? sign : "") + text.replace(/-/g, "−");
}

function text(problem) {  // what the search looks in
  problem.text ??= [problem.id, problem.prompt, ...problem.sides.flat().map(t => t.pieces.join(""))]
    .join("\0").toLowerCase();
  return problem.text;
}

function search() {
  const wanted = at("search").value.trim().toLowerCase();
  found = data.problems.filter(p => text(p).includes(wanted)).sort(orders[at("sort").value]);
  show(0);
}

function show(wanted) {
  page = wanted;
  hide();
  const from = page * PAGE, to = Math.min(from + PAGE, found.length);
  at("list").replaceChildren(...found.slice(from, to).map(article));
  const of = found.length < data.problems.length ? `${found.length} found` : found.length;
  at("status").textContent = found.length ? `problems ${from + 1}–${to} of ${of}` : "no problem matches";
  at("previous").disabled = page === 0;
  at("next").disabled = to === found.length;
}

function turn(by) {
  show(page + by);
  document.querySelector(".key").scrollIntoView();
}

function article(p) {
  const title = make("h3", "", make("bdi", "", p.id));
  const scores = make("p", "scores", `Local Naturalness ${number(p.ln[0])} → ${number(p.ln[1])}, difference `,
    make("b", "", number(p.delta, "+")));
  const made = make("article", "problem", title, scores);
  if (p.prompt) made.append(make("p", "prompt", p.prompt));
  made.append(make("div", "sides", side(p, 1), side(p, 0)));
  if (p.sides.flat().every(t => t.pieces.length < SHORT)) made.classList.add("short");
  return made;
}

function side(p, which) {
  const name = make("h4", "", make("bdi", "", data.names[which]), which ? " (candidate)" : " (baseline)");
  const meta = make("p", "meta"), shown = make("div", "trace"), traces = p.sides[which];
  shown.tabIndex = 0;
  shown.setAttribute("role", "group");
  shown.setAttribute("aria-label", which ? "candidate's trace" : "baseline's trace");
  const facts = make("span");
  const draw = t => {
    const known = t.correct === null ? "" : t.correct ? " · right" : " · wrong";
    facts.textContent = `LN ${number(t.ln)} · ${t.pieces.length} tokens · ${t.steps.length} steps${known}`;
    shown.replaceChildren(...tokens(t));
    shown.trace = t;
    shown.token = -1;
  };
  if (p.of[which] > 1) {
    const select = make("select");
    select.setAttribute("aria-label", "trace");
    traces.forEach((_, i) => select.add(new Option(`trace ${i + 1} of ${p.of[which]}`, i)));
    select.addEventListener("change", () => draw(traces[select.value]));
    meta.append(select);
  }
  meta.append(facts);
  draw(traces[0]);
  return make("section", "", name, meta, shown);
}

function tokens(t) {
  const own = new Set(t.own), steps = new Set(t.steps);
  return t.pieces.map((piece, i) => {
    const span = make("span", "t");
    const heat = Math.min(1, -t.student[i] / 1000 / FAINTEST);
    if (heat > 0.005) span.style.setProperty("--h", heat.toFixed(2));
    if (own.has(i)) span.classList.add("own");
    if (steps.has(i)) span.classList.add("step");
    if (/^\p{Default_Ignorable_Code_Point}*$/u.test(piece)) span.classList.add("empty");
    piece.split("\n").forEach((part, n) => {
      if (n) span.append(make("i", "", "⏎"), "\n");
      span.append(part.replace(/[\0-\x08\x0b-\x1f]/g, c => String.fromCodePoint(0x2400 + c.codePointAt(0))));
    });
    // Nothing that turns the direction of text may reach beyond its token.
    if (/[\u202a-\u202e\u2066-\u2069]/.test(piece)) span.style.unicodeBidi = "isolate";
    return span;
  });
}

function point(shown, i) {
  const t = shown.trace, span = shown.children[i];
  hide();
  shown.token = i;
  span.classList.add("at");
  const spelled = JSON.stringify(t.pieces[i])
    .replace(/[\p{Cf}\p{Zl}\p{Zp}]/gu, c => `\\u{${c.codePointAt(0).toString(16)}}`);
  const list = make("dl");
  const row = (name, value) => list.append(make("dt", "", name), make("dd", "", value));
  const both = logprob => {
    const log = logprob / 1000;
    return `log-prob ${log.toFixed(3).replace("-", "−")}, p ${number(Math.exp(log))}`;
  };
  row("student", both(t.student[i]));
  row("in its window", both(t.local[i]));
  if (t.teacher && t.unknown.includes(i)) {
    row("when made", "this text was other tokens");
  } else if (t.teacher) {
    const own = t.own.indexOf(i);
    row("teacher", t.teacher[i] === null ? "no log-prob for this token" : both(t.teacher[i]));
    row("proposed by", own < 0 ? "the teacher" : "the student (fallback)");
    if (own >= 0 && t.proposed[own] !== null)
      row("teacher's likeliest", make("code", "", JSON.stringify(t.proposed[own])));
  }
  const box = at("box");
  box.replaceChildren(make("code", "", spelled), list);
  box.hidden = false;
  place();
}

function place() {
  const box = at("box"), token = document.querySelector(".t.at")?.getClientRects()[0];
  if (!token) return;
  const below = token.bottom + 8 + box.offsetHeight <= innerHeight;
  box.style.top = `${Math.max(4, below ? token.bottom + 8 : token.top - 8 - box.offsetHeight)}px`;
  box.style.left = `${Math.max(4, Math.min(token.left, document.documentElement.clientWidth - box.offsetWidth - 8))}px`;
}

function hide() {
  at("box").hidden = true;
  document.querySelector(".t.at")?.classList.remove("at");
}

at("list").addEventListener("pointerover", event => {
  const span = event.target.closest(".t");
  if (span) point(span.parentElement, [...span.parentElement.children].indexOf(span));
  else hide();
});
at("list").addEventListener("pointerleave", hide);
at("list").addEventListener("focusout", hide);
at("list").addEventListener("keydown", event => {
  const shown = event.target, by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (event.key === "Escape") hide();
  if (!by || !shown.trace) return;
  event.preventDefault();
  const i = Math.min(Math.max(shown.token + by, 0), shown.children.length - 1);
  shown.children[i].scrollIntoView({block: "nearest"});
  point(shown, i);
});
addEventListener("scroll", place, {passive: true, capture: true});
at("search").addEventListener("input", search);
at("sort").addEventListener("change", search);
at("previous").addEventListener("click", () => turn(-1));
at("next").addEventListener("click", () => turn(1));
at("controls").addEventListener("submit", event => event.preventDefault());
at("controls").hidden = false;
search();
