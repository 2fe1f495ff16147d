"""Endless repetition: a small model that decodes greedily can say the same few words for ever.

A trace loops when its last tokens, at least `SPAN` of them, are one n-gram said at least `TIMES` times over,
exactly. It is looked at every `EVERY` tokens of the trace, whatever the blocks are that it is decoded in, so
that where a trace ends does not depend on them. All three numbers are this project's choice: a table or a
row of zeros is shorter, and a trace that loops with variations is not taken for one.
"""

import numpy as np

EVERY = 64
SPAN, TIMES = 256, 4
LONGEST = 512  # tokens of an n-gram
REACH = max(SPAN, TIMES * LONGEST)  # how many of a trace's last tokens matter


def loops(tokens: np.ndarray) -> bool:
    """Whether a trace [T] ends in a loop."""
    for period in _periods(tokens):
        span = max(SPAN, TIMES * period)
        if len(tokens) >= span and np.array_equal(tokens[period - span :], tokens[-span:-period]):
            return True
    return False


def _periods(tokens: np.ndarray) -> list[int]:
    """Where the last few tokens have been said before, as distances to the end; the nearest first."""
    tail = tokens[-8:]
    seen = tokens[-(LONGEST + len(tail)) : -1]
    if len(seen) < len(tail):
        return []
    windows = np.lib.stride_tricks.sliding_window_view(seen, len(tail))
    ends = (windows == tail).all(1).nonzero()[0] + len(tail)
    return (len(seen) + 1 - ends)[::-1].tolist()
