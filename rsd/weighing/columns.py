"""What weighing adds to a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd.scoring.responses import Response
from rsd.weighing.config import WeighConfig
from rsd.weighing.moves import TraceSteps
from rsd.weighing.weights import HALF, mean, rollout_weight, rounded, token_weights, weight

# What is added to a row, in this order. The teacher's action is for --proposals, where it is not the trace's step;
# rollouts are counted for --validity rollout alone.
COLUMNS = (
    "token_ids",
    "step_spans",
    "step_weights",
    "token_weights",
    "validity_teacher",
    "validity_student",
    "student_action",
    "teacher_action",
    "rollouts_teacher",
    "rollouts_student",
    "weighing",
    "weigh_error",
)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Weighed:
    """A response and its weights, or the error that stands in their place. columns: what is added to the row."""

    response: Response
    columns: Mapping[str, Any]
    token_ids: Sequence[int]
    error: str | None = None

    def row(self) -> dict[str, Any]:
        return {**plain(self.response.row), **self.columns}


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the weights that it may already have."""
    return {k: v for k, v in row.items() if k not in COLUMNS}


def weighed(trace: TraceSteps, config: WeighConfig, weighing: Mapping[str, Any]) -> Weighed:
    """The columns of a trace whose moves are all known, or of its error."""
    response, error = trace.response, trace.error
    made: dict[str, Any] = dict.fromkeys(COLUMNS)
    some = {"teacher_action": config.proposals}
    some |= dict.fromkeys(("rollouts_teacher", "rollouts_student"), config.validity == "rollout")
    made = {name: value for name, value in made.items() if some.get(name, True)}
    made |= {"weighing": dict(weighing), "weigh_error": error}
    if error is None:
        made |= _weights(trace, config)
        made |= {"token_ids": list(trace.ids), "step_spans": [list(span) for span in trace.spans]}
    elif "token_ids" in response.row:
        made["token_ids"] = response.row["token_ids"]
    return Weighed(response=response, columns=made, token_ids=trace.ids, error=error)


def _weights(trace: TraceSteps, c: WeighConfig) -> dict[str, Any]:
    steps, t = range(len(trace.first)), c.weight_temperature
    made: dict[str, Any] = {}
    theirs: list[float | None]
    ours: list[float | None]
    by_token: np.ndarray | None = None
    if c.validity == "rollout":
        counts = {role: [n and n[i] for n in trace.right] for i, role in enumerate(("teacher", "student"))}
        made = {f"rollouts_{role}": several for role, several in counts.items()}
        theirs, ours = ([None if n is None else n / c.rollouts for n in several] for several in counts.values())
        by_step = [rollout_weight(*n, rollouts=c.rollouts, temperature=t) if n else HALF for n in trace.right]
    else:
        if c.validity == "token":
            teacher, student = (_known(x, len(trace.ids)) for x in (trace.teacher, trace.student))
            both = np.isfinite(teacher) & np.isfinite(student)
            theirs, ours = ([mean(x[a:b][both[a:b]]) for a, b in trace.bounds] for x in (teacher, student))
            by_token = token_weights(teacher, student, t)
        else:
            moves = trace.proposed or [trace.move(step) for step in steps]
            pairs = list(zip(moves, trace.own, strict=True))
            theirs = [a and mean(a.logprobs) for a, _ in pairs]
            # The same move is as valid, whatever the last digits are that two ways to compute it give.
            ours = [b and mean((a if a and a.ids == b.ids else b).logprobs) for a, b in pairs]
        by_step = [weight(a, b, t) for a, b in zip(theirs, ours, strict=True)]
    if by_token is None:
        by_token = np.repeat(by_step, np.diff([*trace.first, len(trace.ids)]))
    if c.proposals:
        made["teacher_action"] = [move and move.text for move in trace.proposed]
    return made | {
        "step_weights": rounded(by_step),
        "token_weights": rounded(by_token.tolist()),
        "validity_teacher": rounded(theirs),
        "validity_student": rounded(ours),
        "student_action": [move and move.text for move in trace.own or [None] * len(steps)],
    }


def _known(logprobs: np.ndarray | None, tokens: int) -> np.ndarray:
    return np.full(tokens, np.nan) if logprobs is None else logprobs
