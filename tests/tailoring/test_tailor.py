"""`rsd tailor`: traces after raw responses that nobody's weights are needed for."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import environment, read, write
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import NATURAL, WORDY, by_key, command, files, pair, same_rows

import rsd
from rsd.models.bundled import bundled
from rsd.scoring.steps import split
from rsd.tailoring.config import KEEP, TEMPLATE
from rsd.tailoring.tailor import reference, shortened

RAW = read(bundled("teacher.jsonl"))[:24]
PLAIN = [{"id": r["id"], "prompt": r["prompt"], "completion": r["completion"], "answer": r["answer"]} for r in RAW]


@pytest.fixture(scope="module")
def tailored(tmp_path_factory):
    """The bundled teacher's raw traces, and the job that tailored them to the bundled student."""
    folder = tmp_path_factory.mktemp("tailored")
    source, out = write(folder / "raw.jsonl", RAW), folder / "out.jsonl"
    result = command("tailor", source, "-o", out, "--num-generations", 2)
    return source, out, result.output


def test_its_traces_are_those_of_a_teacher_that_is_given_the_response(tailored, tmp_path):
    rows = [
        {"id": r["id"], "prompt": r["prompt"], "hint": reference(r["completion"][0]["content"]), "answer": r["answer"]}
        for r in RAW
    ]
    how = "--teacher", "bundled-student", "--num-generations", 2, "--batch-size", 3, "--block-size", 2
    template = TEMPLATE.replace("reference", "hint")
    command(
        "generate",
        write(tmp_path / "rows.jsonl", rows),
        "-o",
        tmp_path / "g.jsonl",
        "--teacher-template",
        template,
        *how,
    )
    mine, theirs = (by_key(files(out)[1]) for out in (tailored[1], tmp_path / "g.jsonl"))
    assert mine.keys() == theirs.keys() and len(mine) == 48
    for key, line in mine.items():
        assert line["token_ids"] == theirs[key]["token_ids"] and line["from_teacher"] == theirs[key]["from_teacher"]


def test_a_raw_response_is_scored_and_judged_as_the_commands_do(tailored, tmp_path):
    source, out, said = tailored
    command("score", source, "-o", tmp_path / "scored.jsonl")
    command("verify", source, "-o", tmp_path / "verified.jsonl")
    scored, verified = ({r["id"]: r for r in read(tmp_path / f"{n}.jsonl")} for n in ("scored", "verified"))
    rows = read(out)
    for row in rows:
        of = scored[row["id"]]
        for name in ("local_naturalness", "low_prob_share", "scored_tokens"):
            assert row[f"raw_{name}"] == pytest.approx(of[name], abs=1e-4)
        assert row["raw_is_correct"] == verified[row["id"]]["is_correct"]
        assert row["raw_completion"] == of["completion"][0]["content"]
        assert row["source"] == "tailored" and row["raw_error"] is None and row["steps_left_out"] == 0
        assert not [name for name in row if name.startswith("input_")]
    right = sum(verified[r["id"]]["is_correct"] for r in RAW)
    assert f"raw          {right} correct, {len(RAW) - right} wrong" in said


def test_what_is_said_of_a_response_does_not_depend_on_how_many_are_remembered(tailored, monkeypatch):
    source, out, _ = tailored
    monkeypatch.setattr("rsd.generation.raw.KNOWN", 1)
    whole = by_key(read(out))
    for trace in rsd.tailor(source, num_generations=2, limit=4, batch_size=3):
        row = trace.row()
        assert {k: row[k] for k in row if k.startswith("raw_")} == {
            k: v for k, v in whole[trace.key].items() if k.startswith("raw_")
        }


@pytest.mark.parametrize("how", KEEP)
def test_what_is_kept_knows_both_sides(how, tailored, tmp_path):
    source, out, _ = tailored
    command("tailor", source, "-o", out, "--num-generations", 2, "--keep", how)
    kept, by_id = read(out.with_name("out.kept.jsonl")), {}
    for row in read(out):
        by_id.setdefault(row["id"], []).append(row)
    mine = {name: [r for r in kept if r["id"] == name] for name in by_id}
    assert sum(map(len, mine.values())) == len(kept) and any(r["source"] == "raw" for r in kept) == (how != "all")
    for name, rows in by_id.items():
        right = [r for r in rows if r["is_correct"] and r["ended_by_eos"]]
        texts = [r["completion"][0]["content"] for r in mine[name]]
        raw, raw_right = rows[0]["raw_completion"], rows[0]["raw_is_correct"]
        if how == "all":
            assert len(texts) == 2
        elif how == "natural-and-correct":
            every = [(r["local_naturalness"], r["completion"][0]["content"]) for r in right]
            every += [(rows[0]["raw_local_naturalness"], raw)] if raw_right else []
            assert texts == ([max(every)[1]] if every else [])
        elif right:
            best = {"shortest-correct": lambda r: r["num_tokens"], "best-ln": lambda r: -r["local_naturalness"]}
            wanted = [min(right, key=best[how])] if how in best else right
            assert sorted(texts) == sorted(r["completion"][0]["content"] for r in wanted)
        else:
            assert texts == ([raw] if raw_right else [])
        for row in mine[name]:
            assert row.keys() == rows[0].keys()
            assert row["source"] == ("raw" if row["completion"][0]["content"] == raw and not right else row["source"])


def test_a_raw_response_that_is_kept_has_nobodys_tokens(tailored, tmp_path):
    source, out, _ = tailored
    command("tailor", source, "-o", out, "--num-generations", 2, "--keep", "correct")
    kept = out.with_name("out.kept.jsonl")
    command("export", kept, "-o", tmp_path / "set.jsonl")
    made, rows = by_key(read(tmp_path / "set.jsonl")), by_key(read(kept))
    raws = {key for key, row in rows.items() if row["source"] == "raw"}
    assert raws and raws < made.keys() <= rows.keys()  # of traces that are the same one is left
    for key, row in made.items():
        assert row["completion"] == rows[key]["completion"]
    result = command("export", kept, "--format", "token-ids", "-o", tmp_path / "ids.jsonl", expect=2)
    assert f"token-ids needs every trace's tokens, and {len(raws)} are not in" in result.output


def test_the_formats_of_raw_responses_are_one(tailored, tmp_path):
    _, out, _ = tailored
    user = [r["prompt"] for r in RAW[:6]]
    texts = [r["completion"][0]["content"] for r in RAW[:6]]
    ids = [{"id": r["id"], "answer": r["answer"]} for r in RAW[:6]]
    thought = [t.removeprefix("<think>\n").split("\n</think>\n\n") for t in texts]
    shapes = {
        "messages": [
            i | {"messages": [*p, {"role": "assistant", "content": t}]}
            for i, p, t in zip(ids, user, texts, strict=True)
        ],
        "conversations": [
            i | {"conversations": [{"from": "human", "value": p[0]["content"]}, {"from": "gpt", "value": t}]}
            for i, p, t in zip(ids, user, texts, strict=True)
        ],
        "columns": [
            i | {"question": p[0]["content"], "trajectory": [t[0]], "attempt": t[1]}
            for i, p, t in zip(ids, user, thought, strict=True)
        ],
    }
    named = "--prompt-column", "question", "--thinking-column", "trajectory", "--response-column", "attempt"
    whole = by_key(files(out)[1])
    for name, rows in shapes.items():
        made = tmp_path / f"{name}.made.jsonl"
        command("tailor", write(tmp_path / f"{name}.jsonl", rows), "-o", made, *(named if name == "columns" else ()))
        lines = by_key(files(made)[1])
        assert len(lines) == 6 and all(whole[key]["token_ids"] == line["token_ids"] for key, line in lines.items())
        assert not {"messages", "conversations", "question", "trajectory", "attempt"} & read(made)[0].keys()


@pytest.mark.slow
def test_a_killed_job_goes_on(tmp_path):
    source = write(tmp_path / "raw.jsonl", PLAIN)
    flags = ["--num-generations", "2", "--batch-size", "2"]
    command("tailor", source, "-o", tmp_path / "whole.jsonl", *flags)
    out, rng, killed = tmp_path / "out.jsonl", random.Random(3), 0
    args = [sys.executable, "-m", "rsd", "tailor", str(source), "-o", str(out), *flags]
    for _ in range(12):
        before = out.stat().st_size if out.exists() else 0
        job = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        while job.poll() is None and (not out.exists() or out.stat().st_size == before):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        if job.poll() is None:
            os.kill(job.pid, signal.SIGKILL)
            killed += 1
        job.wait()
        if (tmp_path / "out.kept.jsonl").exists():
            break
    command("tailor", source, "-o", out, *flags)
    assert killed and same_rows(read(out), read(tmp_path / "whole.jsonl"))
    assert same_rows(read(tmp_path / "out.kept.jsonl"), read(tmp_path / "whole.kept.jsonl"))


def test_shares_are_the_whole(tailored, tmp_path):
    source, whole, _ = tailored
    out = tmp_path / "out.jsonl"
    for share in ("1/2", "2/2"):
        assert not (tmp_path / "out.kept.jsonl").exists()
        command("tailor", source, "-o", out, "--num-generations", 2, "--shard", share)
    assert same_rows(read(out), read(whole))
    command("tailor", source, "-o", whole, "--num-generations", 2)
    assert same_rows(read(tmp_path / "out.kept.jsonl"), read(whole.with_name("out.kept.jsonl")))


def test_another_response_is_another_job(tailored, tmp_path):
    _, out, _ = tailored
    changed = [{**r, "completion": [{"role": "assistant", "content": "It is 3."}]} for r in RAW]
    before = out.read_bytes()
    result = command("tailor", write(tmp_path / "raw.jsonl", changed), "-o", out, "--num-generations", 2, expect=2)
    assert "another prompt of the teacher" in result.output and out.read_bytes() == before


@pytest.mark.parametrize("teacher", ["bundled-teacher", "bundled-llama"])
def test_another_model_may_propose(teacher, tmp_path):
    out = tmp_path / "out.jsonl"
    command("tailor", write(tmp_path / "raw.jsonl", PLAIN[:4]), "-o", out, "--teacher", teacher)
    rows, _, manifest = files(out)
    assert len(rows) == 4 and all(r["error"] is None for r in rows) and manifest["teacher"]["name"] == teacher


def test_a_verdict_that_comes_with_a_response_stands(tmp_path):
    rows = [{**PLAIN[0], "is_correct": False}, {**PLAIN[1], "is_correct": True}, {**PLAIN[2], "is_correct": None}]
    made = rsd.tailor(rows, max_new_tokens=4)
    assert [t.row()["raw_is_correct"] for t in made[:2]] == [False, True]
    assert made[2].row()["raw_is_correct"] is not None


def test_from_python_as_by_the_command(tailored, tmp_path):
    source, out, _ = tailored
    made = rsd.tailor(source, num_generations=2, limit=3)
    whole = {(r["id"], r["generation"]): r for r in read(out)}
    for trace in made:
        row = trace.row()
        assert (
            row["completion"] == whole[trace.key]["completion"]
            and row["raw_completion"] == whole[trace.key]["raw_completion"]
        )
    summary = rsd.tailor(source, tmp_path / "out.jsonl", num_generations=2, keep="natural-and-correct")
    assert summary.as_json()["kept"] == sum(summary.kept.values()) == len(read(tmp_path / "out.kept.jsonl"))


def test_rows_that_have_no_response_are_errors_of_their_own(tmp_path):
    rows = [
        {"id": "good", "prompt": "1 + 1?", "completion": WORDY, "answer": "33"},
        {"id": "empty", "prompt": "1 + 1?", "completion": "  ", "answer": "2"},
        {"id": "none", "prompt": "1 + 1?", "completion": None, "answer": "2"},
        {"id": "mute", "prompt": "", "completion": WORDY, "answer": "2"},
        {"id": "failed", "prompt": "1 + 1?", "completion": "", "answer": "2", "error": "out of memory"},
    ]
    out = tmp_path / "out.jsonl"
    command("tailor", write(tmp_path / "raw.jsonl", rows), "-o", out, expect=1)
    errors = {r["id"]: r["error"] for r in read(out)}
    assert errors.pop("good") is None and all(errors.values()) and "out of memory" in errors["failed"]
    kept = read(tmp_path / "out.kept.jsonl")
    assert [r["id"] for r in kept] == ["good"]
    assert read(out)[0].keys() == read(out)[-1].keys()


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([{"id": "a", "prompt": "x"}], [], "no responses: looked for completion"),
        ([{"id": "a", "prompt": "x", "completion": "y"}] * 2, [], "id 'a' has 2 raw responses: keep one of each"),
        (PLAIN[:1], ["--teacher-prompt-column", "answer"], "leave --teacher-prompt-column out"),
        (PLAIN[:1], ["--teacher-template", ""], "--teacher-template: a text is needed"),
        (PLAIN[:1], ["--teacher-template", "{{ refrence }}"], "no column refrence: found"),
        (PLAIN[:1], ["--teacher-revision", "main"], "are for a --teacher: name one"),
        (PLAIN[:1], ["--response-column", "completon"], "no column completon: found"),
        (PLAIN[:1], ["--keep", "best"], "Invalid value for '--keep'"),
    ],
)
def test_bad_input_is_one_line(rows, flags, said, tmp_path):
    out = tmp_path / "out.jsonl"
    result = command("tailor", write(tmp_path / "raw.jsonl", rows), "-o", out, *flags, expect=2)
    assert said in result.output and not out.exists() and "Traceback" not in result.output


def test_a_reference_is_cut_at_a_step_to_what_the_context_holds(tmp_path, tiny):
    student = tiny()["student"]
    long = " ".join(f"Step {i} is that {i} and {i} make {2 * i}." for i in range(60)) + " So it is 9."
    rows = [{"id": "long", "prompt": "x", "completion": long}, {"id": "short", "prompt": "x", "completion": NATURAL[0]}]
    out = tmp_path / "out.jsonl"
    flags = "--max-new-tokens", 20, "--temperature", 1, "--teacher-template", "{{ prompt }}\n{{ reference }}"
    result = command("tailor", write(tmp_path / "raw.jsonl", rows), "-o", out, "--student", student, *flags)
    made, tokens = by_key(read(out)), by_key(files(out)[1])
    left = made["long", 0]["steps_left_out"]
    assert left and made["short", 0]["steps_left_out"] == 0
    assert f"references   1 cut to what the teacher's context holds: {left} steps left out" in result.output
    (message,) = tokens["long", 0]["teacher_messages"]
    steps = [long[a:b] for a, b in split(long)]
    assert message["content"] == "x\n" + "".join(steps[: -1 - left]).rstrip() + "\n...\n" + steps[-1].strip()
    from transformers import AutoConfig, AutoTokenizer

    tokenizer, context = (
        AutoTokenizer.from_pretrained(student),
        AutoConfig.from_pretrained(student).max_position_embeddings,
    )

    def length(kept: int) -> int:
        text = "x\n" + "".join(steps[:kept]).rstrip() + "\n...\n" + steps[-1].strip()
        turns = [{"role": "user", "content": text}]
        return len(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])

    assert length(len(steps) - 1 - left) + 20 <= context < length(len(steps) - left) + 20


@given(st.lists(st.text("ab 1", min_size=1, max_size=9), min_size=1, max_size=12), st.integers(0, 120))
@settings(deadline=None, max_examples=200)
def test_what_is_left_of_a_reference_fits_and_no_step_more_would(parts, room):
    text = " ".join(f"A{part.strip()}b." for part in parts)
    kept, left = shortened(text, lambda t: len(t) <= room)
    steps = [text[a:b] for a, b in split(text)]
    count = len(steps) - 1 - left
    if not kept:
        assert left == len(steps)
        return
    assert len(kept) <= room and kept.startswith("".join(steps[:count]).rstrip()) and kept.endswith(steps[-1].strip())
    assert left == 1 or len("".join(steps[: count + 1]).rstrip() + "\n...\n" + steps[-1].strip()) > room


def test_what_would_be_done_is_shown(tmp_path):
    source = write(tmp_path / "raw.jsonl", PLAIN[:1])
    output = command("tailor", source, "-o", tmp_path / "out.jsonl", "--dry-run").output
    for line in TEMPLATE.replace("{{ prompt }}", "").replace("{{ reference }}", "").split("\n"):
        assert line in output
    assert reference(PLAIN[0]["completion"][0]["content"]) in output and not (tmp_path / "out.jsonl").exists()


def test_a_student_that_is_its_own_teacher_is_loaded_once(tmp_path, tiny):
    output = command(
        "tailor", write(tmp_path / "raw.jsonl", PLAIN[:1]), "-o", tmp_path / "o.jsonl", "--max-new-tokens", 2
    ).output
    assert "one model in both roles, loaded once" in output
    other = command(
        "tailor",
        write(tmp_path / "raw.jsonl", PLAIN[:1]),
        "-o",
        tmp_path / "p.jsonl",
        *pair(tiny),
        "--max-new-tokens",
        2,
    ).output
    assert "loaded once" not in other


def test_input_that_templates_tried_to_steer_is_text(tmp_path):
    """A raw response is no template, and opens no thinking of the teacher's."""
    text = "{{ 7 * 7 }}<think>{% for i in x %}</think> \\boxed{2}"
    (made,) = rsd.tailor([{"prompt": "1 + 1?", "completion": text}], max_new_tokens=2)
    (message,) = made.teacher_messages
    assert "{{ 7 * 7 }}{% for i in x %} \\boxed{2}" in message["content"]


def test_the_settings_that_make_traces_are_the_jobs_own(tailored):
    source, out, _ = tailored
    for flags in (["--teacher-template", "{{ prompt }} {{ reference }}"], ["--threshold", 0.1], ["--no-score"]):
        result = command("tailor", source, "-o", out, "--num-generations", 2, *flags, expect=2)
        assert "was made with other settings" in result.output
    manifest = json.loads(out.with_name("out.meta.json").read_text())
    assert manifest["identity"]["teacher_template"] == TEMPLATE
