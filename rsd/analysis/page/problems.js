// Which problems there are, which one is shown, and how one gets to another.
const STEP = 200;  // rows of the list that are made at once
const byId = new Intl.Collator("en", {numeric: true});
const LN = 0, side = two ? 1 : 0;
let found = [], current = null, range = null, listed = 0, views = [], shownNow = 0, asked = 0;
const errors = page.errors.map(e => ({...e, name: e.key, scores: [], right: [], values: [], gain: null}));
const right = (p, i) => p.right[i] === 1, wrong = (p, i) => p.right[i] === 0;
const kinds = {
  all: ["all problems", () => true],
  ...(two ? {
    right: ["right on both sides", p => right(p, 0) && right(p, 1)],
    worse: ["right → wrong", p => p.right[1] < p.right[0] && p.right[1] !== null],
    better: ["wrong → right", p => p.right[1] > p.right[0] && p.right[0] !== null],
    wrong: ["wrong on both sides", p => wrong(p, 0) && wrong(p, 1)],
    loss: ["less natural than before", p => p.gain !== null && p.gain < 0],
  } : {
    right: ["right", p => right(p, 0)],
    wrong: ["wrong", p => p.right[0] !== null && p.right[0] < 1],
  }),
  own: ["with fallbacks", p => p.own > 0],
  instead: ["with something else in the place of the teacher's likeliest", p => p.instead > 0],
};

function fillControls() {
  const option = (label, value) => new Option(label, value);
  for (const [name, [label, is]] of Object.entries(kinds)) {
    const count = page.problems.filter(is).length;
    if (count || name === "all") at("show").add(option(`${label} (${count})`, name));
  }
  if (errors.length) at("show").add(option(`errors (${errors.length})`, "errors"));
  const counts = new Array(page.values.length).fill(0);
  for (const p of page.problems) for (const v of p.values) counts[v]++;
  const columns = Map.groupBy(page.values.keys(), v => page.values[v][0]);
  for (const [column, values] of columns) {
    const group = make("optgroup");
    group.label = column;
    values.sort((a, b) => byId.compare(page.values[a][1], page.values[b][1]));
    for (const v of values) group.append(option(`${column}: ${page.values[v][1]} (${counts[v]})`, v));
    at("with").append(group);
  }
  at("with").parentElement.hidden = !columns.size;
  at("sort").append(...page.metrics.map((m, i) => option(m.label, i)), option("id", "id"));
  if (page.weighed) at("colour").add(option("weight", "weight"));
  at("of-label").hidden = !two;
  if (!two) at("of").value = "0";
}

function figure(p) {  // of a problem: what the list is sorted by
  const by = at("sort").value === "id" ? LN : Number(at("sort").value), of = at("of").value;
  if (of !== "gain") return p.scores[of]?.[by] ?? null;
  if (by === LN) return p.gain;
  const [a, b] = p.scores.map(scores => scores[by]);
  return a == null || b == null ? null : b - a;
}

function sorted(problems) {
  const up = at("order").getAttribute("aria-pressed") === "true" ? 1 : -1;
  if (at("sort").value === "id") return problems.sort((p, q) => -up * byId.compare(p.name, q.name));
  const values = new Map(problems.map(p => [p, figure(p)]));
  return problems.sort((p, q) => {
    const a = values.get(p), b = values.get(q);
    return a === null || b === null ? (a === null) - (b === null) : up * (a - b);
  });
}

function candidates() {  // by everything but the search
  if (at("show").value === "errors") return [...errors];
  const [, is] = kinds[at("show").value], value = at("with").value;
  return page.problems.filter(p => is(p) && (value === "" || p.values.includes(Number(value)))
    && (!range || (p.gain !== null && p.gain >= range[0] && p.gain <= range[1])));
}

async function filter() {
  const mine = ++asked, wanted = at("search").value.trim().toLowerCase();
  let some = candidates();
  if (wanted) {
    const matching = [];
    for (const [i, p] of some.entries()) {
      if (await text(p).then(t => t.includes(wanted))) matching.push(p);
      if (mine !== asked) return;  // another search has begun
      if (i % 500 === 499) at("status").textContent = `searched ${i + 1} of ${some.length} problems`;
    }
    some = matching;
  }
  found = sorted(some);
  const [down, up] = at("sort").value === "id" ? ["A to Z", "Z to A"] : ["greatest first", "smallest first"];
  at("order").textContent = at("order").getAttribute("aria-pressed") === "true" ? `↑ ${up}` : `↓ ${down}`;
  const all = at("show").value === "errors" ? errors.length : page.problems.length;
  at("status").textContent = !found.length ? "no problem matches"
    : found.length === all ? `${all} problem${all === 1 ? "" : "s"}` : `${found.length} of ${all} problems`;
  at("download").disabled = !found.length;
  at("range").hidden = !range;
  if (range) at("range").textContent = `${two ? "difference" : "naturalness"} ${number(range[0])} to ${number(range[1])} ×`;
  at("list").replaceChildren();
  listed = 0;
  more();
  mark();
}

async function text(p) {  // what the search looks in
  if (p.text === undefined) {
    const {prompt, sides} = p.error ? {prompt: p.prompt, sides: [[{text: p.error}]]} : await unpack(blocks[p.block]);
    p.text = [p.name, prompt, ...sides.flat().map(t => t.text)].join("\0").toLowerCase();
  }
  return p.text;
}

function more() {  // a part of the list, as far as it is looked at
  at("list").append(...found.slice(listed, listed + STEP).map(p => {
    const link = make("a", "", make("bdi", "", p.name));
    link.href = address(p);
    link.append(make("span", "told", p.error ? "error" : number(figure(p), at("of").value === "gain" ? "+" : "")));
    const share = p.right[side];
    if (share != null)
      link.append(make("span", share === 1 ? "better" : "worse", share === 1 ? "right" : share ? `${Math.round(100 * share)} %` : "wrong"));
    return make("li", "", link);
  }));
  listed = Math.min(listed + STEP, found.length);
}

const address = p => `#${p.error ? "e" : "t"}=${encodeURIComponent(p.key)}`;

function mark() {  // where the problem that is shown stands
  at("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const i = found.indexOf(current);
  while (i >= listed && listed < found.length) more();
  at("place").textContent = i < 0 ? `not among the ${found.length}` : `${i + 1} of ${found.length}`;
  at("previous").disabled = i === 0 || !found.length;
  at("next").disabled = i === found.length - 1;
  const link = i < 0 ? null : at("list").children[i].firstChild, list = at("list");
  if (!link) return;
  link.setAttribute("aria-current", "true");
  const top = link.offsetTop, bottom = top + link.offsetHeight;  // in the list
  if (top < list.scrollTop || bottom > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 3;
}

function turn(by) {
  const i = found.indexOf(current), next = found[i < 0 ? 0 : i + by];
  if (!next) return;
  history.replaceState(null, "", address(next));
  display(next);
}

async function display(p, chosen = [0, 0]) {
  const mine = ++shownNow, problem = p.error ? {prompt: p.prompt, sides: []} : await read(p);
  if (mine !== shownNow) return;
  hide();
  current = p;
  at("name").replaceChildren(make("bdi", "", p.name));
  at("link").href = address(p);
  at("prompt").textContent = problem.prompt;
  at("prompt").hidden = !problem.prompt;
  at("facts").replaceChildren(...facts(p));
  views = [];
  at("sides").replaceChildren(...problem.sides.map((traces, which) => column(p, traces, which, chosen[which])));
  redraw();
  mark();
}

function facts(p) {
  if (p.error) return [`could not be scored${two ? ` in the ${["baseline", "candidate"][p.side]}` : ""}: `, make("bdi", "", p.error)];
  const last = p.scores[side][LN];
  if (!two) return [`Local Naturalness ${number(last)}`];
  const how = p.gain === null || p.gain === 0 ? "" : p.gain > 0 ? "better" : "worse";
  return [`Local Naturalness ${number(p.scores[0][LN])} → ${number(last)}, `,
    make("b", how, `${number(p.gain, "+")}${how && ` ${how}`}`)];
}

function column(p, traces, which, chosen) {
  const role = two ? ["baseline", "candidate"][which] : "traces";
  const name = make("h3", "", make("bdi", "", page.names[which]), two ? ` (${role})` : "");
  const meta = make("p", "meta"), told = make("span"), shown = make("div", "trace"), below = make("div");
  shown.tabIndex = 0;
  shown.setAttribute("role", "group");
  shown.setAttribute("aria-label", `${role}: tokens, to be walked through with the arrow keys`);
  const draw = i => {
    const t = traces[i], view = drawn(t, at("colour").value);
    const verdict = t.right === null ? [] : [" · ", make("b", t.right ? "better" : "worse", t.right ? "right" : "wrong")];
    const ln = p.of[which] > 1 ? ` · naturalness ${number(t.scores[LN])}` : "";
    told.replaceChildren(`${t.n} tokens · ${t.steps.length} steps${ln}`, ...verdict);
    shown.replaceChildren(...view.chunks);
    shown.view = view;
    shown.scrollTop = 0;
    below.replaceChildren(...(t.weighed ? [weightList(t, role)] : []));
    views[which] = view;
  };
  if (p.of[which] > 1) {
    const select = make("select");
    select.setAttribute("aria-label", `trace of the ${role}`);
    traces.forEach((_, i) => select.add(new Option(`trace ${i + 1} of ${p.of[which]}`, i)));
    select.value = chosen;
    select.addEventListener("change", () => { hide(); draw(select.value); redraw(); });
    meta.append(select, " ");
  }
  meta.append(told);
  draw(traces[chosen] ? chosen : 0);
  return make("section", "", name, meta, shown, below);
}

function redraw() {
  const mode = at("colour").value;
  views.forEach(view => colour(view, mode));
  const traces = views.map(view => view.trace);
  at("legend").replaceChildren(...(traces.length ? legend(mode, traces) : []));
  at("signs").replaceChildren(...(traces.length ? signs(traces) : []));
}

function follow(first) {  // where a fragment leads
  const asks = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  if (asks.has("from")) {
    range = [Number(asks.get("from")), Number(asks.get("to"))];
    at("show").value = "all";
    filter().then(() => found.length && display(found[0]));
  }
  const among = asks.has("e") ? errors : page.problems, key = asks.get("t") ?? asks.get("e");
  const p = among.find(p => p.key === key);
  const shown = p ?? (first && !asks.has("from") ? page.problems[page.story] ?? errors[0] : null);
  if (shown) display(shown);
  const top = at("pair").getBoundingClientRect().top;  // what a dot or a name leads to is to be seen
  if ((p || asks.has("from")) && (top < 0 || top > 0.6 * innerHeight)) at("pair").scrollIntoView({block: "start"});
}

async function download() {
  const button = at("download"), label = button.textContent, lines = [];
  for (const [i, p] of found.entries()) {
    if (p.error) lines.push({id: p.key, side: page.names[p.side], prompt: p.prompt, score_error: p.error});
    const {prompt, sides} = p.error ? {sides: []} : await unpack(blocks[p.block]);
    sides.forEach((traces, which) => traces.forEach(t => lines.push({id: t.id, generation: t.generation,
      side: page.names[which], prompt, completion: t.text, is_correct: t.right, ...t.columns,
      ...Object.fromEntries(page.metrics.map((m, k) => [m.name, t.scores[k]]))})));
    if (i % 100 === 99) button.textContent = `${i + 1} of ${found.length} problems …`;
  }
  button.textContent = label;
  const link = make("a");
  link.href = URL.createObjectURL(new Blob(lines.map(line => `${JSON.stringify(line)}\n`), {type: "application/jsonl"}));
  link.download = "traces.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function theme(next) {
  const dark = document.documentElement.dataset.theme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const now = next ? !dark : dark;
  if (next) document.documentElement.dataset.theme = now ? "dark" : "light";
  at("theme").textContent = now ? "Light" : "Dark";
}

at("controls").addEventListener("submit", event => event.preventDefault());
at("search").addEventListener("input", filter);
for (const id of ["show", "with", "sort", "of"]) at(id).addEventListener("change", filter);
at("order").addEventListener("click", () => {
  const up = at("order").getAttribute("aria-pressed") !== "true";
  at("order").setAttribute("aria-pressed", up);
  filter();
});
at("range").addEventListener("click", () => { range = null; history.replaceState(null, "", address(current)); filter(); });
at("list").addEventListener("scroll", () => {
  const list = at("list");
  if (list.scrollTop + 2 * list.clientHeight > list.scrollHeight && listed < found.length) more();
}, {passive: true});
at("previous").addEventListener("click", () => turn(-1));
at("next").addEventListener("click", () => turn(1));
at("colour").addEventListener("change", () => {
  if (at("colour").value === "weight") openWeights();
  redraw();
});
at("download").addEventListener("click", download);
at("theme").addEventListener("click", () => theme(true));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(false));
document.addEventListener("keydown", event => {
  if (event.key === "Escape") hide();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (event.key === "n" || event.key === "j") turn(1);
  if (event.key === "p" || event.key === "k") turn(-1);
});
addEventListener("hashchange", () => follow(false));
document.addEventListener("click", event => {  // what is shown already is looked for as well
  const link = event.target.closest("a[href]");
  if (link?.getAttribute("href") === location.hash) follow(false);
});
const wide = matchMedia("(min-width: 68rem)");
const fold = () => { at("problems").open = wide.matches; };
wide.addEventListener("change", fold);
fold();
theme(false);
at("theme").hidden = at("viewer").hidden = false;
fillControls();
filter().then(() => follow(true));
