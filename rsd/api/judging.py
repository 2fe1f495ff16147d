"""Scoring, verifying and weighing traces."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rsd.api.sources import source_files
from rsd.reading import Reading
from rsd.scoring.config import ScoreConfig
from rsd.settings import amended
from rsd.weighing.config import WeighConfig

if TYPE_CHECKING:
    from rsd.generation.rereading import Rereader
    from rsd.scoring.scored_rows import ScoreSummary
    from rsd.scoring.scorer import Scorer
    from rsd.scoring.verify import VerifySummary
    from rsd.traces.given import Given
    from rsd.weighing.job import WeighSummary

File = str | Path


@overload
def score(
    source: "Given", output: None = None, *, config: ScoreConfig | None = None, **settings: Any
) -> list[dict[str, Any]]: ...
@overload
def score(
    source: "Given", output: File, *, overwrite: bool = False, config: ScoreConfig | None = None, **settings: Any
) -> "ScoreSummary": ...
def score(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: ScoreConfig | None = None,
    **settings: Any,
) -> "list[dict[str, Any]] | ScoreSummary":
    """How natural each trace in `source` is for a student: the rows, in order, with their scores, and a verdict where
    they have an answer and none yet.

    Args:
        output: a .jsonl file for them. Then it resumes what is there, and what is returned is the summary.
        overwrite: start anew instead of resuming.
        settings: of `ScoreConfig`, such as `student="Qwen/Qwen3-0.6B"` or `window="20%"`.

    Raises:
        ValueError: a bad setting or source, the student cannot be loaded, or `output` is of other rows.
    """
    config = amended(ScoreConfig, config, settings)
    from rsd.scoring.responses import read_responses
    from rsd.scoring.verdicts import judged, judging_of

    if output is None:
        if overwrite or config.top_logprobs:
            raise ValueError("overwrite and top_logprobs are for an output: name one")
        from rsd.scoring.scorer import load_scorer

        todo = read_responses(source, config)
        scorer = load_scorer(config)
        made = scorer.score_all(judged(todo, judging_of(todo, config)))
        return [dict(one.response.row) | one.columns() for one in made]
    from rsd.outputs import Output, check_outputs, lines_only
    from rsd.scoring.scored_rows import finished_before
    from rsd.traces import ours
    from rsd.traces.shards import part_files

    lines_only(output)
    out = Path(output)
    check_outputs([Output(out, ours.scored if overwrite else None)], inputs=source_files(source))
    if part_files(out):
        raise ValueError(f"{out} was begun by several processes: rsd score goes on with that")
    todo = read_responses(source, config, strict=True)
    judging = judging_of(todo, config)
    top = config.top_logprobs
    if not overwrite and (known := finished_before(todo, out, config, judging, top_logprobs=top)) is not None:
        return known
    from rsd.scoring.job import score_file

    scorer, reread = scorer_of(config)
    return score_file(scorer, todo, out, judging=judging, overwrite=overwrite, reread=reread, top=top)


def scorer_of(config: ScoreConfig) -> "tuple[Scorer, Rereader | None]":
    """A scorer, and the pair that keeps soft targets where they are asked for."""
    if config.top_logprobs:
        from rsd.generation.rereading import load_rereader

        return load_rereader(config)
    from rsd.scoring.scorer import load_scorer

    return load_scorer(config), None


@overload
def verify(
    source: "Given", output: None = None, *, config: Reading | None = None, **settings: Any
) -> list[dict[str, Any]]: ...
@overload
def verify(
    source: "Given", output: File, *, overwrite: bool = False, config: Reading | None = None, **settings: Any
) -> "VerifySummary": ...
def verify(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: Reading | None = None,
    **settings: Any,
) -> "list[dict[str, Any]] | VerifySummary":
    """Whether the answer of each trace in `source` is right: the rows, in order, with a verdict each, whatever verdict
    they had.

    Args:
        output: a .jsonl file for them. Then it resumes what is there, and what is returned is the summary.
        overwrite: start anew instead of resuming.
        settings: of `reading.Reading`, such as `verify="boxed"` or `answer_column="solution"`.

    Raises:
        ValueError: a bad setting or source, there is no column of answers, or `output` is of other rows.
    """
    config = amended(Reading, config, settings)
    from rsd.scoring.responses import read_responses
    from rsd.scoring.verdicts import judged, must_judge

    if output is None:
        if overwrite:
            raise ValueError("overwrite is for an output: name one")
        todo = read_responses(source, config)
        return [dict(r.row) for r in judged(todo, must_judge(todo, config))]
    from rsd.outputs import Output, check_outputs, lines_only
    from rsd.scoring.verify import verify_file
    from rsd.traces import ours

    lines_only(output)
    check_outputs([Output(output, ours.verified if overwrite else None)], inputs=source_files(source))
    todo = read_responses(source, config, strict=True)
    return verify_file(todo, output, must_judge(todo, config), overwrite=overwrite)


@overload
def weigh(
    source: "Given", output: None = None, *, config: WeighConfig | None = None, **settings: Any
) -> list[dict[str, Any]]: ...
@overload
def weigh(
    source: "Given", output: File, *, overwrite: bool = False, config: WeighConfig | None = None, **settings: Any
) -> "WeighSummary": ...
def weigh(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: WeighConfig | None = None,
    **settings: Any,
) -> "list[dict[str, Any]] | WeighSummary":
    """How hard a student is to learn each step of the traces in `source`: the rows, in order, with a weight for every
    step and every token. The formulas are this project's (`weighing.weights`), after the idea of arXiv 2605.04078.

    Args:
        output: a .jsonl file for them. Then it resumes what is there, and what is returned is the summary.
        overwrite: start anew instead of resuming.
        settings: of `WeighConfig`, such as `validity="rollout"` or `teacher="simplescaling/s1.1-7B"`.

    Raises:
        ValueError: a bad setting or source, a pair that does not fit, or `output` is of other rows.
    """
    config = amended(WeighConfig, config, settings)
    if output is None:
        if overwrite:
            raise ValueError("overwrite is for an output: name one")
        from rsd.weighing.job import weigher_for

        weigher, todo = weigher_for(source, config)
        return [made.row() for made in weigher.weigh(todo)]
    from rsd.outputs import Output, check_outputs, lines_only
    from rsd.traces import ours
    from rsd.weighing.job import weigh_file, weigher_for

    lines_only(output)
    check_outputs([Output(output, ours.weighed if overwrite else None)], inputs=source_files(source))
    return weigh_file(*weigher_for(source, config, strict=True), output, overwrite=overwrite)
