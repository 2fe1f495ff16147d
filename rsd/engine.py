"""The decoding engine: rounds of draft, verify, commit, refill. It knows ids only, never text.

A round, for all live rows at once: the student drafts a block of tokens one by one, leaving its
distribution at every position; the teacher reads the block in one pass; what survives is committed
(`sampling.verify`). A block of one is lockstep: one step of each model a token. Rows advance by
different amounts, and nothing is moved to roll back (`cache`).
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd import sampling
from rsd.cache import CachedModel
from rsd.config import Acceptance, Sampling
from rsd.vocabulary import Vocabulary

READ_AHEAD = 2048  # prompt tokens that are prefilled together, before rows are free for them
AT_ONCE = 16  # and how many prompts at the most

# Columns of a row's state: all that the host decides about a row, sent to the device once a round.
KEY, DONE, STUDENT_LENGTH, TEACHER_LENGTH, PENDING, TEACHER_PENDING = range(6)


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


class _Row:
    """The host's record of a live row: [T, 6] of token, both log-probs, label, a, soundness."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.record = np.empty((min(request.max_new_tokens, 256), 6))

    def append(self, done: int, committed: np.ndarray) -> None:
        while done + len(committed) > len(self.record):
            self.record = np.concatenate([self.record, np.empty_like(self.record)])
        self.record[done : done + len(committed)] = committed

    def finish(self, done: int, reason: str, error: str | None = None) -> Finished:
        token, teacher, student, label, a, _ = self.record[:done].T
        return Finished(self.request, token.astype(np.int64), teacher, student, label > 0, a, reason, error)


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
        self.vocabulary = vocabulary.to(self.student.device)
        self.sampling, self.acceptance = sampling, acceptance
        self.eos = np.array(sorted(eos), dtype=np.int64)
        self.rows, self.block = rows, block
        self.spelled = vocabulary.spelled.cpu().numpy()
        self.shared = vocabulary.shared.cpu().numpy() > 0
        self.teacher_context = teacher.config.get_text_config().max_position_embeddings
        self.rounds = 0

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Finished]:
        """Yield traces as they finish; a finished row's slot takes the next request at once."""
        waiting = self._prefilled(iter(requests))
        live: list[_Row] = []  # slot i holds live[i]; free slots are always the last
        state = np.zeros((self.rows, 6), dtype=np.int64)
        while True:
            while len(live) < self.rows and (ready := next(waiting, None)) is not None:
                request, teacher, student, i = ready
                slot = len(live)
                lengths = len(request.student_prompt) - 1, len(request.teacher_prompt) - 1
                self.student.cache.copy_row(student.cache, i, slot, lengths[0])
                self.teacher.cache.copy_row(teacher.cache, i, slot, lengths[1])
                pending = request.student_prompt[-1], self.vocabulary.width + request.teacher_prompt[-1]
                state[slot] = request.key, 0, *lengths, *pending
                live.append(_Row(request))
            if not live:
                return
            tokens, counts, record = self._round(state[: len(live)])
            self.rounds += 1
            ended = []
            for i, row in enumerate(live):
                finished = self._commit(row, state[i], tokens[i, : counts[i]], record[i, : counts[i]])
                if finished is not None:
                    ended.append(i)
                    yield finished
            for i in reversed(ended):
                self._release(i, live, state)

    def _round(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draft, verify. Returns tokens [R, K], how many of them are committed [R], and the record [R, K, 6]."""
        block, rows = self.block, len(state)
        on_device = torch.from_numpy(state).to(self.student.device)
        key, done, at, _, token, _ = on_device.unbind(1)
        reach = int(state[:, STUDENT_LENGTH].max()) + 1
        noise = sampling.uniforms(key, done[:, None] + torch.arange(block, device=key.device))

        steps = []
        for j in range(block):
            logits = self.student(token[:, None], at[:, None] + j, reach + j)
            logits = logits[:, 0].float()
            logprobs = logits.log_softmax(-1)
            p = sampling.warp(logits + self.vocabulary.own, self.sampling)
            stands = sampling.acceptable(logprobs, p, self.acceptance, self.sampling)
            d = sampling.drafter(p, stands)
            token = sampling.draw(d, noise[:, j, sampling.DRAFT])
            steps.append((token, logprobs, p, stands, d))
        drafts, logprobs, p, stands, d = (torch.stack(x, 1) for x in zip(*steps, strict=True))

        teacher_logits = self._teach(on_device, drafts).to(p.device).float()
        q = sampling.proposals(teacher_logits, self.vocabulary.shared, self.sampling)
        goal = sampling.target(q, p, stands, self.acceptance.trials)
        verdict = sampling.verify(drafts, d, goal, noise)

        # One number that is finite only where both models' logits are sound.
        teacher_norm = teacher_logits.logsumexp(-1)
        sound = teacher_norm + logprobs.amax(-1)
        at_token = verdict.tokens[..., None]
        in_teacher = at_token.clamp_max(teacher_logits.shape[-1] - 1)
        record = torch.stack(
            [
                verdict.tokens.double(),
                (teacher_logits.gather(-1, in_teacher).squeeze(-1) - teacher_norm).double(),
                logprobs.gather(-1, at_token).squeeze(-1).double(),
                verdict.from_teacher.double(),
                goal.accepted.double(),
                sound.double(),
                verdict.kept[:, None].expand(rows, block).double(),
            ],
            -1,
        )
        made = record.cpu().numpy()
        return made[..., 0].astype(np.int64), made[:, 0, 6].astype(np.int64), made[..., :6]

    def _teach(self, state: Tensor, drafts: Tensor) -> Tensor:
        """The teacher's logits [R, K, V_teacher] where each draft is to be judged."""
        block = drafts.shape[1]
        fed = torch.cat([state[:, TEACHER_PENDING, None], drafts[:, :-1]], 1)
        lengths = self.vocabulary.spelled[fed]
        ends = lengths.cumsum(1)  # [R, K]: one past the last piece of each token
        columns = torch.arange(int(ends[:, -1].max()), device=fed.device)
        which = (columns[:, None] >= ends[:, None, :]).sum(-1).clamp_max(block - 1)
        piece = columns - (ends - lengths).gather(1, which)
        # A row that is spelled in fewer pieces than another repeats its last one in place.
        piece = piece.minimum(lengths.gather(1, which) - 1)
        ids = self.vocabulary.spelling[fed.gather(1, which), piece]
        start = state[:, TEACHER_LENGTH, None]
        positions = start + columns.minimum(ends[:, -1:] - 1)
        reach = int(positions.max()) + 1
        device = self.teacher.device
        logits = self.teacher(ids.to(device), positions.to(device), reach)
        if len(columns) == block:
            return logits
        return logits.gather(1, (ends - 1)[..., None].expand(-1, -1, logits.shape[-1]).to(device))

    def _commit(self, row: _Row, state: np.ndarray, tokens: np.ndarray, record: np.ndarray) -> Finished | None:
        """Book a row's tokens; the finished trace if they end it."""
        done = int(state[DONE])
        if not np.isfinite(record[:, 5]).all():
            return row.finish(0, "error", "the logits of a model hold NaN or infinity")
        # What the teacher has read when it judges each token, and would have read for the next one.
        read = state[TEACHER_LENGTH] + self.spelled[[state[TEACHER_PENDING], *tokens[:-1]]].cumsum()
        stops = np.isin(tokens, self.eos)
        full = read + self.spelled[tokens] > self.teacher_context
        full |= np.arange(done + 1, done + len(tokens) + 1) >= row.request.max_new_tokens
        ends = (stops | full).nonzero()[0]
        count = int(ends[0]) + 1 if len(ends) else len(tokens)
        tokens, record = tokens[:count], record[:count]
        record[~self.shared[tokens], 1] = np.nan
        row.append(done, record)
        if len(ends):
            return row.finish(done + count, "stop" if stops[count - 1] else "length")
        state[DONE] += count
        state[STUDENT_LENGTH] += count
        state[TEACHER_LENGTH] = read[-1]
        state[PENDING] = state[TEACHER_PENDING] = tokens[-1]
        return None

    def _release(self, slot: int, live: list[_Row], state: np.ndarray) -> None:
        """Free a slot by moving the last live row into it, so that live rows stay together."""
        last = live.pop()
        if slot == len(live):
            return
        live[slot] = last
        state[slot] = state[len(live)]
        for model, length in ((self.student, STUDENT_LENGTH), (self.teacher, TEACHER_LENGTH)):
            model.cache.copy_row(model.cache, len(live), slot, int(state[slot, length]))

    def _prefilled(self, requests: Iterator[Request]) -> Iterator[tuple[Request, CachedModel, CachedModel, int]]:
        """Requests with their prompts read: several different prompts in one pass, each only once."""
        ahead = deque[Request]()
        while True:
            prompts: list[Request] = []
            tokens = 0
            # Equal prompts in a row count as one; the request that no longer fits starts the next group.
            while len(prompts) < AT_ONCE and tokens < READ_AHEAD:
                request = next(requests, None)
                if request is None:
                    break
                ahead.append(request)
                if not prompts or not _same_prompt(prompts[-1], request):
                    prompts.append(request)
                    tokens += len(request.student_prompt)
            if not prompts:
                return
            student = self.student.prefill([r.student_prompt for r in prompts])
            teacher = self.teacher.prefill([r.teacher_prompt for r in prompts])
            i = 0
            while ahead:
                request = ahead.popleft()
                if not _same_prompt(prompts[i], request):
                    i += 1
                yield request, teacher, student, i


def _same_prompt(a: Request, b: Request) -> bool:
    return a.student_prompt == b.student_prompt and a.teacher_prompt == b.teacher_prompt
