"""Files that train as they are: traces filtered, de-duplicated, split and written in a trainer's format."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsd.dataset.config import ExportConfig
from rsd.dataset.formats import WITH_TEMPLATE, Ids, Row, answer, formatted, prefix, privileged_context, weights_of
from rsd.dataset.readback import gathered
from rsd.settings import called
from rsd.terminal import in_lines
from rsd.traces.filters import is_right, keep
from rsd.traces.given import Given
from rsd.traces.lines import Key, files_of, key_of
from rsd.traces.rows import Messages, digest


@dataclass(frozen=True, eq=False)
class Export:
    """What was exported, and the counts: `rows` are the train and test rows and all that was `dropped`.

    prefixes: how many of the rows are prefixes. sources: lines of the input, prefixes not counted.
    respelled: of the rows in a text format, how many the student's tokenizer spells with other ids than
        were sampled; None where that is not known, and `notices` say why. files: where it was written to, by
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
    path, rows, torn, tokens, broken, teacher, manifest = gathered(source)
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
    weights: dict[Key, list[float]] = {}
    weighted = config.format == "token-ids" and any(row.get("token_weights") is not None for row in rows)
    if weighted:
        told = {key_of(row): weights_of(row, tokens[key_of(row)]) for row in rows if key_of(row) in tokens}
        weights = {key: of for key, of in told.items() if of is not None}
        # One without weights would count more than all that have them.
        if unweighted := sum(key_of(row) not in weights for row in distinct):
            distinct = [row for row in distinct if key_of(row) in weights]
            dropped["without a weight for each token"] = unweighted
    template_kwargs = kwargs_of(manifest)
    keyed = [(row, key_of(row)) for row in distinct]
    made = [(row, formatted(row, config.format, tokens.get(k), template_kwargs, weights.get(k))) for row, k in keyed]
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
    respelled: int | None = None
    notices: list[str] = []
    if config.format != "token-ids":
        respelled, notices = _respelled(distinct, tokens, manifest, config.format)
        if template_kwargs and config.format not in WITH_TEMPLATE:
            notices.append(
                f"{config.format} has no place for the job's chat_template_kwargs {json.dumps(template_kwargs)}: "
                "a trainer must be told"
            )
        elif not manifest:
            notices.append("there is no manifest here: chat_template_kwargs of the job, if it had any, are not known")
    return Export(
        config=config,
        train=[out for row, out in made if not _for_testing(row, config)],
        test=[out for row, out in made if _for_testing(row, config)],
        sources=len(rows) + torn,
        dropped=dropped,
        problems=len(problems),
        unsolved=len(unsolved),
        prefixes=len(prefixes),
        respelled=respelled,
        manifest=manifest,
        notices=notices,
    )


def _check_tokens(
    path: str, rows: Sequence[Row], distinct: Sequence[Row], tokens: Mapping[Key, Ids], broken: Mapping[Key, str]
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


def kwargs_of(manifest: Row) -> dict[str, Any]:
    """What a job gave to the chat template."""
    kwargs = manifest.get("identity", {}).get("chat_template_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _text(row: Row) -> str:
    return digest([row["prompt"], answer(row)])


def _unsolved(rows: Sequence[Row], config: ExportConfig) -> bool:
    """Whether a problem's traces were verified, and none is right."""
    right = any(is_right(row, max_fallback_rate=config.max_fallback_rate) for row in rows)
    return not right and any(row.get("is_correct") is not None for row in rows)


def _for_testing(row: Row, config: ExportConfig) -> bool:
    place = int(digest([config.seed, row["prompt"]]), 16) / 16**16
    return place < config.test_share


def _respelled(
    rows: Sequence[Row], tokens: Mapping[Key, Ids], manifest: Row, format: str
) -> tuple[int | None, list[str]]:
    """How many rows a trainer that applies the student's chat template reads as other ids than were sampled.

    The template is given what the format's rows say. What it puts after the EOS, such as a line break, does not
    count; where the loss begins does, if the trainer finds that by the prompt.
    """
    if not all(key_of(row) in tokens for row in rows):
        return None, ["whether these texts give the sampled ids again is not checked: some rows have no tokens here"]
    if not manifest:
        return None, ["whether these texts give the sampled ids again is not checked: there is no manifest here"]
    from rsd.models.loading import find

    try:
        model = manifest["student"]
        places = [model, *([model["adapter"]] if "adapter" in model else [])]
        path = "+".join(p["path"] if Path(p["path"]).exists() else p["name"] for p in places)
        student = find("student", path, model["revision"], trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as e:
        return None, [f"whether these texts give the sampled ids again is not checked: the student cannot be read: {e}"]
    kwargs = kwargs_of(manifest) if format in WITH_TEMPLATE else {}
    count = 0
    for row in rows:
        t = tokens[key_of(row)]
        sampled = np.concatenate([t.prompt_ids, t.prefix_ids, t.token_ids]).tolist()
        try:
            ids = student.training_ids(row["prompt"], answer(row), kwargs)
            elsewhere = (
                format == "prompt-completion" and student.prompt_ids(row["prompt"], kwargs) != t.prompt_ids.tolist()
            )
        except Exception:  # a template may refuse what another one made
            ids, elsewhere = [], True
        after = str(student.tokenizer.decode(ids[len(sampled) :]))
        count += elsewhere or ids[: len(sampled)] != sampled or bool(after.strip())
    return count, []
