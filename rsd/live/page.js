"use strict";
const FAINTEST = Math.log(1e5), SHOWN = 8, PATIENCE = 3000, AGAIN = 5000;
const OVER = {finished: "finished", stopped: "stopped", gone: "ended without a word: killed, perhaps"};
const at = id => document.getElementById(id);
const later = milliseconds => new Promise(done => setTimeout(done, milliseconds));
let run = null, seen = null, last = null, waiting = [], pinned = false, focused = null;

function make(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children);  // strings become text
  return made;
}

const key = t => JSON.stringify([t.id, t.generation]);
const whole = new Intl.NumberFormat("en");
const count = value => whole.format(Math.round(value));
const share = value => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;

function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function probability(logprob) {
  const p = Math.exp(logprob / 1000);
  return (p < 1e-3 ? p.toExponential(1) : p.toPrecision(3)).replace("-", "−");
}

async function follow() {
  for (;;) {
    let state;
    try {
      const reply = await fetch(seen === null ? "/state" : `/state?after=${seen}`, {signal: AbortSignal.timeout(20000)});
      if (!reply.ok) throw new Error(reply.statusText);
      state = await reply.json();
    } catch {  // a job that is killed, and started anew at the same port, is gone on with
      if (last === null || !(last.phase in OVER))
        say(`The job has not answered since ${new Date().toLocaleTimeString()}: it has ended, or its machine is busy.`, true);
      await later(last && last.phase in OVER ? AGAIN : PATIENCE);
      continue;
    }
    if (run !== null && state.run !== run) return location.reload();
    run = state.run;
    seen = state.number;
    last = state;
    show(state);
    if (state.phase === "finished") return;
    if (state.phase in OVER) await later(AGAIN);
  }
}

function say(text, over = false) {
  if (at("status").textContent !== text) at("status").textContent = text;
  at("status").classList.toggle("over", over);
}

function show(state) {
  const about = state.about, totals = state.totals, over = OVER[state.phase];
  at("out").textContent = about.out;
  at("about").textContent = `${about.teacher} → ${about.student}, threshold ${about.threshold}`;
  const done = state.done ?? totals.rows, known = state.total !== null;
  const of = known ? `${count(done)} of ${count(state.total)}` : count(done);
  if (over) say(`The job has ${over}${state.message && `: ${state.message}`}`, true);
  else say(state.phase === "starting" ? "Loading the models …" : `Making traces: ${of}`);
  document.title = known && !over ? `${Math.floor(100 * done / Math.max(state.total, 1))} % · ${about.out}` : `${over ? state.phase : "…"} · ${about.out}`;
  at("bar").hidden = !known;
  if (known) Object.assign(at("bar"), {max: Math.max(state.total, 1), value: done});
  facts(state, totals, of, over);
  const there = new Set([...waiting, ...[...at("list").children].map(made => made.trace)].map(key));
  const fresh = state.traces.reverse().filter(t => !there.has(key(t)));  // what was counted anew is sent anew
  if (fresh.length) {
    at("traces").hidden = false;
    waiting = [...fresh, ...waiting].slice(0, SHOWN);
  }
  draw();
}

function facts(state, totals, of, over) {
  const judged = totals.correct + totals.wrong, known = totals.problems - totals.unknown;
  const list = [
    ["Traces", of, state.behind ? `${count(totals.rows)} counted so far` : `${count(totals.tokens)} tokens`],
    ["Rate", state.rate === null ? "–" : count(state.rate), `tokens a second${state.several ? ", of all processes" : ""}`, state.rates],
    over ? ["Time", time(state.seconds), "of this run"] : ["Time left", time(state.left), state.left === null ? "" : "at this rate"],
    ["Acceptance", share(totals.acceptance_rate), "of the teacher's proposals"],
    ["Fallback", share(totals.fallback_rate), "tokens of the student's own"],
    ["Right", judged ? share(totals.correct / judged) : "–", judged ? `${count(totals.correct)} right, ${count(totals.wrong)} wrong` : "no verdicts"],
    ["Problems solved", known ? `${count(totals.solved)} of ${count(known)}` : "–", totals.unknown ? `${count(totals.unknown)} not known` : ""],
    ["Errors", count(totals.errors), (totals.first_error ?? "").slice(0, 200)],
  ];
  at("facts").replaceChildren(...list.map(([name, value, note, rates]) => {
    const figure = make("b", name === "Errors" && totals.errors ? "wrong" : "", value);
    const made = make("div", "", make("dt", "", name), make("dd", "", figure, make("small", "", note)));
    if (rates?.length > 4) made.lastChild.append(line(rates));
    return made;
  }));
}

function line(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), most = Math.max(...values, 1);
  svg.setAttribute("viewBox", `0 0 ${values.length - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  path.setAttribute("points", values.map((v, i) => `${i},${(19 - 18 * v / most).toFixed(1)}`).join(" "));
  svg.append(path);
  return svg;
}

// Nothing moves under a reader: while a trace is pointed at, or held, newer ones wait.
function draw() {
  const list = at("list"), busy = pinned || list.matches(":hover") || list.contains(document.activeElement);
  const held = at("hold").getAttribute("aria-pressed") === "true";
  if (waiting.length && !held && !(busy && list.children.length)) {
    list.prepend(...waiting.map(article));
    while (list.children.length > SHOWN) list.lastChild.remove();
    waiting = [];
  }
  at("waiting").textContent = waiting.length ? `${waiting.length === SHOWN ? `${SHOWN} or more` : waiting.length} newer wait` : "";
}

function article(t) {
  const verdict = t.error ? make("span", "wrong", "error") : t.correct === null ? "" :
    make("span", t.correct ? "right" : "wrong", t.correct ? "right" : "wrong");
  const meta = make("p", "meta", verdict);
  if (!t.error) {
    const ended = t.finish_reason === "stop" ? [] : [`ended by ${t.finish_reason}`];
    const said = [`${count(t.num_tokens ?? 0)} tokens`, `acceptance ${share(t.acceptance_rate)}`, `fallback ${share(t.fallback_rate)}`, ...ended];
    meta.append(...said.map(text => make("span", "", text)));
  }
  const title = make("h3", "", make("bdi", "", t.id), t.generation ? ` · ${t.generation}` : "");
  const shown = make("div", "trace");
  shown.tabIndex = 0;
  shown.setAttribute("role", "group");
  shown.setAttribute("aria-label", "trace");
  if (t.error) shown.append(t.error);
  else if (t.pieces) shown.append(...tokens(t, shown));
  else shown.append(t.text);
  const made = make("article", "", title, meta, make("p", "prompt", t.prompt), shown);
  made.trace = t;
  return made;
}

function tokens(t, shown) {
  const own = new Set(t.own);
  shown.trace = t;
  shown.token = -1;
  shown.spans = t.pieces.map((piece, i) => {
    const span = make("span", "t");
    span.index = i;
    const heat = t.student[i] === null ? 1 : Math.min(1, -t.student[i] / 1000 / FAINTEST);
    if (heat > 0.005) span.style.setProperty("--h", heat.toFixed(2));
    if (own.has(i)) span.classList.add("own");
    if (/^\p{Default_Ignorable_Code_Point}*$/u.test(piece)) span.classList.add("empty");
    piece.split("\n").forEach((part, n) => {
      if (n) span.append(make("i", "nl"), "\n");
      span.append(part.replace(/[\0-\x08\x0b-\x1f]/g, c => String.fromCodePoint(0x2400 + c.codePointAt(0))));
    });
    // Nothing that turns the direction of text may reach beyond its token.
    if (/[\u202a-\u202e\u2066-\u2069]/.test(piece)) span.style.unicodeBidi = "isolate";
    return span;
  });
  const all = t.before ? [make("span", "muted", t.before), ...shown.spans] : [...shown.spans];
  if (t.cut !== null) all.splice(all.length - t.pieces.length + t.cut, 0, make("span", "gap", `… ${count(t.left_out)} tokens are left out here …`));
  return all;
}

function point(shown, i) {
  const t = shown.trace, list = make("dl"), own = t.own.includes(i);
  hide();
  shown.token = i;
  focused = shown.spans[i];
  focused.classList.add("at");
  const spelled = piece => make("code", "", JSON.stringify(piece)
    .replace(/[\p{Cf}\p{Zl}\p{Zp}]/gu, c => `\\u{${c.codePointAt(0).toString(16)}}`));
  const row = (name, value) => list.append(make("dt", "", name), make("dd", "", value));
  row("student", t.student[i] === null ? "p 0" : `p ${probability(t.student[i])}`);
  row("teacher", t.teacher[i] === null ? "not known for this token" : `p ${probability(t.teacher[i])}`);
  row("stands by", own ? "the student (fallback)" : "the teacher's proposal");
  if (i in t.wanted) row(own ? "the teacher had wanted" : "the teacher's likeliest", spelled(t.wanted[i]));
  at("box").replaceChildren(spelled(t.pieces[i]), list);
  at("box").hidden = false;
  place();
}

function place() {
  const box = at("box"), token = focused?.getClientRects()[0];
  if (!token) return;
  const below = token.bottom + 8 + box.offsetHeight <= innerHeight;
  box.style.top = `${Math.max(4, below ? token.bottom + 8 : token.top - 8 - box.offsetHeight)}px`;
  box.style.left = `${Math.max(4, Math.min(token.left, document.documentElement.clientWidth - box.offsetWidth - 8))}px`;
}

function hide() {
  at("box").hidden = true;
  focused?.classList.remove("at");
  focused = null;
}

// A mouse shows a token's box in passing; a tap or a click lets it stay until the next one, anywhere.
document.addEventListener("pointerover", event => {
  if (event.pointerType === "touch" || pinned) return;
  const span = event.target.closest?.(".trace .t");
  if (span) point(span.parentElement, span.index);
  else hide();
});
document.addEventListener("click", event => {
  const span = event.target.closest?.(".trace .t");
  const again = span && pinned && span === focused;
  pinned = Boolean(span) && !again;
  if (pinned) point(span.parentElement, span.index);
  else hide();
});
at("list").addEventListener("focusout", () => { if (!pinned) hide(); });
at("list").addEventListener("keydown", event => {
  const shown = event.target, by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (event.key === "Escape") { pinned = false; hide(); }
  if (!by || !shown.trace) return;
  event.preventDefault();
  const i = Math.min(Math.max(shown.token + by, 0), shown.spans.length - 1);
  shown.spans[i].scrollIntoView({block: "nearest"});
  point(shown, i);
});
at("hold").addEventListener("click", () => {
  at("hold").setAttribute("aria-pressed", String(at("hold").getAttribute("aria-pressed") !== "true"));
  draw();
});
addEventListener("scroll", place, {passive: true, capture: true});
addEventListener("resize", place, {passive: true});
follow();
