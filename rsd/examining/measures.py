"""From the tokens of three sets of traces to what is found of their pair."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from rsd.analysis.compare import bootstrap, sign_test
from rsd.examining.findings import (
    INSTEAD,
    OVERLAPS,
    SHOWN,
    AtThreshold,
    Contest,
    Fallen,
    Findings,
    Overlap,
    SetFindings,
)
from rsd.examining.sets import OWN, RAW, RSD, Made, Work
from rsd.scoring.metrics import LN
from rsd.traces.tokens import no_tokens
from rsd.traces.trace import Trace


def findings(work: Work, made: dict[str, Made]) -> Findings:
    """What is found of a pair by its traces.

    Raises:
        ValueError: there are none, of any problem, that all three could make.
    """
    raw, rsd, own = (made[name] for name in (RAW, RSD, OWN))
    errors = list(dict.fromkeys(error for one in made.values() for error in one.errors))
    if not all(len(tokens(one)) for one in made.values()):
        raise ValueError(f"no trace could be made: {errors[0]}" if errors else "no trace could be made")
    pair, config = work.pair, work.config
    taken, by_raw = tokens(rsd), tokens(raw)
    own_prompt = any(row.teacher is not None for row in work.rows)
    return Findings(
        teacher=pair.teacher.label,
        student=pair.student.label,
        one_model=pair.teacher.fingerprint() == pair.student.fingerprint() and not own_prompt,
        vocabularies=pair.vocabulary.describe(),
        notices=work.notices(),
        memory=work.memory,
        temperature=pair.sampling.temperature,
        top_p=pair.sampling.top_p,
        top_k=pair.sampling.top_k,
        threshold=config.threshold,
        threshold_on=config.threshold_on,
        trials=config.trials,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        problems=len(work.rows),
        of=work.of,
        errors=errors,
        left_out=float(by_raw["left_out"].mean()),
        raw=of_set(raw, work.thresholds),
        rsd=of_set(rsd, work.thresholds),
        student_alone=of_set(own, work.thresholds),
        thresholds=[
            at_threshold(threshold, by_raw["accepted_at"][:, i], taken["accepted_at"][:, i], by_raw, config.trials)
            for i, threshold in enumerate(work.thresholds)
        ],
        raw_overlaps=overlaps(raw.traces),
        overlaps=overlaps(rsd.traces),
        falls=int((by_raw["student_logprobs"] < math.log(config.threshold)).sum()),
        fallen=fallen(by_raw, config.threshold, lambda token: pair.decode([token])),
        teacher_student=contest(raw.traces, own.traces),
        teacher_rsd=contest(raw.traces, rsd.traces),
    )


def tokens(made: Made) -> np.ndarray:
    """The records of all traces of a set."""
    return np.concatenate([trace.tokens for trace in made.traces]) if made.traces else no_tokens()


def ended(trace: Trace) -> bool:
    return trace.finish_reason == "stop"


def solved(trace: Trace) -> bool | None:
    """Whether a trace is right and came to an end; None if that is not known."""
    return None if trace.is_correct is None else trace.is_correct and ended(trace)


def of_set(made: Made, thresholds: Sequence[float]) -> SetFindings:
    """What one set is by itself."""
    every = tokens(made)
    lns = np.array([[v] for s in made.scores if s is not None and (v := s.metrics[LN]) is not None])
    interval = None
    if len(lns) > 1:
        low, high = bootstrap(lns, lambda sample: sample.mean(0))
        interval = float(low[0]), float(high[0])
    return SetFindings(
        traces=len(made.traces),
        tokens=len(every),
        cut=sum(not ended(trace) for trace in made.traces),
        judged=sum(solved(trace) is not None for trace in made.traces),
        solved=sum(solved(trace) is True for trace in made.traces),
        own=float((every["from_teacher"] == 0).mean()),
        below={t: float((every["student_logprobs"] < math.log(t)).mean()) for t in thresholds},
        ln=float(lns.mean()) if len(lns) else None,
        ln_interval=interval,
        tokens_per_second=len(every) / made.seconds,
        tokens_per_round=made.tokens_per_round,
    )


def at_threshold(threshold: float, raw: np.ndarray, rsd: np.ndarray, by_raw: np.ndarray, trials: float) -> AtThreshold:
    """raw, rsd: a = q(A) at this threshold, of every token of these sets."""
    return AtThreshold(
        threshold=threshold,
        raw_below=float((by_raw["student_logprobs"] < math.log(threshold)).mean()),
        raw_accepted=float(raw.mean()),
        accepted=float(rsd.mean()),
        fallback=float(((1 - rsd) ** trials).mean()),
        first_falls=float((1 - rsd).mean()),
    )


def overlaps(traces: Sequence[Trace]) -> list[Overlap]:
    """Of the first and the last third of each trace; the place of a token of which the teacher's k are not known does
    not count."""
    thirds = [(t.tokens[: len(t.tokens) // 3], t.tokens[-(len(t.tokens) // 3) :]) for t in traces if len(t.tokens) > 2]
    made = []
    for k in OVERLAPS:
        means = []
        for part in zip(*thirds, strict=True) if thirds else ((), ()):
            shares = np.concatenate([np.empty(0), *(shared(of, k) for of in part)])
            known = shares[~np.isnan(shares)]
            means.append(float(known.mean()) if len(known) else None)
        made.append(Overlap(k=k, early=means[0], late=means[1]))
    return made


def shared(records: np.ndarray, k: int) -> np.ndarray:
    """Of each of T places, what share of the teacher's k likeliest tokens is among the student's; NaN if unknown."""
    theirs, ours = records["teacher_top_ids"][:, :k], records["student_top_ids"][:, :k]
    shares: np.ndarray = (theirs[:, :, None] == ours[:, None, :]).any(2).mean(1)
    return np.where((theirs < 0).any(1), np.nan, shares)


def fallen(records: np.ndarray, threshold: float, decode: Callable[[int], str]) -> list[Fallen]:
    """The tokens of records that are below the threshold most often."""
    below = records[records["student_logprobs"] < math.log(threshold)]
    every = Counter(records["token_ids"].tolist())
    made: list[Fallen] = []
    for token, count in sorted(Counter(below["token_ids"].tolist()).items(), key=lambda item: (-item[1], item[0])):
        if len(made) == SHOWN:
            break
        there = Counter(below["student_top_ids"][below["token_ids"] == token, 0].tolist())
        likeliest = sorted(there.items(), key=lambda item: (-item[1], item[0]))[:INSTEAD]
        instead = [(decode(other), times) for other, times in likeliest]
        made.append(Fallen(token=decode(token), below=count, of=every[token], instead=instead))
    return made


def contest(ours: Sequence[Trace], others: Sequence[Trace]) -> Contest:
    """Who solves the problems that the other one does not."""
    theirs = {str(trace.id): trace.is_correct for trace in others if ended(trace)}
    both = [(trace.is_correct, theirs.get(str(trace.id))) for trace in ours if ended(trace)]
    wins, losses = both.count((True, False)), both.count((False, True))
    return Contest(wins=wins, losses=losses, p_value=sign_test(wins, losses))
