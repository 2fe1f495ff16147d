"""The scores of a trace: one table. How they are computed is in `measure`."""

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score.

    better: whether more of it is better; None where it is there to be read beside the others. unit: and what it is of.
    short: how a terminal's table calls it, if not by its label. by: how `rsd select --by` calls it, if it may.
    """

    label: str
    unit: str
    better: bool | None = None
    short: str | None = None
    by: str | None = None

    @property
    def heading(self) -> str:
        return self.short or self.label.lower()


LN = "local_naturalness"
# By their columns.
METRICS = {
    LN: Metric(label="Local Naturalness", unit="log-prob after prompt and window, nats a token", better=True, by="ln"),
    "global_logprob": Metric(
        label="Global log-prob", unit="after all that precedes, nats a token", better=True, by="global"
    ),
    "perplexity": Metric(label="Perplexity", unit="of the whole trace", better=False),
    "rsr": Metric(
        label="RSR", unit="mean rank over mean surprisal", better=False, short="RSR (mean of traces)", by="rsr"
    ),
    "aslec_drop": Metric(
        label="ASLEC-DROP",
        unit="log-prob without each step's first token",
        better=True,
        short="ASLEC-DROP",
        by="aslec",
    ),
    "low_prob_share": Metric(label="Improbable tokens", unit="share below the threshold", better=False, by="low-prob"),
    "surprisal_p50": Metric(label="Surprisal, median", unit="nats", better=False),
    "surprisal_p90": Metric(label="Surprisal, 90th percentile", unit="nats", better=False, short="surprisal, 90 %"),
    "surprisal_p99": Metric(label="Surprisal, 99th percentile", unit="nats", better=False, short="surprisal, 99 %"),
    "scored_tokens": Metric(label="Tokens", unit="a trace"),
    "num_steps": Metric(label="Steps", unit="a trace"),
    "tokens_per_step": Metric(label="Tokens a step", unit="longer steps score better", short="tokens per step"),
}
BY = {metric.by: name for name, metric in METRICS.items() if metric.by}
# What a scored row has besides.
COLUMNS = (*METRICS, "step_spans", "scoring", "score_error")
_PLACES = {name: i for i, name in enumerate(METRICS)}


class Figures(Mapping[str, float | None]):
    """The metrics of a trace in a hundred bytes, for where a hundred thousand are held."""

    __slots__ = ("_values",)

    def __init__(self, metrics: Mapping[str, float | None]) -> None:
        known = (metrics[name] for name in METRICS)
        self._values = array("d", (math.nan if value is None else value for value in known))

    def __getitem__(self, name: str) -> float | None:
        value = self._values[_PLACES[name]]
        return None if math.isnan(value) else value

    def __iter__(self) -> Iterator[str]:
        return iter(METRICS)

    def __len__(self) -> int:
        return len(METRICS)
