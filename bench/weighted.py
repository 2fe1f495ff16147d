"""A weight for each token in the loss of TRL's SFTTrainer: of rows with `loss_weights` beside their `labels`.

`rsd export FILE.weighed.jsonl --format token-ids` makes them. The loss is the mean over the tokens that are learnt of
weight times cross-entropy: 1 everywhere is the plain loss. Rows are cut at their end, and neither packed nor flattened.
TRL 1.16 tried.
"""

from functools import partial

import torch
from trl import SFTTrainer


def with_weights(collate, rows):
    batch = collate(rows)
    batch["loss_weights"] = torch.zeros(batch["labels"].shape)
    for to, row in zip(batch["loss_weights"], rows, strict=True):
        to[: len(row["labels"])] = torch.tensor(row["loss_weights"][: len(row["labels"])])
    return batch


class WeightedTrainer(SFTTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.data_collator = partial(with_weights, self.data_collator)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "labels", "loss_weights"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = inputs.pop("loss_weights")[:, 1:]
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)  # by which TRL makes its own loss
        learnt = outputs.label_mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = -(outputs.log_probs * weights).sum() / learnt
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the gradients of all devices are averaged
        return (loss, outputs) if return_outputs else loss
