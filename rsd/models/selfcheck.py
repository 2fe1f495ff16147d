"""Whether a model decodes here as it does by itself: three short rows of unequal length against plain forwards.

What an architecture makes of a batch (its longest row, the length of its cache) may be wrong for rows that
have lengths of their own, and nothing else would say so: the traces would only be worse.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.models.kv_cache import CachedModel, TreeMask
from rsd.settings import called

PROMPTS = (2, 12, 7)  # tokens of each row, the longest not the last
AFTER = 5  # tokens that are then decoded in each
REACH = 640  # slots that the queries read, as if a row were so long; more than the smallest windows
CLOSE = 0.02  # nats that are rounding, whatever else
CLOSE_IN_HALF = 0.2  # in bf16 and fp16, or with quantised weights
NOISE = 10  # times what a model differs from itself
MOST = 1.0  # nats


@torch.inference_mode()
def check_decoding(model: PreTrainedModel, name: str) -> None:
    """Compare the logits of `CachedModel` with those of the model's own forward, row by row.

    A row is as far off as the median over its positions of E |difference of log-probs| under the plain forward:
    an expert that is chosen otherwise for a near-tie is no alarm. How much may be rounding is measured, too, by
    plain forwards in a padded batch: low precision and quantised weights round otherwise in another batch.

    Args:
        name: what the error calls the model.

    Raises:
        ValueError: it cannot be decoded in rows of unequal length, or is off by more than rounding.
    """
    decoder = CachedModel(model, len(PROMPTS), pooled=True)
    if decoder.context < max(PROMPTS) + AFTER:
        return
    width = model.config.get_text_config().vocab_size
    some = torch.Generator().manual_seed(0)  # in the middle of the vocabulary: special tokens are at its ends
    rows = [torch.randint(width // 4, width // 2 + 1, (n + AFTER,), generator=some) for n in PROMPTS]
    plain = [model(row[None].to(decoder.device), use_cache=False).logits[0] for row in rows]
    if not all(logits.isfinite().any(-1).all() and not logits.isnan().any() for logits in plain):
        return  # there is nothing to compare with; decoding will tell of every row
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    again = model(padded.to(decoder.device), use_cache=False).logits
    noise = max(_apart(b[: len(a)], a) for a, b in zip(plain, again, strict=True))
    exact = model.dtype == torch.float32 and getattr(model.config, "quantization_config", None) is None
    allowed = min(MOST, max(CLOSE if exact else CLOSE_IN_HALF, NOISE * noise))
    try:
        apart = max(_decoded(decoder, rows, plain), _beside_a_long_row(decoder, rows, plain))
    except Exception as e:  # whatever an architecture's own code raises
        raise ValueError(
            f"{name}: cannot be decoded in rows of unequal length ({type(e).__name__}: {str(e).splitlines()[0]}): "
            "choose another model"
        ) from e
    if not apart <= allowed:
        raise ValueError(
            f"{name}: decoded in rows of unequal length, it is {apart:.2g} nats off what it says of each row alone "
            f"(rounding explains {allowed:.2g}): choose another model, or go on regardless with "
            + called("skip_check", True)
        )


def _decoded(decoder: CachedModel, rows: list[Tensor], plain: list[Tensor]) -> float:
    """Prompts are read, then each row goes on for one token and for some at once, as in a round."""
    read = decoder.prefill([row[:n].tolist() for row, n in zip(rows, PROMPTS, strict=True)])
    for i in range(len(rows)):
        decoder.copy_row(read, i, i, length=PROMPTS[i] - 1)
    long, short = min(REACH, decoder.context), max(PROMPTS) + AFTER
    at = torch.tensor(PROMPTS)[:, None] - 1
    made = []
    # At first one row is longer than the others, so that they lie apart.
    for columns, reach in ((torch.arange(1), (short, long, short)), (torch.arange(1, AFTER + 1), (long,) * 3)):
        positions = at + columns
        ids = torch.stack([row[p] for row, p in zip(rows, positions, strict=True)])
        made.append(decoder(ids.to(decoder.device), positions.to(decoder.device), np.array(reach)))
    return max(_apart(x, a[n - 1 :]) for x, a, n in zip(torch.cat(made, 1), plain, PROMPTS, strict=True))


def _beside_a_long_row(decoder: CachedModel, rows: list[Tensor], plain: list[Tensor]) -> float:
    """The first rows begin anew while the last one is at the end of the context, though in low slots."""
    width = min(PROMPTS) + AFTER
    slot = torch.arange(width, device=decoder.device).expand(len(rows), -1)
    positions = slot.clone()
    positions[-1] += decoder.context - width
    zero = torch.zeros_like(slot)
    ids = torch.stack([row[:width] for row in rows]).to(decoder.device)
    logits = decoder(ids, positions, np.full(len(rows), width), tree=TreeMask(slot, zero, zero))
    return max(_apart(x, a[:width]) for x, a in zip(logits[:-1], plain[:-1], strict=True))


def _apart(logits: Tensor, plain: Tensor) -> float:
    """Nats between [W, V] and [W, V]: the median over W of E |difference of log-probs|."""
    ours, theirs = logits.float().log_softmax(-1), plain.float().log_softmax(-1)
    likely = theirs.exp()
    apart = torch.where(likely > 0, likely * (ours - theirs).abs(), 0).sum(-1)
    return float(apart.nan_to_num(torch.inf).median())
