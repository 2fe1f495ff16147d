// The box with a token's numbers: where a mouse points, or for good where one has clicked or tapped.
const box = at("box");
let pointed = null;  // {view, i, pinned}

function point(view, i, pinned) {
  hide();
  pointed = {view, i, pinned};
  view.last = i;
  view.spans[i].classList.add("at");
  const t = view.trace;
  const spelled = JSON.stringify(t.pieces[i])
    .replace(/[\p{Cf}\p{Zl}\p{Zp}]/gu, c => `\\u{${c.codePointAt(0).toString(16)}}`);
  const list = make("dl");
  const row = (name, ...value) => list.append(make("dt", "", name), make("dd", "", ...value));
  row("student", both(t.student[i]));
  if (Math.abs(t.local[i] - t.student[i]) > 1) row("in its window", both(t.local[i]));
  if (t.weight) row("weight", weight(weighs(t, i)));
  if (t.teacher && t.unknown.has(i)) {
    row("when made", "this text was other tokens");
  } else if (t.teacher) {
    row("teacher", t.teacher[i] === UNKNOWN ? "no log-prob for this token" : both(t.teacher[i]));
    row("from", t.own.has(i) ? "the student (a fallback)" : "the teacher");
    row("teacher's likeliest", t.likes.has(i) ? make("code", "", JSON.stringify(t.likes.get(i))) : "this token");
  }
  const head = make("div", "boxhead", make("code", "", spelled));
  if (pinned) {
    const button = (label, text, act) => {
      const made = make("button", "", text);
      made.type = "button";
      made.setAttribute("aria-label", label);
      made.addEventListener("click", act);
      return made;
    };
    head.append(make("span", "boxkeys", button("previous token", "‹", () => move(-1)),
      button("next token", "›", () => move(1)), button("close", "×", hide)));
  }
  box.replaceChildren(head, list);
  box.classList.toggle("pinned", pinned);
  box.hidden = false;
  place();
  const under = view.spans[i].getClientRects()[0].bottom + 8 - box.getBoundingClientRect().top;
  if (pinned && getComputedStyle(box).bottom === "8px" && under > 0) scrollBy(0, under);  // the box is at the bottom
}

function both(level) {
  const log = logprob(level), p = Math.exp(log), below = level === LEVELS ? "≤ " : "";
  const told = p < 0.001 ? p.toExponential(0) : Number(p.toPrecision(2));  // in as many digits as a byte knows
  return `p ${below}${told}, log-prob ${below}${log.toFixed(log > -1 ? 2 : 1)}`.replace(/-(?=\d)/g, "−");
}

function move(by) {
  const {view, i} = pointed, next = Math.min(Math.max(i + by, 0), view.spans.length - 1);
  view.spans[next].scrollIntoView({block: "nearest"});
  point(view, next, true);
}

function place() {
  const token = pointed?.view.spans[pointed.i].getClientRects()[0];
  if (!token) return;
  const below = token.bottom + 8 + box.offsetHeight <= innerHeight;
  const top = Math.max(4, below ? token.bottom + 8 : token.top - 8 - box.offsetHeight);
  const left = Math.max(4, Math.min(token.left, document.documentElement.clientWidth - box.offsetWidth - 8));
  box.style.setProperty("--top", `${top}px`);  // of no use on a narrow screen, where it is at the bottom
  box.style.setProperty("--left", `${left}px`);
}

function hide() {
  box.hidden = true;
  pointed?.view.spans[pointed.i]?.classList.remove("at");  // before the first token, at none
  pointed = null;
}

function tokenAt(event) {
  const span = event.target.closest?.(".step .t");
  const view = span?.closest(".trace").view;
  return view && [view, view.spans.indexOf(span)];
}

// A finger has no place to be in between: its pointerleave follows the tap at once, and must not hide the box.
at("sides").addEventListener("pointerover", event => {
  if (event.pointerType !== "mouse" || pointed?.pinned) return;
  const found = tokenAt(event);
  if (found) point(...found, false);
  else hide();
});
at("sides").addEventListener("pointerleave", event => {
  if (event.pointerType === "mouse" && !pointed?.pinned) hide();
});
document.addEventListener("click", event => {
  if (!event.target.isConnected || box.contains(event.target)) return;
  const found = tokenAt(event);
  if (found) point(...found, true);
  else hide();
});
at("sides").addEventListener("keydown", event => {
  const view = event.target.view, by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!by || !view) return;
  event.preventDefault();
  if (pointed?.view !== view) pointed = {view, i: (view.last ?? -1)};
  move(by);
});
addEventListener("scroll", place, {passive: true, capture: true});
addEventListener("resize", place, {passive: true});
