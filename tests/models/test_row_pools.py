"""Rows of unlike lengths, each in a pool of about its own: what they hold, and what they take."""

import gc
import weakref

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.models.row_cache import GROW, RowCache
from rsd.models.row_pools import RowPools, capacity

ROWS = 5
ACTIONS = ["take", "take", "take", "grow", "move", "drop", "break"]
# Mostly of about a length, so that pools have several rows.
LENGTHS = st.lists(st.sampled_from([1, 100, 200]) | st.integers(1, 1500), min_size=40, max_size=40)


def prompt(length, value):
    """A cache of two rows, of which the second has read `length` tokens of this value; what it padded is NaN."""
    made = RowCache(2, 2048)
    made.layers = {
        layer: (torch.full((2, 2, 2048, 3), torch.nan), torch.full((2, 2, 2048, 2), torch.nan)) for layer in (0, 1)
    }
    for keys, values in made.layers.values():
        keys[1, :, :length], values[1, :, :length] = value, -value
    return made


@settings(max_examples=50)
@given(LENGTHS, st.randoms(use_true_random=False))
def test_rows_keep_what_they_have_read(lengths, some):
    pools, held = RowPools(ROWS), {}
    for value, length in enumerate(lengths, 1):
        action, which = some.choice(ACTIONS), some.randrange(100)
        row = sorted(held)[which % len(held)] if held else None
        if action == "take":
            to = which % ROWS
            pools.copy_row(prompt(length, value), 1, to, length=length)
            held[to] = [float(value)] * length
        elif row is None:
            continue
        elif action == "grow":
            # All rows take part in a pass, and one of them has read so many tokens more.
            rows, more = sorted(held), held[row] + [float(value)] * length
            reach = np.array([len(more if r == row else held[r]) for r in rows])
            for part in pools.parts(rows, reach):
                if row in (found := [rows[i] for i in part.of]):
                    place = part.places[found.index(row)]
                    for keys, values in part.cache.layers.values():
                        keys[place, :, len(held[row]) : len(more)] = value
                        values[place, :, len(held[row]) : len(more)] = -value
            held[row] = more
        elif action == "break":  # all that it has is NaN, and its drafts are
            for part in pools.parts([row], np.array([len(held[row])])):
                for keys, values in part.cache.layers.values():
                    keys[part.places[0]], values[part.places[0]] = torch.nan, torch.nan
            pools.drop_row(row)
            del held[row]
        elif action == "move" and (free := set(range(ROWS)) - held.keys()):
            pools.move_row(row, to := min(free))
            held[to] = held.pop(row)
        elif action == "drop":
            pools.drop_row(row)
            del held[row]
        check(pools, held)
    for row in list(held):
        pools.drop_row(row)
    assert not pools.pools and not pools.held()


def check(pools, held):
    rows = sorted(held)
    seen = []
    for part in pools.parts(rows, np.array([len(held[r]) for r in rows])) if rows else []:
        assert part.places.tolist() == list(range(len(part.of)))  # a pass over all reads each pool as it lies
        assert len(part.of) <= part.cache.rows <= 2 * len(part.of)
        for i, place in zip(part.of, part.places, strict=True):
            want = torch.tensor(held[rows[i]])
            seen.append(rows[i])
            for keys, values in part.cache.layers.values():
                for buffer, sign in ((keys, 1), (values, -1)):
                    mine = buffer[place]
                    assert (mine[:, : len(want)] == sign * want[:, None]).all()
                    assert not mine[:, len(want) :].isnan().any()  # masked attention to NaN is NaN
    assert sorted(seen) == rows


@given(st.integers(1, 200_000))
def test_a_pool_is_little_longer_than_its_rows(length):
    slots = capacity(length)
    assert slots % GROW == 0 and length <= slots < max(1.5 * length, length + GROW)


def test_there_are_few_pools():
    assert len({capacity(n) for n in range(1, 32_769)}) == 14


def test_rows_of_unlike_lengths_take_less_than_as_many_of_the_longest():
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(400), 1.0, 32), 16, 8000).astype(int)
    pools, together = RowPools(32), RowCache(32)
    for cache in (pools, together):
        cache.copy_row(prompt(10, 1.0), 1, 0, length=10)  # so that there are layers
        for row in range(1, 32):
            cache.copy_row(prompt(10, 1.0), 1, row, length=10)
        for length in range(256, 8192, 256):
            cache.parts(range(32), np.minimum(lengths, length))
    assert sum(together.held().values()) > 1.5 * sum(pools.held().values())


def test_buffers_are_freed_with_their_cache_at_once():
    # Out of memory there is no time to wait for a collector of cycles.
    gc.disable()
    try:
        for kind in (RowCache, RowPools):
            cache = kind(2)
            cache.copy_row(prompt(10, 1.0), 1, 0, length=10)
            cache.parts(range(1), np.array([300]))
            pools = [*cache.pools.values()] if isinstance(cache, RowPools) else [cache]
            buffers = [weakref.ref(keys) for pool in pools for keys, _ in pool.layers.values()]
            assert buffers
            del cache, pools
            assert not any(buffer() is not None for buffer in buffers)
    finally:
        gc.enable()
