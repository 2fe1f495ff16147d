"""A trace in the terminal: its text whole, the sidecar's fallbacks marked, nothing that steers the terminal."""

import json
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from conftest import environment, read, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import command, run
from real import tokenizer as real_tokenizer
from terminals import on_a_terminal
from tokenizers import Tokenizer

from rsd.analysis.columns import width
from rsd.analysis.marks import Token, marked_tokens
from rsd.analysis.show import spelled
from rsd.models.bundled import bundled
from rsd.scoring.responses import Response
from rsd.traces.rows import digest
from rsd.traces.tokens import unknown

OURS = re.compile("\x1b\\[[0-9;]*m")
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FALLBACK = re.compile(r"⟦([^|⟧]*)(?:\|([^⟧]*))?⟧")
MARKS = "⟦⟧|⟪⟫⟨⟩⏎·"
TEXTS = st.text().filter(lambda text: not set(MARKS) & set(text))


def bare(shown: str) -> str:
    """What was marked, without its marks."""
    return re.sub("[⟪⟫⏎·]", "", FALLBACK.sub(lambda mark: mark[1], shown))


@cache
def student() -> Tokenizer:
    return Tokenizer.from_file(str(bundled("student") / "tokenizer.json"))


def decode(ids):
    return student().decode(ids, skip_special_tokens=False)


def records(ids, origin, proposals, logprobs):
    made = unknown(ids)
    made["from_teacher"] = origin
    made["proposals"], made["student_logprobs"] = proposals, logprobs
    return made


def shown_tokens(text: str, ids, tokens) -> list[Token]:
    one = Response(row={}, id="a", own_id=True, generation=0, messages=[], text=text, tokens=tokens)
    return spelled(one, decode, student().encode("\ufffd", add_special_tokens=False).ids)


@given(st.lists(st.integers(0, 700), max_size=30) | TEXTS.map(lambda t: student().encode(t).ids), st.data())
def test_without_its_marks_a_trace_is_its_text_and_the_marks_are_its_fallbacks(ids, data):
    text = decode(ids)
    if set(MARKS) & set(text):
        return
    origin = data.draw(st.lists(st.sampled_from([1, 0, -1]), min_size=len(ids), max_size=len(ids)))
    own = [label == 0 for label in origin]
    proposals = data.draw(st.lists(st.integers(-1, 700), min_size=len(ids), max_size=len(ids)))
    logprobs = data.draw(st.lists(st.floats(-20, 0) | st.just(np.nan), min_size=len(ids), max_size=len(ids)))
    tokens = shown_tokens(text, ids, records(ids, origin, proposals, logprobs))
    plain = marked_tokens(tokens, colours=False)
    assert bare(plain) == text and not getattr(plain, "spans", ())
    marks = FALLBACK.findall(plain)
    assert len(marks) == sum(own) == plain.count("⟦")
    fell = [decode([p]) if p >= 0 and p != i else "" for i, p, mine in zip(ids, proposals, own, strict=True) if mine]
    assert [was for _, was in marks] == [was.replace("\n", "⏎") for was in fell]
    assert plain.count("⟪") == sum(p < np.log(0.01) and not mine for p, mine in zip(logprobs, own, strict=True))
    # In colour as many are underlined, and what has no colour is what was probable enough.
    painted = marked_tokens(tokens, colours=True)
    underlined = [span for span in painted.spans if span[2].split(";")[0] == "4"]
    assert len(underlined) == sum(own)
    assert all(painted[a:b].isspace() for a, b, colour in painted.spans if colour.endswith(";7"))
    plain_again = "".join(
        c for i, c in enumerate(painted) if not any(a <= i < b and k == "2;9" for a, b, k in painted.spans)
    )
    assert re.sub("[⏎·]", "", plain_again) == text


@pytest.mark.parametrize("text", ["数学 🙂👩\u200d👧 é ½", "नमस्ते\n\nक्\u200dष", "\ufffd ok \ufffd"])
def test_characters_of_several_tokens_come_out_whole(text):
    ids = student().encode(text).ids
    assert len(ids) > len(text)  # bytes
    tokens = shown_tokens(text, ids, records(ids, 0, -1, -9.0))
    plain = marked_tokens(tokens, colours=False)
    assert bare(plain) == text and plain.count("⟦") == len(ids)
    assert "".join(c for c in plain if c == "\ufffd") == "\ufffd" * text.count("\ufffd")


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "smollm2"])
def test_real_tokenizers_spell_traces(name):
    tok = real_tokenizer(name)
    text = "<think>\nSo \\frac{1}{2}, 数学 🙂.\n\n    return x  # é\n</think>\n\n\\boxed{42}"
    ids = tok.encode(text, add_special_tokens=False)
    tokens = records(ids, np.arange(len(ids)) % 3, -1, -1.0)
    one = Response(row={}, id="a", own_id=True, generation=0, messages=[], text=text, tokens=tokens)
    backend = tok.backend_tokenizer
    made = spelled(one, lambda i: backend.decode(i, skip_special_tokens=False), [])
    assert bare(marked_tokens(made, colours=False)) == text and sum(t.own for t in made) == len(range(0, len(ids), 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    flags = ["--limit", "30", "--block-size", "4", "--quiet"]
    run("-o", folder / "t.jsonl", *flags)
    run("-o", folder / "raw.jsonl", "--threshold", 0, *flags)
    return folder


def body(output: str, file: str) -> str:
    """The trace that is shown of a file, alone."""
    _, _, rest = output.partition(f"\n--- {file}")
    return rest.partition("\n")[2].rsplit("\n\n⟪token⟫", 1)[0].split("\n\n---")[0]


def test_a_pipe_gets_marks_that_can_be_searched_and_taken_away(made):
    rows, sidecar = read(made / "t.jsonl"), read(made / "t.tokens.jsonl")
    assert any(0 in line["from_teacher"] for line in sidecar)
    for row, line in list(zip(rows, sidecar, strict=True))[:12]:
        said = command("show", made / "t.jsonl", row["id"]).output
        assert "\x1b" not in said and f"--- {row['id']}, generation 0\n{row['prompt'][0]['content']}\n" in said
        shown = body(said, "t.jsonl")
        assert bare(shown).removesuffix("<|im_end|>") == row["completion"][0]["content"]
        assert len(FALLBACK.findall(shown)) == line["from_teacher"].count(0)
        assert ("correct" if row["is_correct"] else "wrong") in said and f"{row['num_tokens']} tokens" in said
    assert command("show", made / "t.jsonl").output == command("show", made / "t.jsonl", rows[0]["id"]).output


def test_files_that_were_made_of_a_jobs_find_its_tokens(made):
    first = read(made / "t.jsonl")[0]
    write(made / "t.scored.jsonl", [first | {"local_naturalness": -0.25}])
    said = command("show", made / "t.scored.jsonl").output
    assert "LN -0.25" in said and bare(body(said, "t.scored.jsonl")) == first["completion"][0]["content"]


def on_screen(*args, cwd, columns=100, **env) -> str:
    return on_a_terminal("show", *args, cwd=cwd, columns=columns, **env).replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 80, 99, 100, 160])
def test_a_raw_trace_stands_beside_where_there_is_room(made, columns):
    row = next(r for r in read(made / "t.jsonl") if r["fallback_rate"])
    raw = next(r for r in read(made / "raw.jsonl") if r["id"] == row["id"])
    said = on_screen("t.jsonl", row["id"], "--raw", "raw.jsonl", cwd=made, columns=columns)
    lines = OURS.sub("", said).splitlines()
    assert all(sum(map(width, line)) <= columns for line in lines)
    sides = [line.split(" │ ") for line in lines if " │ " in line]
    assert bool(sides) is (columns >= 100)
    if sides:
        left, right = ("".join(part) for part in zip(*[(a.rstrip(), b) for a, b in sides], strict=True))
        assert "raw.jsonl" in left and "t.jsonl" in right
        words = "".join(raw["completion"][0]["content"].split())
        assert words in "".join(bare(left).split()) and words not in "".join(bare(right).split())
    assert "\x1b[4" in said and "\x1b[31m" in said


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_nobody_gets_colours_who_wants_none(made, env):
    said = on_screen("t.jsonl", cwd=made, **env)
    assert "\x1b" not in said and "⟪token⟫" in said


def test_nothing_of_a_file_steers_the_terminal(tmp_path, made):
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    rows = [
        {"id": f"a{evil}\nb", "prompt": f"p{evil}", "completion": f"one{evil}\ntwo.", "finish_reason": f"s{evil}\nx"}
    ]
    write(tmp_path / "evil.jsonl", rows)
    # And in tokens of a job: what is decoded of them.
    manifest = json.loads((made / "t.meta.json").read_text())
    text = f"x{evil}y"
    ids = student().encode(text).ids
    columns = {"token_ids": ids, "from_teacher": [0] * len(ids), "teacher_proposals": ids[::-1]}
    turns = [{"role": "assistant", "content": text}]
    write(tmp_path / "t.jsonl", [{"prompt": "a", "completion": turns, "id": 1, "generation": 0}])
    write(tmp_path / "t.tokens.jsonl", [{"id": 1, "generation": 0, **columns}])
    (tmp_path / "t.meta.json").write_text(json.dumps(manifest))
    for file in ("evil.jsonl", "t.jsonl"):
        said = on_screen(file, cwd=tmp_path)
        assert said.strip() and not STEERS.search(OURS.sub("", said))
        assert not any(line.startswith("b,") for line in said.splitlines())
    assert "\x1b[4" in said
    manifest["student"] = {"name": f"n{evil}", "path": f"/none{evil}"}
    (tmp_path / "t.meta.json").write_text(json.dumps(manifest))
    said = on_screen("t.jsonl", cwd=tmp_path)
    assert "is not here" in said and not STEERS.search(OURS.sub("", said))


BAD_STUDENTS = [
    None,
    3,
    {},
    {"name": 3, "path": 7},
    {"name": "a\0b", "path": "c\0d"},
    {"name": "no/where"},
    {"name": "bundled-llama"},  # which spells something else
    {"path": "."},
]


@pytest.mark.parametrize("student", BAD_STUDENTS)
def test_without_the_students_tokenizer_there_is_the_text_and_a_word_why(made, tmp_path, student):
    for name in ("t.jsonl", "t.tokens.jsonl"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    manifest = json.loads((made / "t.meta.json").read_text())
    (tmp_path / "t.meta.json").write_text(json.dumps(manifest | {"student": student}))
    said = command("show", tmp_path / "t.jsonl").output
    assert "its tokens are not shown: " in said
    text = read(made / "t.jsonl")[0]["completion"][0]["content"]
    assert text in re.sub(r"⟨\d+⟩", "", said)


def test_anybodys_rows_have_their_steps_and_scores(tmp_path):
    text = "<think>\nFirst this. Then that.\n</think>\n\nSo \\boxed{3}."
    rows = [
        {"question": "1 + 2?", "thinking": "Never mind.", "answer": "3"},
        {
            "question": "2 + 2?",
            "thinking": "First this. Then that.",
            "answer": "So \\boxed{3}.",
            "local_naturalness": -1.5,
        },
    ]
    write(tmp_path / "r.jsonl", rows)
    flags = ["--prompt-column", "question", "--thinking-column", "thinking", "--response-column", "answer"]
    said = command("show", tmp_path / "r.jsonl", digest([{"role": "user", "content": "2 + 2?"}]), *flags).output
    assert "⟨1⟩<think>\nFirst this.⟨2⟩ Then that.\n</think>\n\n⟨3⟩So" in said and "LN -1.5" in said
    assert text in re.sub(r"⟨\d+⟩", "", said)
    # A trace of the same problem is found by its prompt, too.
    write(tmp_path / "o.jsonl", [{"prompt": "1 + 2?", "completion": "no"}, {"prompt": "2 + 2?", "completion": "four"}])
    write(tmp_path / "p.jsonl", [{"id": "x", "prompt": "2 + 2?", "completion": "mine"}])
    said = command("show", tmp_path / "p.jsonl", "--raw", tmp_path / "o.jsonl").output
    assert "--- o.jsonl\n⟨1⟩four\n" in said and "--- p.jsonl\n⟨1⟩mine\n" in said


def test_columns_that_are_named_are_the_other_files(made, tmp_path):
    for name in ("t.jsonl", "t.tokens.jsonl", "t.meta.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    rows = [{"id": r["id"], "question": "?", "thought": "Hm.", "reply": "I see."} for r in read(made / "t.jsonl")]
    raw = write(tmp_path / "r.jsonl", rows)
    flags = ["--prompt-column", "question", "--thinking-column", "thought", "--response-column", "reply"]
    said = command("show", tmp_path / "t.jsonl", "--raw", raw, *flags).output
    assert "<think>\nHm.\n</think>\n\n⟨2⟩I see.\n" in said and "fallback" in said
    assert "no column thought" in command("show", tmp_path / "t.jsonl", *flags, expect=2).output


WRONG = {
    "none.jsonl": "No such file",
    "empty.jsonl": "holds no rows",
    ".": "cannot be read as a data set",
    "bytes": "not a UTF-8 text file",
    "text.jsonl": "line 1: not a JSON object",
    "other.jsonl": "no responses: looked for completion",
    "/dev/zero": "is a device",
}


@pytest.mark.parametrize("file", WRONG)
def test_nonsense_is_one_line(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "text.jsonl").write_text("hello\n")
    write(tmp_path / "other.jsonl", [{"text": "a"}])
    result = command("show", file, expect=2)
    (line,) = result.output.splitlines()
    assert line.startswith("rsd: ") and WRONG[file] in line
    write(tmp_path / "good.jsonl", [{"id": "savings-001", "prompt": "a", "completion": "b"}])
    assert WRONG[file] in command("show", "good.jsonl", "--raw", file, expect=2).output


def test_an_id_or_a_generation_that_is_not_there(tmp_path):
    rows = [
        {"id": f"savings-{i}", "prompt": "a", "completion": f"{g}", "generation": g} for i in range(3) for g in (2, 0)
    ]
    file = write(tmp_path / "r.jsonl", rows)
    assert "no row has the id 'saving-2' (did you mean savings-" in command("show", file, "saving-2", expect=2).output
    assert "no generation 1 of id 'savings-2'" in command("show", file, "savings-2", "--generation", 1, expect=2).output
    assert "no generation 1\n" in command("show", file, "--generation", 1, expect=2).output
    assert "--- savings-1, generation 2\n" in command("show", file, "savings-1").output
    assert "--- savings-1, generation 0\n" in command("show", file, "savings-1", "--generation", 0).output


def started(line, folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True)


def test_a_reader_that_goes_away_is_no_error(made):
    line = '"$0" -m rsd show t.jsonl | head -1; echo ${PIPESTATUS[0]}'
    ran = subprocess.run(
        ["bash", "-c", line, sys.executable], cwd=made, env=environment(), capture_output=True, text=True
    )
    assert ran.stderr == "" and ran.stdout.startswith("--- ") and os.path.exists(made / "t.jsonl")


def test_no_weights_and_no_torch_are_loaded(made):
    code = "import sys; sys.argv = ['rsd', 'show', 't.jsonl']\nfrom rsd.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    ran = started([sys.executable, "-c", code], made)
    assert ran.stdout.endswith("[]\n") and "⟦token|proposal⟧" in ran.stdout


def test_a_row_of_many_is_found_without_all_in_memory(tmp_path):
    with open(tmp_path / "many.jsonl", "w") as file:
        for i in range(100_000):
            file.write(json.dumps({"id": f"p{i}", "prompt": "a" * 300, "completion": "b" * 700}) + "\n")
    code = "import resource, sys; sys.argv = ['rsd', 'show', 'many.jsonl', sys.argv[1]]\nfrom rsd.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"

    def megabytes(name):
        ran = subprocess.run(
            [sys.executable, "-c", code, name], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
        assert f"--- {name}, generation 0" in ran.stdout, ran.stderr
        return int(ran.stdout.splitlines()[-1])

    assert megabytes("p99999") < megabytes("p0") + 40  # the file has 100
