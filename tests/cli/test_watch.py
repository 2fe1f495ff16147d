"""`rsd generate --watch` shows rows as they are written, whole, and changes nothing of the job."""

import json
import re

import pytest
from conftest import read, write
from jobs import PROBLEMS, command
from stub import Stub
from terminals import on_a_terminal

from rsd import TraceGenerator
from rsd.generation import watching
from rsd.generation.watching import Watching
from rsd.models.bundled import bundled
from rsd.terminal import guarded, harmless, say
from rsd.traces.readers import read_rows

FELL, OURS = re.compile("\x1b\\[2;9m[^\x1b]*\x1b\\[0m"), re.compile("\x1b\\[[0-9;]*m")
# The head of a row, the row, and what became of it.
ROW = re.compile(
    r"^\x1b\[1m--- (.+?), generation (\d+)\x1b\[0m \((.+?)\)\n(.*?)^\x1b\[1m---\x1b\[0m (.+?)\n\n", re.M | re.S
)


def bare(shown: str) -> str:
    """The text of tokens in colour."""
    return re.sub("[⏎·]", "", OURS.sub("", FELL.sub("", shown)))


def holds(said: str, rows: list[dict], sidecar: list[dict]) -> int:
    """How many rows are shown, each of which must be whole, and have its fallbacks underlined."""
    of = {(str(row["id"]), row["generation"]): row for row in rows}
    tokens = {(str(line["id"]), line["generation"]): line for line in sidecar}
    shown = ROW.findall(said)
    for name, generation, _, text, how in shown:
        row, line = of[name, int(generation)], tokens[name, int(generation)]
        ended = row["finish_reason"] == "stop"
        assert bare(text).removesuffix("\n") == harmless(row["completion"][0]["content"]).removesuffix("\n")
        own = line["from_teacher"][:-1] if ended else line["from_teacher"]
        assert len(re.findall("\x1b\\[4[;m]", text)) == own.count(0)
        ended = f"ended by {row['finish_reason']}, {row['num_tokens']} tokens, fallback {row['fallback_rate']:.1%}"
        assert OURS.sub("", how).endswith(ended)
    return len(shown)


JOB = ["--num-generations", "2", "--batch-size", "6", "--block-size", "3", "--seed", "3"]


def test_on_a_terminal_rows_are_shown_whole_and_no_byte_of_the_job_is_another(tmp_path):
    problems = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:24])
    said = on_a_terminal("generate", problems, "-o", "watched.jsonl", "--watch", *JOB, cwd=tmp_path)
    said = said.replace("\r\n", "\n")
    on_a_terminal("generate", problems, "-o", "alone.jsonl", *JOB, cwd=tmp_path)
    for end in ("jsonl", "tokens.jsonl"):
        assert (tmp_path / f"watched.{end}").read_bytes() == (tmp_path / f"alone.{end}").read_bytes()
    manifests = [json.loads((tmp_path / f"{name}.meta.json").read_text()) for name in ("watched", "alone")]
    assert manifests[0]["identity"] == manifests[1]["identity"] and manifests[0]["totals"] == manifests[1]["totals"]
    rows = read(tmp_path / "watched.jsonl")
    assert holds(said, rows, read(tmp_path / "watched.tokens.jsonl")) >= 2
    assert "\r" not in said and "\x1b[A" not in said and "rows         48 (48 new)" in said
    assert f"/{len(rows)} traces (" in said and " tok/s" in said  # how far it is, in place of the bar
    # Without colours there are marks.
    flags = ("-o", "plain.jsonl", "--watch", "--limit", "8", *JOB)
    said = on_a_terminal("generate", problems, *flags, cwd=tmp_path, NO_COLOR="1")
    assert "\x1b" not in said and "⟪token⟫: " in said and "\n--- " in said


@pytest.fixture
def always(monkeypatch):
    """Look after every round, in colour."""
    monkeypatch.setattr(watching, "PAUSE", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)


def watched(generator: TraceGenerator, rows: list[dict], capsys) -> int:
    """How many rows are shown where another one is chosen as soon as one has ended; no trace is another for it.

    All live rows are there to be chosen, whatever engine has them.
    """
    made, seen = [], set()

    def look(live):
        live = list(live)
        seen.update(str(request.tag.row.id) for request, _ in live)
        watcher.look(live)

    with guarded(), Watching(generator.find().decode, lambda: "so far") as watcher:
        schedule = generator.schedule(generator.prepare(rows), {})
        for trace in generator.make(schedule, watch=look):
            watcher.ended(trace)
            made.append(trace)
    said = capsys.readouterr().err
    assert seen == {str(row["id"]) for row in rows}
    again = {trace.key: trace.token_ids.tolist() for trace in generator.run(rows)}
    assert {trace.key: trace.token_ids.tolist() for trace in made} == again
    return holds(said, [trace.row() for trace in made], [trace.sidecar() for trace in made])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("prefix", ["", "<think>\n数 "])
def test_characters_that_several_tokens_spell_come_out_whole(tiny, prefix, capsys):
    sizes = {"max_new_tokens": 40, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "batch_size": 3, "threshold": 0.02}
    generator = TraceGenerator(**tiny(), completion_prefix=prefix, verify="none", **sizes)
    assert watched(generator, [{"id": i, "prompt": f"{i} 数学"} for i in range(12)], capsys) >= 3


@pytest.mark.usefixtures("always")
def test_rows_of_a_served_teacher_are_shown_in_groups(capsys):
    with Stub(bundled("teacher"), name="teacher") as stub:
        teacher = {
            "teacher": f"{stub.url}/v1",
            "teacher_model": "teacher",
            "teacher_tokenizer": str(bundled("teacher")),
        }
        generator = TraceGenerator(**teacher, batch_size=4, max_new_tokens=40)
        assert watched(generator, read_rows(bundled("problems.jsonl"))[:12], capsys) >= 3


@pytest.mark.usefixtures("always")
def test_a_notice_has_a_line_of_its_own_and_a_look_costs_nothing_before_its_time(capsys, monkeypatch):
    generator = TraceGenerator(batch_size=2, max_new_tokens=40)
    rows = read_rows(bundled("problems.jsonl"))[:4]
    monkeypatch.setattr(watching, "PAUSE", 1000.0)
    looks = []
    with guarded(), Watching(generator.find().decode, str) as watcher:
        watcher._looked = -1e9

        def look(live):
            looks.append(0)
            watcher.look(consumed(live, looks))
            say("notice: something")

        for trace in generator.make(generator.schedule(generator.prepare(rows), {}), watch=look):
            watcher.ended(trace)
    said = OURS.sub("", capsys.readouterr().err)
    assert len(looks) > 5 and sum(looks) == 2  # rows of the first look, of which one was shown
    assert said.count("--- ") == 2 and all(
        "notice" not in line or line == "notice: something" for line in said.split("\n")
    )


def consumed(live, counted: list[int]):
    for row in live:
        counted[-1] += 1
        yield row


REFUSED = {
    "-o -": ["-o", "-"],
    "--ray": ["--ray", "local"],
    "--shard": ["--shard", "1/2"],
    "--quiet": ["--quiet"],
}


@pytest.mark.parametrize("which", REFUSED)
def test_where_no_row_can_be_watched_it_is_said(which, tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS[:2])
    said = on_a_terminal("generate", source, "--watch", *REFUSED[which], cwd=tmp_path)
    (line,) = said.splitlines()
    assert "--watch" in line and which in line and not list(tmp_path.glob("traces*"))


def test_without_a_terminal_it_is_refused(tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS[:2])
    result = command("generate", source, "-o", tmp_path / "t.jsonl", "--watch", expect=2)
    assert "--watch needs a terminal on standard error" in result.output and not (tmp_path / "t.jsonl").exists()
