"""The command line: flags, errors in one line, exit codes. Heavy imports wait until a command runs."""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import click

import rsd
from rsd.config import PAPER, GenerateConfig


class Rows(click.ParamType):
    """A number of rows, or auto."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        try:
            return None if value == "auto" else int(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


class Trials(click.ParamType):
    """A number of trials: 1, 5, ... or inf."""

    name = "integer|inf"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return math.inf if value == "inf" else int(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor inf", param, ctx)


class JsonObject(click.ParamType):
    """A JSON object, such as {"enable_thinking": true}."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = json.loads(value)
        except ValueError as e:
            self.fail(f"not JSON: {e}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('not a JSON object such as {"enable_thinking": true}', param, ctx)
        return parsed


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(rsd.__version__, prog_name="rsd")
def main() -> None:
    """Reasoning traces tailored to a small model, by reverse speculative decoding (arXiv 2509.22230)."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags of `GenerateConfig`, each by its own name; those not given stay out of the config."""
    flags = [
        click.option("--teacher", help="Directory or Hub id; the bundled teacher by default."),
        click.option("--student", help="Directory or Hub id; the bundled student by default."),
        click.option("--teacher-revision", help="Branch, tag or commit on the Hub."),
        click.option("--student-revision", help="Branch, tag or commit on the Hub."),
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
            "--teacher-prompt",
            type=click.Choice(["student", "own"]),
            help="The prompt that the teacher reads: the student's, or its own chat template's [student].",
        ),
        click.option("--prompt-column", help="[prompt, question, problem or messages]"),
        click.option("--system-prompt", help="Put before prompts that have none."),
        click.option("--chat-template-kwargs", type=JsonObject(), help="Such as '{\"enable_thinking\": true}'."),
        click.option(
            "--batch-size",
            type=Rows(),
            help="Rows decoded together; changes no trace [auto: what the free memory holds].",
        ),
        click.option("--block-size", type=int, help="Tokens drafted a round; changes no trace [what is fastest]."),
        click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[float32 on a CPU]"),
        click.option("--device", help="cpu, cuda, cuda:1, auto ... [cuda where there is one]"),
        click.option("--teacher-device", help="A device of the teacher's own."),
        click.option("--student-device", help="A device of the student's own."),
        click.option("--attn-implementation", help="sdpa or eager [the model's default]."),
        click.option(
            "--compile", is_flag=True, default=None, help="torch.compile both models: a minute first, then faster."
        ),
        click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that a model repository holds."),
        click.option("--allow-pickle", is_flag=True, default=None, help="Load weights that are not safetensors."),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


@main.command()
@click.argument("source", metavar="[INPUT]", required=False)
@click.option("-o", "--output", default="traces.jsonl", show_default=True, help="Traces, one JSON object a line.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first rows of INPUT.")
@click.option("--preset", type=click.Choice(["paper"]), help="The settings of the paper's generator.")
@click.option("--overwrite", is_flag=True, help="Start anew instead of resuming OUTPUT.")
@click.option("--dry-run", is_flag=True, help="Print the first prompt as both models see it, and stop.")
@_options
def generate(
    source: str | None,
    output: str,
    limit: int | None,
    preset: str | None,
    overwrite: bool,
    dry_run: bool,
    **flags: Any,
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
    asked = {k: v for k, v in flags.items() if v is not None}
    values = (PAPER if preset == "paper" else {}) | asked
    try:
        config = GenerateConfig(**values)
        _quiet()
        from rsd.generator import TraceGenerator
        from rsd.job import run_job
        from rsd.models import bundled

        source = source or str(bundled("problems.jsonl"))
        generator = TraceGenerator(config)
        if dry_run:
            _show_first(generator, source)
            return
        summary = run_job(generator, source, output, limit=limit, overwrite=overwrite)
    except ValueError as e:
        _fail(str(e))
    except BrokenPipeError:  # the reader of our output went away: click ends quietly
        raise
    except OSError as e:
        _fail(f"{e.filename or output}: {e.strerror}")
    except KeyboardInterrupt:
        click.echo("stopped; run the same command again to go on", err=True)
        sys.exit(130)
    click.echo(f"{summary.text()}\nwritten to   {output}")
    sys.exit(1 if summary.totals["errors"] else 0)


def _show_first(generator: Any, source: str) -> None:
    from rsd import data

    teacher, student, _ = generator.find()
    row = generator.prepare(data.read_rows(source)[:1])[0]
    if row.error is not None:
        raise ValueError(f"the first row is bad: {row.error}")
    for notice in generator.notices:
        click.echo(notice)
    for model, ids in zip((student, teacher), generator.render(row), strict=True):
        click.echo(f"--- the {model.role}'s prompt, {len(ids)} tokens, row {row.id}")
        click.echo(model.tokenizer.decode(ids, skip_special_tokens=False))


def _quiet() -> None:
    """Only our own progress bar and messages; transformers' warnings would bury them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _fail(message: str) -> None:
    click.echo(f"rsd: {' '.join(message.split())}", err=True)
    sys.exit(2)
