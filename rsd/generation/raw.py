"""The raw responses that traces are made after (`rsd tailor`): what is said of them beside each trace."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from rsd.answers.verifier import Judgement, Verifier, verdict
from rsd.scoring.metrics import LN
from rsd.scoring.scorer import Scorer
from rsd.traces.rows import Row

SCORES = (LN, "low_prob_share", "scored_tokens")
# What a trace's row says of them; `source` says whose text the row's own is.
COLUMNS = (
    "source",
    "raw_completion",
    "raw_is_correct",
    *(f"raw_{name}" for name in SCORES),
    "raw_error",
    "steps_left_out",
)
TAILORED, RAW = "tailored", "raw"
KNOWN = 256  # rows of which it is known, beyond which it is found out again: a row's generations are near each other


class RawResponses:
    """Judges and scores them, each once for all of a row's generations."""

    def __init__(self, verifier: Verifier, scorer: Scorer | None) -> None:
        self.verifier, self.scorer = verifier, scorer
        self._judged: dict[str, Future[Judgement]] = {}
        self._made: dict[str, Mapping[str, Any]] = {}

    def submit(self, row: Row, *, opened: bool) -> None:
        """Have a row's raw response judged, while its traces are made. opened: its prompt ends in `<think>`."""
        name = str(row.id)
        if row.raw is None or row.raw.is_correct is not None or name in self._judged or name in self._made:
            return
        text = row.raw.text
        self._judged[name] = verdict(self.verifier, row, text, opened=opened and "</think>" in text)

    def columns(self, row: Row, prompt_ids: list[int]) -> Mapping[str, Any]:
        """`COLUMNS` of a row's traces. prompt_ids: the student's; none where the row has no prompt."""
        name = str(row.id)
        if name not in self._made:
            self._made[name] = self._columns(row, prompt_ids)
            if len(self._made) > KNOWN:
                del self._made[next(iter(self._made))]
        return self._made[name]

    def _columns(self, row: Row, prompt_ids: list[int]) -> Mapping[str, Any]:
        raw = row.raw
        if raw is None or not prompt_ids:
            return dict.fromkeys(COLUMNS) | {"source": TAILORED, "raw_completion": raw and raw.text}
        judged = self._judged.pop(str(row.id), None)
        found = Judgement(raw.is_correct) if judged is None else judged.result()
        scores: Mapping[str, float | None] = {}
        error = found.error
        if self.scorer is not None:
            scored = self.scorer.score_text(raw.text, prompt_ids=prompt_ids)
            scores, error = scored.metrics, error or scored.error
        return {
            "source": TAILORED,
            "raw_completion": raw.text,
            "raw_is_correct": found.correct,
            **{f"raw_{name}": scores.get(name) for name in SCORES},
            "raw_error": error,
            "steps_left_out": raw.left_out,
        }
