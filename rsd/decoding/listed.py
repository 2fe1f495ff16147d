"""What a list of a teacher's likeliest tokens, told at temperature 1, says of its sampling distribution q.

The list settles q where the tokens that are not on it can change nothing: there are none (top-k), they have no mass to
speak of, or top-p ends before them. For that the mass of the untold ones is bounded: one by one they are not likelier
than the last one on the list, together they have what is left of 1.

Where it settles nothing, some tokens are asked for by their ids, the likeliest one with them: their probabilities after
temperature, top-k and top-p are told. That of the likeliest one says what the others on the list have, too.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rsd.acceptance import Acceptance, Sampling
from rsd.serving.told import TOP, Told

EXACT, COMPLETE, RENORMALISED = "exact on A", "complete top-k", f"top-{TOP} renormalised"
MEANING = {
    EXACT: f"its {TOP} likeliest tokens, and where these do not settle it from those that the student may accept, too",
    COMPLETE: f"its {TOP} likeliest tokens, which are all that it may say",
    RENORMALISED: f"its {TOP} likeliest tokens, renormalised where it may say others",
}
SURE = 2.0**-24  # of a mass, what float32 does not see
ROUNDED = 2e-6  # what rounding may leave of a sum of a list's probabilities
MANY = 512  # ids that are asked for in one place, at the most


def mode_of(sampling: Sampling, acceptance: Acceptance, *, by_ids: str | None) -> str:
    """How q is found out. by_ids: what the server tells of tokens that are asked for by their ids (`told.Api`)."""
    if sampling.temperature == 0 or 0 < sampling.top_k <= TOP:
        return COMPLETE
    bounded = acceptance.threshold > 0 or acceptance.top_k > 0  # else A are all tokens
    return EXACT if bounded and (by_ids == "processed" or (by_ids == "raw" and plain(sampling))) else RENORMALISED


def plain(sampling: Sampling) -> bool:
    """Whether q is the softmax itself."""
    return sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0


class Lists(NamedTuple):
    """N lists, likeliest tokens first.

    ids: int64 [N, L]. logprobs: float64 [N, L], -inf behind the end of a list. settled: bool [N], whether the list
    settles q. least, most: [N], bounds of the likeliest token's probability in q.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    settled: np.ndarray
    least: np.ndarray
    most: np.ndarray


def read(told: Sequence[Told], sampling: Sampling, *, width: int) -> Lists:
    """Read what was told in N places. width: of the teacher's vocabulary."""
    count = np.array([len(one.ids) for one in told])
    ids = np.zeros((len(told), max(count)), dtype=np.int64)
    logprobs = np.full(ids.shape, -np.inf)
    there = np.arange(ids.shape[1]) < count[:, None]
    ids[there] = np.concatenate([one.ids for one in told])
    logprobs[there] = np.concatenate([one.logprobs for one in told])
    order = np.argsort(-logprobs, axis=1, kind="stable")
    ids, logprobs = np.take_along_axis(ids, order, 1), np.take_along_axis(logprobs, order, 1)
    if sampling.temperature == 0:
        sure = np.ones(len(told))
        return Lists(ids, logprobs, sure > 0, sure, sure)
    t = sampling.temperature
    top, last = logprobs[:, 0], logprobs[np.arange(len(told)), count - 1]
    weights = np.exp((logprobs - top[:, None]) / t)  # of the likeliest one: 1
    if sampling.top_k:
        weights[:, sampling.top_k :] = 0
    total = weights.sum(1)
    # What is untold: how many tokens, their mass at temperature 1, how likely one is; relative to the likeliest one.
    more = np.maximum((sampling.top_k or width) - count, 0)
    rest = (np.maximum(1 - np.exp(logprobs).sum(1), 0) + ROUNDED) / np.exp(top)
    one = np.exp(last - top)
    untold = more * np.minimum(one, rest / np.maximum(more, 1)) ** (1 / t)
    if t <= 1:
        untold = np.minimum(more * one ** (1 / t), rest * one ** (1 / t - 1))
    before = weights.cumsum(1) - weights
    fewest = (before < sampling.top_p * total[:, None]).sum(1)  # tokens that top-p keeps, if there are no others
    highest = total + untold
    kept = (before < sampling.top_p * highest[:, None]).sum(1)
    settled = untold <= SURE * total
    if sampling.top_p < 1:
        settled |= (fewest == kept) & (total >= sampling.top_p * highest)
    # All mass that is kept reaches top-p, and does not without its last token.
    end = weights[np.arange(len(told)), np.minimum(fewest, count) - 1]
    least = 1 / np.minimum(highest, sampling.top_p * highest + end)
    return Lists(ids, logprobs, settled, least, 1 / (sampling.top_p * total))


def needed(lists: Lists, n: int, ids: Collection[int], sampling: Sampling) -> set[int]:
    """What is to be asked for in place n, so that q is known of these ids."""
    if plain(sampling):
        return {*ids} - {*lists.ids[n][lists.logprobs[n] > -np.inf].tolist()}
    return {*ids, int(lists.ids[n][0])}


def masses(lists: Lists, n: int, asked: Mapping[int, float], sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """q in place n: ids, ascending, and their probabilities, of tokens that were asked for and of those on the list.

    asked: log-probs after temperature, top-k and top-p, of the likeliest token, too, unless q is `plain`.
    """
    there = lists.logprobs[n] > -np.inf
    ids, logprobs = lists.ids[n][there], lists.logprobs[n][there]
    likeliest = logprobs[0] if plain(sampling) else asked[int(ids[0])]
    probs = np.exp(likeliest + (logprobs - logprobs[0]) / sampling.temperature)
    kept = probs.cumsum() <= 1 + 1e-5  # where that is more than all, top-p has come to its end
    found = dict(zip(ids[kept].tolist(), probs[kept].tolist(), strict=True))
    found |= {i: float(np.exp(value)) for i, value in asked.items()}
    every = sorted(i for i, mass in found.items() if mass > 0)
    return np.array(every, dtype=np.int64), np.array([found[i] for i in every])


def unfiltered(lists: Lists, asked: Mapping[int, Mapping[int, float]], sampling: Sampling) -> bool:
    """Whether what was asked for looks as if it was told at temperature 1, before any filter: a server of another mode.

    asked: by place, as of `masses`. The lists say what the values would be, so and so.
    """
    before = after = 0.0  # nats that the values are away from what they would be
    for n, values in asked.items():
        first = int(lists.ids[n][0])
        if first not in values:
            continue
        top, listed = values[first], dict(zip(lists.ids[n].tolist(), lists.logprobs[n].tolist(), strict=True))
        before += abs(top - listed[first])
        after += max(0.0, float(np.log(lists.least[n])) - top, top - float(np.log(lists.most[n])))
        for i, value in values.items():
            if value > -np.inf and (known := listed.get(i, -np.inf)) > -np.inf:
                before += abs(value - known)
                after += abs(value - top - (known - listed[first]) / sampling.temperature)
    return after > 2 * before + 0.3
