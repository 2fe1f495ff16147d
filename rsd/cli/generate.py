"""`rsd generate`. Heavy imports wait until it runs."""

import json
import sys
from typing import Any

import click

from rsd.cli.options import (
    MODEL_FLAGS,
    PROMPT_FLAGS,
    Rows,
    TextOrFile,
    Token,
    Trials,
    flags,
    given,
    one_line_errors,
    quiet,
)
from rsd.config import PAPER, GenerateConfig
from rsd.terminal import echo, one_line
from rsd.traces.filters import KEEP


def _or_none(_: click.Context, __: click.Parameter, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return values or None


FLAGS = [
    click.option("--teacher", help="Directory, GGUF file, Hub id or BASE+ADAPTER [the bundled teacher]."),
    click.option("--student", help="Directory, GGUF file, Hub id or BASE+ADAPTER [the bundled student]."),
    click.option("--teacher-revision", help="Branch, tag or commit on the Hub."),
    click.option("--student-revision", help="Branch, tag or commit on the Hub."),
    click.option("--teacher-model", help="Of a --teacher that is a server (http://host:port/v1), the model there."),
    click.option("--teacher-tokenizer", help="Its tokenizer's directory or Hub id [--teacher-model]."),
    click.option("--threshold", type=float, help="Student probability that a proposal needs [0.01]."),
    click.option("--threshold-on", type=click.Choice(["raw", "sampled"]), help="Probability compared [raw]."),
    click.option("--trials", type=Trials(), help="Teacher draws before the student falls back [5]."),
    click.option("--accept-top-k", type=int, help="Proposals must be in the student's top k; 0 is off [0]."),
    click.option("--temperature", type=float, help="0 is greedy [student's generation config, else 0.7]."),
    click.option("--top-p", type=float, help="[student's generation config, else 0.95]"),
    click.option("--top-k", type=int, help="0 is off [student's generation config, else 20]."),
    click.option("--max-new-tokens", type=int, help="[2048]"),
    click.option("--num-generations", type=int, help="Traces a prompt [1]."),
    click.option("--seed", type=int, help="[0]"),
    click.option(
        "--verify",
        metavar="HOW",
        help="auto, boxed, math, none, or your own module:callable, here or installed [auto].",
    ),
    click.option("--answer-column", help="[answer, final_answer or solution]"),
    click.option(
        "--until-correct", is_flag=True, default=None, help="Sample a problem until --want of its traces are right."
    ),
    click.option("--want", type=int, help="Correct traces a problem, for --until-correct [1]."),
    click.option("--max-fallback-rate", type=float, help="A trace with more is not fit for training [1]."),
    click.option("--loop-check/--no-loop-check", default=None, help="End traces that repeat themselves [on]."),
    click.option(
        "--teacher-prompt",
        type=click.Choice(["student", "own"]),
        help="What the teacher reads: the student's prompt, or its own template's [own if tokenizers differ].",
    ),
    click.option("--teacher-prompt-column", help="A column with a prompt for the teacher alone."),
    click.option(
        "--teacher-template",
        type=TextOrFile(),
        help="Jinja text, or @FILE, for the teacher's last turn: '{{ prompt }} Solution: {{ solution }}'.",
    ),
    click.option("--completion-prefix", help="What every completion begins with, such as '<think>'."),
    click.option(
        "--suppress", type=Token(), multiple=True, callback=_or_none, help="A token, or its id, that no trace holds."
    ),
    click.option(
        "--batch-size",
        type=Rows(),
        help="Rows decoded together; changes no trace [auto: what the free memory holds].",
    ),
    click.option("--block-size", type=int, help="Tokens drafted a round; changes no trace [what is fastest]."),
    click.option("--teacher-load-in", type=click.Choice(["4bit", "8bit"]), help="Quantise with bitsandbytes."),
    click.option("--student-load-in", type=click.Choice(["4bit", "8bit"]), help="Quantise with bitsandbytes."),
    click.option("--teacher-device", help="A device of the teacher's own."),
    click.option("--student-device", help="A device of the student's own."),
    click.option(
        "--compile", is_flag=True, default=None, help="torch.compile both models: a minute first, then faster."
    ),
    click.option("--score", is_flag=True, default=None, help="Add the scores of `rsd score` to every trace."),
    *PROMPT_FLAGS,
    *MODEL_FLAGS,
]


@click.command()
@click.argument("source", metavar="[INPUT]", required=False)
@click.option("-o", "--output", default="traces.jsonl", show_default=True, help="Traces, one JSON object a line.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first rows of INPUT.")
@click.option("--preset", type=click.Choice(["paper"]), help="The settings of the paper's generator.")
@click.option("--keep", type=click.Choice(KEEP), help="Write the rows that are kept to OUTPUT's .kept.jsonl, too.")
@click.option("--overwrite", is_flag=True, help="Start anew instead of resuming OUTPUT.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the settings in force and the first prompt as both models read it; write nothing.",
)
@flags(FLAGS)
def generate(
    source: str | None,
    output: str,
    limit: int | None,
    preset: str | None,
    keep: str | None,
    overwrite: bool,
    dry_run: bool,
    **values: Any,
) -> None:
    """Make student-tailored traces for the prompts in INPUT (JSONL; the bundled problems by default).

    The teacher proposes every token; one stands if the student gives it at least --threshold, else the
    student's own token is taken. --threshold 0 gives the teacher's raw traces, --threshold 1 the student's.
    A killed job resumes when the same command is run again.

    \b
    Examples:
      rsd generate
      rsd generate problems.jsonl -o raw.jsonl --threshold 0
      rsd generate problems.jsonl --teacher simplescaling/s1.1-7B --student Qwen/Qwen3-0.6B --preset paper
    """
    with one_line_errors(output, again="run the same command again to go on"):
        if keep == "best-ln":
            values["score"] = True
        config = GenerateConfig(**(PAPER if preset == "paper" else {}) | given(values))
        quiet()
        from rsd.generation.generator import TraceGenerator
        from rsd.generation.job import run_job
        from rsd.models.bundled import bundled

        source = source or str(bundled("problems.jsonl"))
        generator = TraceGenerator(config)
        if dry_run:
            _show_first(generator, source)
            return
        summary = run_job(generator, source, output, limit=limit, overwrite=overwrite, keep=keep)
    echo(f"{summary.text()}\nwritten to   {one_line(output)}")
    sys.exit(1 if summary.totals["errors"] else 0)


def _show_first(generator: Any, source: str) -> None:
    from rsd.config import FREE_SETTINGS
    from rsd.traces import rows as data

    pair = generator.find()
    teacher, student = pair.teacher, pair.student
    row = generator.prepare(data.read_rows(source)[:1])[0]
    if row.error is not None:
        raise ValueError(f"the first row is bad: {row.error}")
    prompt = pair.render(row, generator.config)
    free = {name: getattr(generator.config, name) for name in FREE_SETTINGS}
    settings = generator.identity() | free | {"batch_size": generator.memory().rows}
    settings |= {"teacher": teacher.name, "student": student.name}
    for name, value in settings.items():
        if name not in ("vocabularies", "suppressed") and value not in (None, "", [], {}):  # the notices say the rest
            plain = isinstance(value, str) and value.isprintable()
            echo(f"{name.replace('_', '-'):<22} {value if plain else json.dumps(value, ensure_ascii=False)}")
    for line in (*generator.notices, generator.memory().text):
        echo(one_line(line))
    for model, ids in ((student, prompt.student + prompt.prefix), (teacher, prompt.teacher)):
        echo(f"--- the {model.role}'s prompt, {len(ids)} tokens, row {one_line(row.id)}")
        echo(model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
