"""What `distill.py` trains by besides the next token: soft targets, and a judge of the student's own text."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import SFTTrainer

HARD = 0.5  # share of the plain loss in that of soft targets
NOTHING = -30.0  # log-prob of what the teacher cannot say


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of TRL's token ids and masks, and of what else there is a token, padded at the right."""
    pads = {"input_ids": 0, "labels": -100, "attention_mask": 0, "teacher_ids": -1, "teacher_logprobs": 0.0}

    def padded(name: str) -> Tensor:
        return pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=pads[name])

    return {name: padded(name) for name in pads}


class SoftTrainer(SFTTrainer):
    """Half the plain loss, half KL(teacher || student) over the teacher's K likeliest tokens and the rest of both.

    teacher_ids, teacher_logprobs: [B, T, K], in the place of the token that they are an alternative to.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        learnt = inputs["labels"][:, 1:] != -100
        ids, given = (inputs[name][:, 1:][learnt] for name in ("teacher_ids", "teacher_logprobs"))
        plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        says = model(**plain, use_cache=False).logits[:, :-1][learnt].float().log_softmax(-1)
        hard = -says.gather(-1, inputs["labels"][:, 1:][learnt][:, None])[:, 0]
        known = ids >= 0
        q, log_p = given.exp() * known, says.gather(-1, ids.clamp(min=0))
        rest, rest_p = ((1 - mass.sum(-1)).clamp(min=1e-6) for mass in (q, log_p.exp() * known))
        soft = (q * (given - log_p)).sum(-1) + rest * (rest.log() - rest_p.log())
        loss = (HARD * hard + (1 - HARD) * soft).sum() / (
            len(hard) if num_items_in_batch is None else num_items_in_batch
        )
        return (loss, None) if return_outputs else loss


class InStudentsTokens(torch.nn.Module):
    """A teacher of one base with the student, over the student's tokens: it reads the added ones as it spells them,
    and the first piece of such a spelling stands for the whole."""

    def __init__(self, teacher: Any, config: Any, spelled: dict[int, tuple[int, ...]]) -> None:
        super().__init__()
        self.teacher, self.config, self.spelled = teacher, config, spelled

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        pieces = [[self.spelled.get(token, (token,)) for token in row] for row in rows]
        read = [torch.tensor([piece for token in row for piece in token]) for row in pieces]
        ends = [torch.tensor([len(token) for token in row]).cumsum(0) - 1 for row in pieces]
        ids = pad_sequence(read, batch_first=True).to(input_ids.device)
        mask = pad_sequence([torch.ones_like(row) for row in read], batch_first=True).to(ids)
        says = self.teacher(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        made = says.new_full((*input_ids.shape, self.config.vocab_size), NOTHING)
        for row, end in enumerate(ends):
            made[row, attention_mask[row].bool()] = self._own(says[row, end])
        return type("Output", (), {"logits": made})

    def _own(self, says: Tensor) -> Tensor:
        """[T, V_teacher] to [T, V]."""
        width = self.config.vocab_size
        own = says[:, :width].clamp(min=NOTHING).clone()
        for token, (first, *_) in self.spelled.items():
            own[:, token], own[:, first] = own[:, first].clone(), NOTHING
        return own


def prompts(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Prompts, padded at the left as for decoding; without labels, so that the loss is a mean over what is decoded."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    made = pad_sequence(ids, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return {"prompts": made, "prompt_attention_mask": mask, "input_ids": made, "attention_mask": mask}
