"""Files that train as they are: traces filtered, de-duplicated, split and written in a trainer's format."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsd.dataset.config import ExportConfig
from rsd.dataset.formats import IDS, WITH_TEMPLATE, Ids, Row, answer, formatted, prefix, privileged_context, weights_of
from rsd.dataset.readback import gathered
from rsd.dataset.respelled import kwargs_of, respelled
from rsd.dataset.soft_formats import SOFT, Softened, softened
from rsd.settings import called
from rsd.terminal import in_lines
from rsd.traces.filters import is_right, keep
from rsd.traces.given import Given
from rsd.traces.lines import Key, files_of, key_of
from rsd.traces.rows import Messages, digest
from rsd.traces.spool import OnDemand


@dataclass(frozen=True, eq=False)
class Export:
    """What was exported, and the counts: `rows` are the train and test rows and all that was `dropped`.

    prefixes: how many of the rows are prefixes. sources: lines of the input, prefixes not counted.
    respelled: of the rows in a text format, how many the student's tokenizer spells with other ids than
        were sampled; None where that is not known, and `notices` say why. compression: the text of DistillKit's
        compression file. files: where it was written to, by
        split, and the card.
    """

    config: ExportConfig
    train: Sequence[Row]
    test: Sequence[Row]
    sources: int
    dropped: Mapping[str, int]
    problems: int
    unsolved: int
    prefixes: int
    respelled: int | None
    manifest: Mapping[str, Any]
    notices: Sequence[str]
    compression: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def text(self) -> str:
        c = self.config
        lines = [f"notice: {n}" for n in self.notices]
        lines.append(f"rows         {self.sources} read, {len(self.train)} for training, {len(self.test)} for testing")
        if self.prefixes:
            lines.append(f"prefixes     {self.prefixes} of them, {c.prefix_tokens} tokens of unsolved problems' traces")
        if self.dropped:
            lines.append("left out     " + ", ".join(f"{n} {why}" for why, n in self.dropped.items()))
        lines.append(f"problems     {self.problems}, {self.unsolved} of them without a correct trace")
        if self.respelled is not None:
            whole = len(self.train) + len(self.test)
            lines.append(
                f"tokens       {whole - self.respelled} of {whole} rows give the sampled ids when they are tokenized, "
                f"{self.respelled} others" + (f"; {called('format', 'token-ids')} keeps all" if self.respelled else "")
            )
        return in_lines(lines)


def export(source: Given, config: ExportConfig) -> Export:
    """Read a file of traces, or take rows or traces, and make what is to be written.

    Raises:
        ValueError: they are no traces of ours, none is kept, or the format needs tokens that are not there.
    """
    path, rows, torn, tokens, broken, teacher, soft, manifest = gathered(source, soft=config.format in SOFT)
    problems: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        problems[str(row["id"])].append(row)
    unsolved = [of for of in problems.values() if _unsolved(of, config)]
    kept, dropped = keep(rows, config.keep, max_fallback_rate=config.max_fallback_rate)
    first: dict[str, Row] = {}
    for row in sorted(kept, key=lambda row: (str(row["id"]), row["generation"])):
        first.setdefault(_text(row), row)
    chosen = {id(row) for row in first.values()}
    distinct = [row for row in kept if id(row) in chosen]  # in the order of the file; which ones, does not depend on it
    dropped |= {why: n for why, n in (("duplicates", len(kept) - len(distinct)), ("torn lines", torn)) if n}
    if config.format == "token-ids":
        _check_tokens(path, rows, distinct, tokens, broken)
    softer: Softened | None = None
    if config.format in SOFT:
        softer = softened(path, config.format, distinct, tokens, soft, manifest)
        distinct = [*softer.rows]
        dropped |= softer.dropped
    weights: dict[Key, list[float]] = {}
    weighted = config.format == "token-ids" and any(row.get("token_weights") is not None for row in rows)
    if weighted:
        told = {key_of(row): weights_of(row, tokens[key_of(row)]) for row in rows if key_of(row) in tokens}
        weights = {key: of for key, of in told.items() if of is not None}
        # One without weights would count more than all that have them.
        if unweighted := sum(key_of(row) not in weights for row in distinct):
            distinct = [row for row in distinct if key_of(row) in weights]
            dropped["without a weight for each token"] = unweighted
    kwargs = kwargs_of(manifest, config.format)
    keyed = [(row, key_of(row)) for row in distinct]
    made = [(row, formatted(row, config.format, tokens.get(k), kwargs, weights.get(k))) for row, k in keyed]
    prefixes = []
    if config.prefix_tokens:
        fit: Collection[Key] = weights if weighted else tokens
        known = [[row for row in of if row.get("error") is None and key_of(row) in fit] for of in unsolved]
        begun = [(row, key_of(row)) for row in (min(of, key=key_of) for of in known if of)]
        prefixes = [(row, prefix(row, config.prefix_tokens, tokens[k], weights.get(k))) for row, k in begun]
        made = [(row, {**out, "is_prefix": False}) for row, out in made] + prefixes
    if config.with_teacher_prompt:
        prompts = _teacher_prompts(path, [row for row, _ in made], teacher)
        made = [(row, {**out, "privileged_context": prompts[key_of(row)]}) for row, out in made]
    if len({type(row["id"]) for row, _ in made}) > 1:  # a column of a table has one type
        made = [(row, {**out, "id": str(row["id"])}) for row, out in made]
    if not made:
        counts = ", ".join(f"{n} {why}" for why, n in dropped.items())
        raise ValueError(
            f"{path}: nothing is left to export ({counts}); {called('keep', 'all')} keeps what is not verified, too"
        )
    count: int | None = None
    notices: list[str] = []
    if config.format not in IDS:
        if config.format not in SOFT:
            count, notices = respelled(distinct, tokens, manifest, config.format)
        given = manifest.get("identity", {}).get("chat_template_kwargs")
        if given and config.format not in WITH_TEMPLATE:
            notices.append(
                f"{config.format} has no place for the job's chat_template_kwargs {json.dumps(given)}: "
                "a trainer must be told"
            )
        elif not manifest:
            notices.append("there is no manifest here: chat_template_kwargs of the job, if it had any, are not known")
    return Export(
        config=config,
        train=_rows([(row, out) for row, out in made if not _for_testing(row, config)], softer),
        test=_rows([(row, out) for row, out in made if _for_testing(row, config)], softer),
        sources=len(rows) + torn,
        dropped=dropped,
        problems=len(problems),
        unsolved=len(unsolved),
        prefixes=len(prefixes),
        respelled=count,
        manifest=manifest,
        notices=notices,
        compression=softer and softer.compression,
    )


def _rows(made: Sequence[tuple[Row, dict[str, Any]]], softer: Softened | None) -> Sequence[Row]:
    """Rows as they are written; with soft targets each is put together when it is asked for."""
    if softer is None:
        return [out for _, out in made]
    shaped = softer.shaped
    return OnDemand([out["id"] for _, out in made], lambda i: {**shaped(made[i][0]), **made[i][1]})


def _check_tokens(
    path: str,
    rows: Sequence[Row],
    distinct: Sequence[Row],
    tokens: Mapping[Key, Ids],
    broken: Mapping[Key, str],
) -> None:
    """Whether a job's tokens are there for the rows that are exported, and are ids in all.

    Raises:
        ValueError: they are not.
    """
    sidecar = files_of(path)[0].name
    if bad := [key_of(row) for row in rows if key_of(row) in broken]:
        name, generation = bad[0]
        raise ValueError(f"{sidecar}, row {name!r}, generation {generation}: {broken[bad[0]]}")
    if missing := sum(key_of(row) not in tokens for row in distinct):
        raise ValueError(
            f"{path}: token-ids needs every trace's tokens, and {missing} are not in {sidecar}: "
            "export the file that rsd generate wrote, or choose another format"
        )


def _teacher_prompts(path: str, rows: Sequence[Row], teacher: Mapping[Key, Messages | None]) -> dict[Key, str]:
    """What the teacher alone read, by trace.

    Raises:
        ValueError: it had no prompt of its own, or which one is not known.
    """
    flag, prompts = called("with_teacher_prompt", True), {}
    for row in rows:
        if key_of(row) not in teacher:
            raise ValueError(
                f"{path}, row {row['id']!r}: no prompt of the teacher's own is known, as {called('teacher_template')} "
                f"and {called('teacher_prompt_column')} make them: leave {flag} out"
            )
        if (messages := teacher[key_of(row)]) is None:
            raise ValueError(
                f"{files_of(path)[0].name}, row {row['id']!r}: of the teacher's prompt there is a hash alone, since an "
                f"older rsd made this trace: make it anew, or leave {flag} out"
            )
        prompts[key_of(row)] = privileged_context(row, messages)
    return prompts


def _text(row: Row) -> str:
    return digest([row["prompt"], answer(row)])


def _unsolved(rows: Sequence[Row], config: ExportConfig) -> bool:
    """Whether a problem's traces were verified, and none is right."""
    right = any(is_right(row, max_fallback_rate=config.max_fallback_rate) for row in rows)
    return not right and any(row.get("is_correct") is not None for row in rows)


def _for_testing(row: Row, config: ExportConfig) -> bool:
    place = int(digest([config.seed, row["prompt"]]), 16) / 16**16
    return place < config.test_share
