// What rsd weigh found of a trace: each step, the student's own next step from the same place, and the weight.
let weightsOpen = false;  // as the reader left it, on the next problem as well
const weight = value => value === null ? "–" : value.toFixed(2);

function weightList(t, role) {
  const {places, weights, teacher, student, actions, proposals} = t.weighed;
  const head = make("tr", "", ...["step, weight", "teacher's step", "student's action"].map(label => {
    const made = make("th", "", label);
    made.scope = "col";
    return made;
  }));
  const rows = weights.map((w, n) => {
    const begins = make("th", "", make("span", "number", n + 1), " ", cell(weight(w), w, "weight"));
    begins.scope = "row";
    const step = t.text.slice(places[2 * n], places[2 * n + 1]);
    const validity = `validity ${number(teacher[n])}`;
    const theirs = action("teacher's step", step, proposals ? "" : validity);
    if (proposals) theirs.append(make("div", "proposal", ...said("its own next step: ", proposals[n], validity)));
    return make("tr", "", begins, theirs,
      action("student's action", actions[n], `validity ${number(student[n])}`));
  });
  const table = make("table", "", make("thead", "", head), make("tbody", "", ...rows));
  const shown = make("div", "weighed", table);
  shown.tabIndex = 0;
  shown.setAttribute("role", "group");
  shown.setAttribute("aria-label", `${role}: weights`);
  const mean = weights.reduce((sum, w) => sum + w, 0) / weights.length;
  const told = `${weights.length} step${weights.length === 1 ? "" : "s"}, mean weight ${weight(mean)}`;
  const list = make("details", "weights", make("summary", "", `Weights and the student's actions: ${told}`), shown);
  list.open = weightsOpen;
  list.addEventListener("toggle", () => { weightsOpen = list.open; });
  return list;
}

function action(label, text, validity) {  // of the teacher or the student, in one step
  const made = make("td", "", ...said("", text, validity));
  made.dataset.l = label;
  return made;
}

function said(before, text, validity) {
  const told = text === null ? "–" : text.trim() ? make("code", "", visible(text.trim())) : "(no text)";
  return [make("div", "", before, told), make("small", "", validity)];
}

function openWeights() {
  weightsOpen = true;
  for (const list of document.querySelectorAll(".weights")) list.open = true;
}
