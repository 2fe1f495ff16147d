"""Teacher selection and response selection by a score (arXiv 2510.03988, section 4)."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsd.analysis.compare import alignment, bootstrap, mean
from rsd.config import StudentConfig
from rsd.models.loading import dtype_of
from rsd.scoring.job import progress
from rsd.scoring.metrics import BY, METRICS
from rsd.scoring.responses import Response, read_responses
from rsd.scoring.scored_rows import named
from rsd.scoring.scorer import Scored, find_student, load_scorer, rules, stored
from rsd.scoring.verdicts import judged, judging_of
from rsd.settings import called
from rsd.terminal import HEADING, in_lines, marked, paint
from rsd.traces.given import Given, files_in


@dataclass(frozen=True)
class Ranked:
    """A teacher's mean score over the prompts that are compared, with its 95 % bootstrap interval.

    prompts: how many these are. answered: how many it has a scored response to. correct: the share of its
    responses that are right, where that is known.
    """

    teacher: str
    score: float
    ci: tuple[float, float]
    prompts: int
    answered: int
    correct: float | None


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select` chose.

    chosen: (teacher, response) by prompt. ranking: the best teacher first; over the prompts that all of
    them answered (`common` of them), or where there is none over each one's own.
    unscored, no_correct: prompts that nothing was chosen for. partial: prompts that only some answered.
    ties: prompts where another response scored the same; the first file's stands, and there the first row.
    otherwise: prompts where global log-prob would have chosen another response.
    errors: responses that could not be scored.
    """

    by: str
    chosen: Sequence[tuple[str, Scored]]
    ranking: Sequence[Ranked]
    prompts: int
    common: int
    unscored: int
    no_correct: int
    partial: int
    ties: int
    otherwise: int
    errors: int
    notices: Sequence[str]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The chosen rows, each with its teacher and its scores, and last by what."""
        for teacher, s in self.chosen:
            columns = dict(s.response.row) | s.columns() | {"teacher": teacher}
            columns.pop("selected_by", None)  # by an earlier selection
            yield columns | {"selected_by": self.by}

    @property
    def mix(self) -> dict[str, int]:
        """How many of the chosen responses are each teacher's."""
        counts = Counter(teacher for teacher, _ in self.chosen)
        return {r.teacher: counts[r.teacher] for r in self.ranking}


def select(teachers: Mapping[str, Sequence[Scored]], *, by: str = "ln", keep_incorrect: bool = False) -> Selection:
    """Rank teachers and choose for each prompt the best response among the correct ones.

    Args:
        teachers: scored responses by teacher.
        by: the score, one of `BY`.
        keep_incorrect: where no response is known to be correct, choose among all.

    Raises:
        ValueError: nothing could be scored, or no response is known to be correct.
    """
    if by not in BY:
        raise ValueError(f"cannot select by {by!r}: choose one of {', '.join(BY)}")
    metric = BY[by]
    key, _, notices = alignment(list(teachers.values()))
    prompts: dict[str, list[tuple[str, Scored]]] = defaultdict(list)
    for teacher, scored in teachers.items():
        for s in scored:
            prompts[key(s)].append((teacher, s))
    answers = {k: [(t, s) for t, s in of if not s.error and s.metrics[metric] is not None] for k, of in prompts.items()}
    if not any(answers.values()):
        why = next((s.error for of in prompts.values() for _, s in of if s.error), f"{metric} is not defined for any")
        raise ValueError(f"no response could be scored: {why}")
    right = {k: [(t, s) for t, s in of if s.response.row.get("is_correct") is True] for k, of in answers.items()}
    if not keep_incorrect and not any(right.values()):
        among_all = called("keep_incorrect", True)
        raise ValueError(
            f"no response is known to be correct: rsd verify finds out where there are answers, or use {among_all}"
        )

    chosen, ties, otherwise, no_correct = [], 0, 0, 0
    for k, of in answers.items():
        pool = right[k] or (of if keep_incorrect else [])
        if not pool:
            no_correct += bool(of)
            continue
        best = min(pool, key=lambda answer: _cost(answer[1], metric))
        ties += sum(_cost(s, metric) == _cost(best[1], metric) for _, s in pool) > 1
        otherwise += min(pool, key=lambda answer: _cost(answer[1], "global_logprob"))[1] is not best[1]
        chosen.append(best)
    common = [k for k, of in answers.items() if {t for t, _ in of} == set(teachers)]
    if not common:
        notices = [*notices, "no prompt was answered by all: the ranking compares scores over different prompts"]
    return Selection(
        by=metric,
        chosen=chosen,
        ranking=_rank(teachers, answers, common, metric),
        prompts=len(prompts),
        common=len(common),
        unscored=sum(not of for of in answers.values()),
        no_correct=no_correct,
        partial=sum(0 < len({t for t, _ in of}) < len(teachers) for of in answers.values()),
        ties=ties,
        otherwise=otherwise,
        errors=sum(bool(s.error) for scored in teachers.values() for s in scored),
        notices=notices,
    )


def _cost(s: Scored, metric: str) -> float:
    value = s.metrics[metric]
    return float("inf") if value is None else -value if METRICS[metric].better else value


def _rank(
    teachers: Mapping[str, Sequence[Scored]],
    answers: Mapping[str, Sequence[tuple[str, Scored]]],
    common: Sequence[str],
    metric: str,
) -> list[Ranked]:
    ranked = []
    for teacher, all_of in teachers.items():
        own = {k: [s for t, s in of if t == teacher] for k, of in answers.items()}
        answered = [k for k, of in own.items() if of]
        over = [own[k] for k in (common or answered)]
        if not over:
            continue
        if metric == "rsr":  # of a set: the traces' mean ranks over their mean surprisals, each summed
            values = np.array([[mean(of, "rsr"), mean(of, "global_logprob")] for of in over], dtype=float)
            values = np.stack([values[:, 0] * -values[:, 1], -values[:, 1]], 1)
        else:
            values = np.array([[mean(of, metric), 1.0] for of in over], dtype=float)
        (low,), (high,) = bootstrap(values, lambda sample: sample[:, :1].sum(0) / sample[:, 1].sum())
        known = [k for s in all_of if isinstance(k := s.response.row.get("is_correct"), bool)]
        ranked.append(
            Ranked(
                teacher=teacher,
                score=float(values[:, 0].sum() / values[:, 1].sum()),
                ci=(float(low), float(high)),
                prompts=len(over),
                answered=len(answered),
                correct=sum(known) / len(known) if known else None,
            )
        )
    return sorted(ranked, key=lambda r: -r.score if METRICS[metric].better else r.score)


def by_teacher(teachers: Mapping[str, Given] | Sequence[str] | Given, config: StudentConfig) -> dict[str, list[Scored]]:
    """Scored responses by teacher: sources by their names, or files of one teacher each, or one source of all, with a
    `teacher` column.

    The student is only loaded if a row has no scores by the same rules yet.

    Raises:
        ValueError: a file cannot be read, one source has no `teacher` column, or the student cannot be loaded.
    """
    files = files_in(teachers)
    sides: dict[str, Sequence[Response]] = {}
    if isinstance(teachers, Mapping):
        sides.update({name: _judged(source, config) for name, source in teachers.items()})
    elif len(files) > 1:
        for file in files:
            name = Path(file).name.removesuffix(".jsonl").removesuffix(".scored")
            if name in sides:
                raise ValueError(f"two files are called {name}: give each teacher's file a name of its own")
            sides[name] = _judged(file, config)
    else:
        whole = files[0] if files else "the rows"
        by_name: dict[str, list[Response]] = defaultdict(list)
        for response in _judged(files[0] if files else teachers, config):
            teacher = response.row.get("teacher")
            if not isinstance(teacher, str):
                raise ValueError(f"{whole}: a row without `teacher`: give it one, or several files, one a teacher")
            by_name[teacher].append(response)
        sides.update(by_name)
    wanted = rules(find_student(config), config.scoring(), dtype=dtype_of(config), layout=config.layout())
    known = {name: [stored(r, wanted) for r in side] for name, side in sides.items()}
    missing = [r for name, side in sides.items() for r, s in zip(side, known[name], strict=True) if s is None]
    made = progress(load_scorer(config).score_all(missing), count=len(missing)) if missing else iter(())
    return {name: [s if s is not None else next(made) for s in side] for name, side in known.items()}


def _judged(source: Given, config: StudentConfig) -> list[Response]:
    todo = read_responses(source, config)
    return list(judged(todo, judging_of(todo, config)))


def table(s: Selection) -> str:
    """The ranking and the counts of a selection, as text."""
    where = f"the {s.common} prompts that all answered" if s.common else "the prompts that each answered"
    lines = [marked(f"notice: {n}") for n in s.notices]
    lines.append(f"scored by    {named(s.chosen[0][1].scoring)}")
    better = "higher" if METRICS[s.by].better else "lower"
    lines.append(paint(f"teachers by {s.by} ({better} is better) over {where}", HEADING))
    width = max(len(r.teacher) for r in s.ranking)
    for r in s.ranking:
        correct = "correctness not known" if r.correct is None else f"{r.correct:.1%} correct"
        interval = f"[{r.ci[0]:.3f} .. {r.ci[1]:.3f}]"
        lines.append(f"  {r.teacher:<{width}}  {r.score:>8.3f} {interval:<20} {r.answered} prompts answered, {correct}")
    n = len(s.chosen)
    mix = ", ".join(f"{teacher} {count} ({count / max(n, 1):.1%})" for teacher, count in s.mix.items())
    lines += [
        f"prompts      {s.prompts}: {n} with a response chosen, {s.no_correct} without a correct one, "
        f"{s.unscored} without a scored one",
        f"answered by only some of the teachers: {s.partial}",
        f"ties         {s.ties} (the first file's response stands)",
        f"mix          {mix}",
        f"global log-prob would have chosen another response for {s.otherwise} ({s.otherwise / max(n, 1):.1%})",
    ]
    return in_lines(lines)
