"""Bad rows, bad models, bad flags: one clear line each, and nothing is lost."""

import os

import pytest
import torch
from conftest import SPECIALS, save_model, write
from jobs import FLAGS, PROBLEMS, files, pair, run
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_bad_rows_do_not_end_a_job(tiny, tmp_path):
    rows = [
        {"id": 1, "prompt": "fine"},
        {"id": 2, "prompt": ""},
        {"id": 3, "prompt": 17},
        {"id": 4, "prompt": "x" * 600},
        {"id": 5, "prompt": "lone \ud800 surrogate"},
        {"id": 6, "prompt": "also fine", "completion": "kept", "error": 0},
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    result = run(source, "-o", out, *pair(tiny), *FLAGS, "--num-generations", 2, expect=1)
    made, tokens, meta = files(out)
    assert len(made) == 12 and meta["totals"]["errors"] == 8 and "8 rows have `error` set" in result.output
    errors = {r["id"]: r["error"] for r in made}
    assert errors[1] is None and errors[6] is None
    assert "empty" in errors[2] and "not int" in errors[3] and "there is no room" in errors[4] and errors[5]
    assert {t["id"] for t in tokens} == {1, 6}
    kept = next(r for r in made if r["id"] == 6)
    assert kept["input_completion"] == "kept" and kept["input_error"] == 0 and kept["error"] is None
    # Errors are tried again: the same run makes the same rows, none twice.
    result = run(source, "-o", out, *pair(tiny), *FLAGS, "--num-generations", 2, expect=1)
    assert "found 4 finished traces, 8 to make" in result.output
    assert len(files(out)[0]) == 12 and len(files(out)[1]) == 4


def test_nan_weights_stop_rows_not_the_job(tiny, tmp_path):
    teacher = AutoModelForCausalLM.from_pretrained(tiny()["teacher"])
    with torch.no_grad():
        teacher.model.embed_tokens.weight[ord("q") - 33] = torch.nan  # the byte "q"
    teacher.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny()["teacher"]).save_pretrained(tmp_path / "broken")
    source = write(tmp_path / "in.jsonl", [{"id": "sound", "prompt": "abc"}, {"id": "broken", "prompt": "abq"}])
    out = tmp_path / "out.jsonl"
    flags = ["--teacher", tmp_path / "broken", "--student", tiny()["student"], *FLAGS, "--threshold", 1]
    run(source, "-o", out, *flags, "--batch-size", 1, "--num-generations", 2, expect=1)
    errors = {r["id"]: r["error"] for r in files(out)[0]}
    assert errors["sound"] is None and "NaN" in errors["broken"]


def bad(tmp_path, tiny):
    good = write(tmp_path / "good.jsonl", PROBLEMS)
    empty, text = tmp_path / "empty.jsonl", tmp_path / "text.jsonl"
    empty.touch()
    text.write_text('{"prompt": "a"}\nhello\n')
    theirs = write(tmp_path / "theirs.jsonl", [{"not": "ours"}])
    (tmp_path / "theirs.meta.json").write_text("{}")
    plain = write(tmp_path / "plain.jsonl", [{"text": "a", "label": 3}])
    double = write(tmp_path / "double.jsonl", [{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}])
    other = save_model(tmp_path / "other", SPECIALS, width=270, seed=1, base=[chr(i) for i in range(33, 120)])
    models = pair(tiny)
    return {
        "no file": ([tmp_path / "none.jsonl"], "No such file"),
        "no model": ([good, "--teacher", "./none"], "--teacher ./none: no such directory"),
        "no hub id": ([good, "--student", "nonsense"], "--student nonsense: no such directory"),
        "two models": ([good, "--teacher", "./a", "--teacher", "http://h/v1"], "of one model, ./a is no address"),
        "a teacher without a name": ([good, "--teacher", ""], "--teacher: a model, or servers of one, is needed"),
        "not a model": ([good, "--teacher", str(tmp_path)], "cannot be loaded"),
        "not jsonl": ([text], "line 2: not a JSON object"),
        "no column": ([plain], "found text, label; name yours with --prompt-column"),
        "wrong column": ([good, "--prompt-column", "x"], "no prompt column: looked for x"),
        "empty": ([empty], "holds no rows"),
        "double": ([double], "duplicate id 'x' in rows 1 and 2"),
        "threshold": ([good, "--threshold", 1.5], "--threshold must be from 0 to 1, not 1.5"),
        "nan": ([good, "--threshold", "nan"], "--threshold must be from 0 to 1, not nan"),
        "temperature": ([good, "--temperature", -1], "temperature must be 0 (greedy) or positive, not -1.0"),
        "top-p": ([good, "--top-p", 0], "top-p must be above 0"),
        "trials": ([good, "--trials", 0], "trials must be a whole number"),
        "no rows": ([good, "--batch-size", 0], "batch-size must be a whole number from 1 to 65536, not 0"),
        "many rows": ([good, "--batch-size", "many"], "neither a whole number nor auto"),
        "block": ([good, "--block-size", 0], "block-size must be a whole number from 1 to 65536, not 0"),
        "too many rows": ([good, "--batch-size", 2**31], "batch-size must be a whole number from 1 to 65536"),
        "too large a block": ([good, "--block-size", 2**31], "block-size must be a whole number from 1 to 65536"),
        "too many trials": ([good, "--trials", 10**26], "trials must be a whole number from 1 to 1000000000, or inf"),
        "broken trials": ([good, "--trials", "1e26"], "neither a whole number nor inf"),
        "a long number": ([good, "--seed", "9" * 5000], "Invalid value for '--seed': '999"),
        "meta": ([good, "--device", "meta"], "device meta: torch sees no such device here"),
        "device minus one": ([good, "--device", "cuda:-1"], "device cuda:-1: torch sees no such device here"),
        "xpu": ([good, "--teacher-device", "fpga"], "device fpga: torch sees no such device here"),
        "a long id": ([good, "--suppress", "9" * 5000], "suppress: '999"),
        "an id that is no text": ([good, "--suppress", "\udcff"], "is no text"),
        "nested template": (
            [good, "--teacher-template", "{{ " + "(" * 3000 + ")" * 3000 + " }}"],
            "teacher-template: ",
        ),
        "template by zero": ([good, "--teacher-template", "{{ 1 / 0 }}"], "division by zero, in every row"),
        "template of a device": ([good, "--teacher-template", "@/dev/zero"], "/dev/zero is no file"),
        "template of a folder": ([good, "--teacher-template", f"@{tmp_path}"], "Is a directory"),
        "no template": ([good, "--teacher-template", "@none.txt"], "none.txt: No such file"),
        "no address": (
            [good, "--teacher", "http://h:x/v1", "--teacher-model", "bundled-teacher"],
            "'http://h:x/v1' is no address",
        ),
        "no input": ([""], "No such file"),
        "device of one": ([good, "--student-device", "quantum"], "quantum"),
        "no such gpu": ([good, "--device", "cuda:99"], "device cuda:99: torch sees"),
        "no trials": ([good, "--trials", "many"], "neither a whole number nor inf"),
        "vocabulary": ([good, "--teacher", other], "has tokens for 87 of 256 single bytes"),
        "no room": ([good, "--max-new-tokens", 512], "leaves no room for a prompt in a context of 512"),
        "no manifest": ([good, "-o", plain], "has no manifest"),
        "overwrite no job's": ([good, "-o", plain, "--overwrite"], "has no manifest"),
        "another's": ([good, "-o", theirs], "is not a manifest of rsd"),
        "the input": ([good, "-o", good, "--overwrite"], "is an input itself"),
        "a folder": ([good, "-o", tmp_path], "is a folder"),
        "no folder": ([good, "-o", good / "out.jsonl"], "Not a directory"),
        "a table": ([good, "-o", tmp_path / "out.parquet"], "what is written are lines of JSON"),
        "unwritable": ([good, "-o", "/proc/out.jsonl"], "cannot write to the folder"),
        "no device": ([good, "--device", "quantum"], "quantum"),
        "bad kwargs": ([good, "--chat-template-kwargs", "[1]"], "not a JSON object"),
        "bad flag": ([good, "--treshold", 1], "No such option"),
    }, models


def test_bad_input_is_one_line_and_nothing_is_lost(tiny, tmp_path):
    cases, models = bad(tmp_path, tiny)
    os.chdir(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for name, (args, message) in cases.items():
        given = models[2:] if "--teacher" in args else models  # two would be two servers of one model
        result = run(*given, *FLAGS, *args, expect=2)
        assert message in result.output, (name, result.output)
        assert len(result.output.strip().splitlines()[-1]) < 550
        assert "Traceback" not in result.output
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before, name


def test_pickled_weights_are_loaded_only_when_asked(tiny, tmp_path):
    teacher = AutoModelForCausalLM.from_pretrained(tiny()["teacher"])
    folder = tmp_path / "pickled"
    teacher.config.save_pretrained(folder)
    teacher.generation_config.save_pretrained(folder)
    torch.save(teacher.state_dict(), folder / "pytorch_model.bin")
    AutoTokenizer.from_pretrained(tiny()["teacher"]).save_pretrained(folder)
    source = write(tmp_path / "in.jsonl", PROBLEMS[:1])
    flags = [source, "-o", tmp_path / "out.jsonl", "--teacher", folder, "--student", tiny()["student"], *FLAGS]
    assert "cannot be loaded" in run(*flags, expect=2).output
    assert not (tmp_path / "out.jsonl").exists()
    run(*flags, "--allow-pickle")


def test_two_jobs_cannot_write_one_file(tiny, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:2]), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS)
    with open(tmp_path / "out.tokens.jsonl", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        result = run(source, "-o", out, *pair(tiny), *FLAGS, "--overwrite", expect=2)
    assert "is being written by another process" in result.output
    assert len(files(out)[0]) == 2
