"""Attention of a few columns to long rows of a cache, as transformers' models call it."""

from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rsd"
FEW = 32  # columns up to which a forward is a decoding step


class Ragged(NamedTuple):
    """Rows that have unlike numbers of columns, N together, of which a forward has no padding.

    padded: int64 [R, W], which of the N stands in a row's place; those that fill it up are its last one.
    real: int64 [N], of the R * W places those that are no filling, in the order of the N.
    """

    padded: Tensor
    real: Tensor


# The forward that is running has a batch of one row, with the columns of all: attention alone tells them apart.
RAGGED: ContextVar[Ragged | None] = ContextVar("RAGGED", default=None)


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

    Where the forward is ragged, the queries are [1, heads, N, size]; they are spread over their rows for this.
    """
    if (ragged := RAGGED.get()) is not None:
        padded, real = (index.to(query.device) for index in ragged)  # a model may be spread over several devices
        spread = query[0].index_select(1, padded.flatten()).unflatten(1, padded.shape).transpose(0, 1)
        out, _ = _attend(module, spread, key, value, attention_mask, scaling, **kwargs)
        return out.flatten(0, 1).index_select(0, real)[None], None
    return _attend(module, query, key, value, attention_mask, scaling, **kwargs)


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
