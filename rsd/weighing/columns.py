"""What weighing adds to a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd.scoring.responses import Response
from rsd.weighing.config import WeighConfig
from rsd.weighing.moves import TraceSteps
from rsd.weighing.weights import mean, rollout_weight, rounded, token_weights, weight

# What is added to a row, in this order; rollouts are counted for --validity rollout alone.
COLUMNS = (
    "token_ids",
    "step_spans",
    "step_weights",
    "token_weights",
    "validity_teacher",
    "validity_student",
    "student_action",
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
        return plain(self.response.row) | self.columns


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the weights that it may already have."""
    return {k: v for k, v in row.items() if k not in COLUMNS}


def weighed(trace: TraceSteps, config: WeighConfig, weighing: Mapping[str, Any]) -> Weighed:
    """The columns of a trace whose moves are all known, or of its error."""
    response, error = trace.response, trace.error
    made: dict[str, Any] = dict.fromkeys(COLUMNS)
    if config.validity != "rollout":
        made = {name: value for name, value in made.items() if not name.startswith("rollouts_")}
    made |= {"weighing": dict(weighing), "weigh_error": error}
    if error is None:
        made |= _weights(trace, config)
        made |= {"token_ids": list(trace.ids), "step_spans": [list(span) for span in trace.spans]}
    elif "token_ids" in response.row:
        made["token_ids"] = response.row["token_ids"]
    return Weighed(response=response, columns=made, token_ids=trace.ids, error=error)


def _weights(trace: TraceSteps, c: WeighConfig) -> dict[str, Any]:
    steps, t = range(len(trace.first)), c.weight_temperature
    moves = [trace.proposed[i] if trace.proposed else trace.move(i) for i in steps]
    made: dict[str, Any] = {}
    by_token = None
    if c.validity == "token":
        teacher, student = (_known(x, len(trace.ids)) for x in (trace.teacher, trace.student))
        both = np.where(np.isfinite(teacher + student), 1.0, np.nan)
        validities = [[mean((x * both)[a:b]) for a, b in trace.bounds] for x in (teacher, student)]
        by_token = token_weights(teacher, student, t)
    elif c.validity == "likelihood":
        pairs = zip(moves, trace.own, strict=True)
        same = [a is not None and b is not None and a.ids == b.ids for a, b in pairs]
        theirs = [mean(move.logprobs) if move else None for move in moves]
        ours = [mean(move.logprobs) if move else None for move in trace.own]
        validities = [theirs, [a if alike else b for a, b, alike in zip(theirs, ours, same, strict=True)]]
    else:
        counts = [one or (None, None) for one in trace.right]
        made |= {f"rollouts_{role}": [n[i] for n in counts] for i, role in enumerate(("teacher", "student"))}
        validities = [[None if n[i] is None else n[i] / c.rollouts for n in counts] for i in (0, 1)]
    if c.validity == "rollout":
        by_step = [rollout_weight(*n, c.rollouts, t) if n else weight(None, None, t) for n in trace.right]
    else:
        by_step = [weight(a, b, t) for a, b in zip(*validities, strict=True)]
    if by_token is None:
        sizes = np.diff([*trace.first, len(trace.ids)])
        by_token = np.repeat(by_step, sizes)
    return made | {
        "step_weights": rounded(by_step),
        "token_weights": rounded(by_token.tolist()),
        "validity_teacher": rounded(validities[0]),
        "validity_student": rounded(validities[1]),
        "student_action": [move and move.text for move in trace.own or [None] * len(trace.first)],
    }


def _known(logprobs: np.ndarray | None, tokens: int) -> np.ndarray:
    return np.full(tokens, np.nan) if logprobs is None else logprobs
