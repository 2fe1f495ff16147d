"""The decoding engine: rounds of draft, verify, commit, refill. It knows ids only, never text.

A round, for all live rows at once: the student drafts a block of tokens one by one, leaving its
distribution at every position; the teacher reads the block in one pass; what survives is committed
(`sampling.verify`). A block of one is lockstep: one step of each model a token. Rows advance by
different amounts, and nothing is moved to roll back (`cache`).
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.cache import CachedModel
from rsd.config import Acceptance, Sampling
from rsd.sampling import DRAFT, acceptable, drafter, draw, proposals, target, uniforms, verify, warp
from rsd.vocabulary import Vocabulary

READ_AHEAD = 2048  # prompt tokens that are prefilled together, before rows are free for them
AT_ONCE = 16  # and how many prompts at the most

# From so many rows on, a row whose next token the teacher spells in several pieces reads one of them a
# round and waits: widening the pass for all rows would cost more than the one row's wait.
WAIT_FROM = 16

# Columns of a row's state, which the host keeps and sends to the device once a round.
KEY, DONE, LIMIT, STUDENT_LENGTH, TEACHER_LENGTH, PENDING, TEACHER_PENDING, READ = range(8)
# Columns of a token's record.
TOKEN, LABEL, TEACHER_LOGPROB, STUDENT_LOGPROB, ACCEPTED = range(5)


@dataclass(frozen=True, eq=False)
class Request:
    """One trace to make.

    student_prompt, teacher_prompt: the prompt as each model reads it; at least one id each.
        Requests in a row with equal prompts share one prefill.
    key: the noise key, from `sampling.row_key`.
    tag: the caller's; handed back untouched.
    """

    student_prompt: list[int]
    teacher_prompt: list[int]
    key: int
    max_new_tokens: int
    tag: Any = None


@dataclass(frozen=True, eq=False)
class Finished:
    """One trace made: arrays of T committed tokens, the final EOS included.

    token_ids: int64, the student's ids.
    teacher_logprobs, student_logprobs: float64, log-softmax over the full width at temperature 1,
        before any mask; NaN where the teacher has no such token.
    from_teacher: bool, drawn from its posterior given the token.
    accepted: float64, a = q(A), the chance that one proposal stands.
    finish_reason: "stop" (an EOS), "length", or "error".
    """

    request: Request
    token_ids: np.ndarray
    teacher_logprobs: np.ndarray
    student_logprobs: np.ndarray
    from_teacher: np.ndarray
    accepted: np.ndarray
    finish_reason: str
    error: str | None = None


class Engine:
    """Teacher and student in step over at most `rows` rows.

    Args:
        eos: ids that end a trace.
        block: tokens drafted a round; 1 is lockstep. A trace does not depend on it (in fp32, up to
            near-ties).

    Raises:
        ValueError: a model whose state cannot be rolled back.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        sampling: Sampling,
        acceptance: Acceptance,
        eos: Collection[int],
        rows: int = 32,
        block: int = 1,
    ) -> None:
        self.teacher = CachedModel(teacher, rows)
        self.student = CachedModel(student, rows)
        self.vocabulary = vocabulary
        self.shared = vocabulary.shared.to(self.student.device)
        self.own = vocabulary.own.to(self.student.device)
        self.sampling, self.acceptance = sampling, acceptance
        self.rows, self.block = rows, block
        # What the host looks up by the student's ids.
        self.spelled = vocabulary.spelled.numpy()
        self.spelling = vocabulary.spelling.numpy()
        self.teacher_has = vocabulary.shared.numpy() > 0
        self.stops = np.isin(np.arange(vocabulary.width), list(eos))
        self.teacher_context = teacher.config.get_text_config().max_position_embeddings

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Finished]:
        """Yield traces as they finish; a finished row's slot takes the next request at once."""
        waiting = self._prefilled(iter(requests))
        live: list[Request] = []  # slot i holds live[i]; free slots are always the last
        state = np.zeros((self.rows, 8), dtype=np.int64)
        book = np.empty((self.rows, 256, 5))
        while True:
            while len(live) < self.rows and (ready := next(waiting, None)) is not None:
                request, teacher, student, i = ready
                slot = len(live)
                lengths = len(request.student_prompt) - 1, len(request.teacher_prompt) - 1
                self.student.cache.copy_row(student.cache, i, slot, lengths[0])
                self.teacher.cache.copy_row(teacher.cache, i, slot, lengths[1])
                pending = request.student_prompt[-1], self.vocabulary.width + request.teacher_prompt[-1]
                state[slot] = request.key, 0, request.max_new_tokens, *lengths, *pending, 0
                live.append(request)
            if not live:
                return
            if state[: len(live), DONE].max() + self.block > book.shape[1]:
                book = np.concatenate([book, np.empty_like(book)], 1)
            ended = self._round(state[: len(live)], book)
            for slot, reason in ended:
                yield _finished(live[slot], book[slot, : state[slot, DONE]], reason)
            for slot, _ in reversed(ended):
                last = len(live) - 1
                live[slot] = live[last]
                live.pop()
                if slot < last:
                    self._move(last, slot, state, book)

    def _round(self, state: np.ndarray, book: np.ndarray) -> list[tuple[int, str]]:
        """Draft, verify, commit: advances `state` [R, 8] and `book` [R, T, 5]; the rows that ended, and why."""
        block = self.block
        device = self.student.device
        noise = torch.from_numpy(uniforms(state[:, KEY], state[:, DONE, None] + np.arange(block))).to(device)
        on_device = torch.from_numpy(state).to(device)
        at, token = on_device[:, STUDENT_LENGTH, None], on_device[:, PENDING]
        reach = int(state[:, STUDENT_LENGTH].max()) + 1

        steps = []
        for j in range(block):
            logits = self.student(token[:, None], at + j, reach + j)[:, 0].float()
            logprobs = logits.log_softmax(-1)
            p = warp(logits + self.own, self.sampling)
            stands = acceptable(logprobs, p, self.acceptance, self.sampling)
            d = drafter(p, stands)
            token = draw(d, noise[:, j, DRAFT])
            steps.append((token, logprobs, p, stands, d))
        # Stacking copies what is as wide as the vocabulary: not in lockstep, where there is one of each.
        drafts, logprobs, p, stands, d = (
            x[0].unsqueeze(1) if block == 1 else torch.stack(x, 1) for x in zip(*steps, strict=True)
        )

        teacher_logits, judged = self._teach(state, drafts)
        teacher_logits = teacher_logits.to(device).float()
        q = proposals(teacher_logits, self.shared, self.sampling)
        goal = target(q, p, stands, self.acceptance.trials)
        verdict = verify(drafts, d, goal, noise)

        at_token = verdict.tokens[..., None]
        in_teacher = at_token.clamp_max(teacher_logits.shape[-1] - 1)
        theirs = teacher_logits.log_softmax(-1)
        numbers = torch.stack(
            [
                theirs.gather(-1, in_teacher)[..., 0],
                logprobs.gather(-1, at_token)[..., 0],
                goal.accepted,
                theirs.amax(-1) + logprobs.amax(-1),  # finite only where both models' logits are sound
            ]
        )
        kept = verdict.kept[:, None].expand(-1, block)
        ids = torch.stack([verdict.tokens, verdict.from_teacher.long(), kept])
        return self._commit(state, book, judged, ids.cpu().numpy(), numbers.cpu().numpy())

    def _teach(self, state: np.ndarray, drafts: Tensor) -> tuple[Tensor, np.ndarray]:
        """The teacher's logits [R, K, V_teacher] where each draft is to be judged, and of how many of a
        row's drafts [R] they are: the teacher has not read all pieces before the others yet.
        """
        block = drafts.shape[1]
        fed = state[:, TEACHER_PENDING, None]
        if block > 1:
            fed = np.concatenate([fed, drafts[:, :-1].cpu().numpy()], 1)
        lengths = self.spelled[fed]
        lengths[:, 0] -= state[:, READ]
        ends = lengths.cumsum(1)  # [R, K]: one past the last piece of each token
        columns = np.arange(block if len(fed) >= WAIT_FROM else ends[:, -1].max())
        which = np.minimum((columns[:, None] >= ends[:, None, :]).sum(-1), block - 1)
        # A row that is spelled in fewer pieces than another repeats its last one in place.
        of = np.take_along_axis
        piece = np.minimum(columns - of(ends - lengths, which, 1), of(lengths, which, 1) - 1)
        piece += np.where(which == 0, state[:, READ, None], 0)
        ids = self.spelling[of(fed, which, 1), piece]
        positions = state[:, TEACHER_LENGTH, None] + np.minimum(columns, ends[:, -1:] - 1)
        both = torch.from_numpy(np.stack([ids, positions])).to(self.teacher.device)
        logits = self.teacher(both[0], both[1], int(positions.max()) + 1)
        judged = (ends <= len(columns)).sum(1)
        if len(columns) > 1:
            last = torch.from_numpy(np.minimum(ends, len(columns)) - 1).to(logits.device)
            logits = logits.gather(1, last[..., None].expand(-1, -1, logits.shape[-1]))
        return logits, judged

    def _commit(
        self, state: np.ndarray, book: np.ndarray, judged: np.ndarray, ids: np.ndarray, numbers: np.ndarray
    ) -> list[tuple[int, str]]:
        """Book what a round made, up to a row's end; the rows that ended, and why."""
        tokens, labels, kept = ids  # [R, K]
        teacher, student, accepted, sound = numbers
        rows, block = tokens.shape
        column, row = np.arange(block), np.arange(rows)
        kept = np.minimum(kept, judged[:, None])
        # What the teacher has read when it judges a token, and would have read for the next one.
        fed = np.concatenate([state[:, TEACHER_PENDING, None], tokens[:, :-1]], 1)
        read = (state[:, TEACHER_LENGTH] - state[:, READ])[:, None] + self.spelled[fed].cumsum(1)
        stops = self.stops[tokens]
        full = read + self.spelled[tokens] > self.teacher_context
        full |= state[:, DONE, None] + column + 1 >= state[:, LIMIT, None]
        valid = column < kept
        ends = (stops | full) & valid
        ended = ends.any(1)
        count = np.where(ended, ends.argmax(1) + 1, kept[:, 0])
        valid &= column < count[:, None]
        broken = (~np.isfinite(sound) & valid).any(1)

        made = np.empty((*tokens.shape, 5))
        made[..., TOKEN], made[..., LABEL] = tokens, labels
        made[..., TEACHER_LOGPROB] = np.where(self.teacher_has[tokens], teacher, np.nan)
        made[..., STUDENT_LOGPROB], made[..., ACCEPTED] = student, accepted
        r, c = valid.nonzero()
        book[r, state[r, DONE] + c] = made[r, c]
        waits = count == 0  # the block's columns were all pieces of the row's next token
        last = np.maximum(count - 1, 0)
        state[:, DONE] += count
        state[:, STUDENT_LENGTH] += count
        state[:, READ] = np.where(waits, state[:, READ] + block, 0)
        state[:, TEACHER_LENGTH] = np.where(waits, state[:, TEACHER_LENGTH] + block, read[row, last])
        for pending in (PENDING, TEACHER_PENDING):
            state[:, pending] = np.where(waits, state[:, pending], tokens[row, last])
        state[broken, DONE] = 0  # nothing of a broken row is kept
        return [
            (i, "error" if broken[i] else "stop" if stops[i, last[i]] else "length")
            for i in (ended | broken).nonzero()[0].tolist()
        ]

    def _move(self, slot: int, to: int, state: np.ndarray, book: np.ndarray) -> None:
        """Move the last live row into a freed slot, so that live rows stay together."""
        state[to] = state[slot]
        book[to, : state[to, DONE]] = book[slot, : state[to, DONE]]
        self.student.cache.copy_row(self.student.cache, slot, to, int(state[to, STUDENT_LENGTH]))
        self.teacher.cache.copy_row(self.teacher.cache, slot, to, int(state[to, TEACHER_LENGTH]))

    def _prefilled(self, requests: Iterator[Request]) -> Iterator[tuple[Request, CachedModel, CachedModel, int]]:
        """Requests with their prompts read: several different prompts in one pass, equal ones in a row once."""
        ahead = next(requests, None)
        while ahead is not None:
            group: list[tuple[Request, int]] = []
            prompts: list[Request] = []
            tokens = 0
            while ahead is not None:
                if not prompts or not _same_prompt(prompts[-1], ahead):
                    if len(prompts) == AT_ONCE or tokens >= READ_AHEAD:
                        break
                    prompts.append(ahead)
                    tokens += len(ahead.student_prompt)
                group.append((ahead, len(prompts) - 1))
                ahead = next(requests, None)
            student = self.student.prefill([r.student_prompt for r in prompts])
            teacher = self.teacher.prefill([r.teacher_prompt for r in prompts])
            for request, i in group:
                yield request, teacher, student, i


def _finished(request: Request, record: np.ndarray, reason: str) -> Finished:
    column = record.T.copy()
    return Finished(
        request=request,
        token_ids=column[TOKEN].astype(np.int64),
        teacher_logprobs=column[TEACHER_LOGPROB],
        student_logprobs=column[STUDENT_LOGPROB],
        from_teacher=column[LABEL] > 0,
        accepted=column[ACCEPTED],
        finish_reason=reason,
        error="the logits of a model hold NaN or infinity" if reason == "error" else None,
    )


def _same_prompt(a: Request, b: Request) -> bool:
    return a.student_prompt == b.student_prompt and a.teacher_prompt == b.teacher_prompt
