"""Attention of a few columns to long rows of a cache, as transformers' models call it."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rsd.models.row_cache import RowCache

NAME = "rsd"
FEW = 32  # columns up to which a forward is a decoding step


class PoolColumns(NamedTuple):
    """The columns of R rows whose keys lie together, in a forward that has all columns in one row of a batch.

    columns: which of the forward's. rows, width: R and W, the most that one of the rows has.
    padded: int64 [R * W], where the rows have unlike numbers of them: which of these columns stands in a row's place;
    those that fill it up are its last one. real: int64 [N], of the R * W places those that are no filling.
    """

    columns: slice
    rows: int
    width: int
    padded: Tensor | None
    real: Tensor


class Reshaped(Exception):
    """A layer has made something else of the keys that its cache returned, before it attends to them."""


class LaidOut:
    """One forward with the columns of all rows in one row of a batch, over a cache for each pool of rows.

    It has the methods of a transformers cache that attention layers call, and tells `attend` what it returned. Mostly
    that comes as it is, and no key is copied; some layers compute their keys from it (DeepSeek's), each by itself.

    joined: return the keys of all pools in one row.
    """

    is_initialized = True

    def __init__(self, caches: Sequence[RowCache], pools: Sequence[PoolColumns], *, joined: bool) -> None:
        self.caches, self.pools, self.joined = caches, pools, joined
        self._returned: dict[int, tuple[tuple[Tensor, Tensor], ...]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, N, size], and return something that stands for what the queries may read."""
        if len(self.caches) == 1:
            return self.caches[0].update(keys, values, layer)
        made = tuple(
            cache.update(keys[:, :, pool.columns], values[:, :, pool.columns], layer)
            for cache, pool in zip(self.caches, self.pools, strict=True)
        )
        if self.joined:
            k, v = (torch.cat([x.transpose(0, 1).flatten(1, 2) for x in both], 1) for both in zip(*made, strict=True))
            return k[None], v[None]
        self._returned[id(made[0][0])] = made
        return made[0]

    def each(self, keys: Tensor, values: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        """By pool [R, heads, length, size] of what a layer attends to.

        Raises:
            Reshaped: that is not what was returned.
        """
        if len(self.caches) == 1:
            return [(keys, values)]
        if self.joined:
            sizes = [(pool.rows, cache.get_seq_length()) for pool, cache in zip(self.pools, self.caches, strict=True)]
            split = [x[0].split([rows * length for rows, length in sizes], 1) for x in (keys, values)]
            k, v = (
                [x.unflatten(1, size).transpose(0, 1) for x, size in zip(both, sizes, strict=True)] for both in split
            )
            return list(zip(k, v, strict=True))
        made = self._returned.get(id(keys))
        if made is None or made[0][1] is not values:
            raise Reshaped
        return made

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(cache.get_seq_length() for cache in self.caches)


# The forward that is running is laid out so: attention alone tells rows apart.
LAID_OUT: ContextVar[LaidOut | None] = ContextVar("LAID_OUT", default=None)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a few columns [R, heads, W, size] to long rows, without repeating K/V per query group.

    The groups are folded into the query axis. On a CPU the fused kernel is best for few rows of one
    column, two plain products for all else. A prefill, a model that adds something to the scores of each
    head, or one used by others (without a mask or with a boolean one) goes to transformers' SDPA.

    Where columns are laid out in one row, the queries are [1, heads, N, size], and the mask is that of all pools after
    each other; each pool's queries are spread over its rows.
    """
    laid_out = LAID_OUT.get()
    if laid_out is None:
        return _attend(module, query, key, value, attention_mask, scaling, **kwargs)
    made, begin = [], 0
    masks = attention_mask.flatten()  # type: ignore[union-attr]
    for pool, (k, v) in zip(laid_out.pools, laid_out.each(key, value), strict=True):
        end = begin + pool.rows * pool.width * k.shape[2]
        mask = masks[begin:end].view(pool.rows, 1, pool.width, k.shape[2])
        mine = query[0, :, pool.columns]
        if pool.padded is not None:
            mine = mine.index_select(1, pool.padded.to(mine.device))  # a model may be spread over several devices
        spread = mine.unflatten(1, (pool.rows, pool.width)).transpose(0, 1)
        out = _attend(module, spread, k, v, mask, scaling, **kwargs)[0].flatten(0, 1)
        made.append(out if pool.padded is None else out.index_select(0, pool.real.to(out.device)))
        begin = end
    return (torch.cat(made) if len(made) > 1 else made[0])[None], None


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    rows, heads, width, size = query.shape
    plain = kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if attention_mask is None or attention_mask.dtype == torch.bool or width > FEW or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    cpu = query.device.type == "cpu"
    if cpu and width == 1 and rows <= 16:
        grouped = {"enable_gqa": True} if heads > key.shape[1] else {}  # a constant, also for torch.compile
        out = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, **grouped)
        return out.transpose(1, 2), None
    groups = heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * width, size)
    mask = attention_mask if width == 1 else attention_mask.repeat(1, 1, groups, 1)
    scale = size**-0.5 if scaling is None else scaling
    if cpu:
        weights = (folded * scale @ key.transpose(2, 3)).add_(mask).softmax(-1)
        out = weights @ value
    else:
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return unfold(out, heads, width).transpose(1, 2).contiguous(), None


def unfold(out: Tensor, heads: int, width: int) -> Tensor:
    """[R, KV heads, groups * W, value size] to [R, heads, W, value size].

    The heads of values may have another size than those of keys (DeepSeek), and a kernel may leave its columns
    before its heads in memory (the memory-efficient one of a GPU): that is no view then.
    """
    return out.reshape(out.shape[0], heads, width, out.shape[3])


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
