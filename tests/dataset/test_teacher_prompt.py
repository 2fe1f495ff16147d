"""A prompt of the teacher's own: in the sidecar, in no row, and in an export that is asked for it."""

import json

import pytest
from conftest import read, write
from exports import FORMATS, export
from jobs import by_key, files, run

import rsd
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

TEMPLATE = "{{ prompt }} The solution: {{ answer }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    rows = [
        {"id": r["id"], "problem": r["problem"], "answer": r["answer"]}
        for r in read_rows(bundled("problems.jsonl"))[:4]
    ]
    write(folder / "in.jsonl", rows)
    run(folder / "in.jsonl", "-o", folder / "told.jsonl", "--teacher-template", TEMPLATE)
    run(folder / "in.jsonl", "-o", folder / "plain.jsonl")
    return folder


def wanted(folder):
    return {r["id"]: f"{r['problem']} The solution: {r['answer']}" for r in read(folder / "in.jsonl")}


def test_the_sidecar_alone_holds_it(folder):
    rows, tokens, _ = files(folder / "told.jsonl")
    for line in tokens:
        assert line["teacher_messages"] == [{"role": "user", "content": wanted(folder)[line["id"]]}]
    assert "The solution" not in (folder / "told.jsonl").read_text()
    assert not any("teacher_messages" in line for line in files(folder / "plain.jsonl")[1])
    assert len(rows) == 4


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_has_it_if_it_is_asked_for(folder, tmp_path, format):
    how = [folder / "told.jsonl", "--keep", "all", "--format", format]
    export(*how, "-o", tmp_path / "without.jsonl")
    assert "The solution" not in (tmp_path / "without.jsonl").read_text()
    export(*how, "--with-teacher-prompt", "-o", tmp_path / "out.jsonl")
    rows = by_key(read(tmp_path / "out.jsonl"))
    assert {key[0]: row.pop("privileged_context") for key, row in rows.items()} == wanted(folder)
    assert rows == by_key(read(tmp_path / "without.jsonl"))
    assert "privileged_context" in (tmp_path / "out.md").read_text()
    export(*how, "--with-teacher-prompt", "-o", tmp_path / "out.jsonl", "--overwrite")  # it knows its own file


def test_traces_know_it_without_a_file(folder):
    traces = rsd.generate(read(folder / "in.jsonl"), teacher_template=TEMPLATE)
    made = rsd.export(traces, keep="all", with_teacher_prompt=True)
    assert {row["id"]: row["privileged_context"] for row in made.train} == wanted(folder)


def test_a_system_message_and_what_came_before_are_not_told_twice(tmp_path):
    turns = [
        {"role": r, "content": c} for r, c in (("system", "S"), ("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"))
    ]
    write(tmp_path / "in.jsonl", [{"id": 1, "messages": turns, "answer": "6"}])
    run(tmp_path / "in.jsonl", "-o", tmp_path / "t.jsonl", "--teacher-template", "It is {{ answer }}.")
    export(tmp_path / "t.jsonl", "--keep", "all", "--with-teacher-prompt", "-o", tmp_path / "out.jsonl")
    assert [row["privileged_context"] for row in read(tmp_path / "out.jsonl")] == ["It is 6."]


def test_where_there_is_none_one_line_says_so(folder, tmp_path):
    flags = ["--keep", "all", "--with-teacher-prompt", "-o", tmp_path / "out.jsonl"]
    output = export(folder / "plain.jsonl", *flags, expect=2)
    assert "no prompt of the teacher's own is known" in output and len(output.strip().splitlines()) == 1
    for name in ("told.jsonl", "told.meta.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for nothing in ({}, {"teacher_messages": "x"}, {"teacher_messages": [{"role": "user"}]}):
        lines = [
            {k: v for k, v in line.items() if k != "teacher_messages"} | nothing
            for line in files(folder / "told.jsonl")[1]
        ]
        write(tmp_path / "told.tokens.jsonl", lines)
        output = export(tmp_path / "told.jsonl", *flags, expect=2)
        assert "an older rsd made this trace" in output and len(output.strip().splitlines()) == 1
    export(tmp_path / "told.jsonl", "--keep", "all", "-o", tmp_path / "out.jsonl")
    # A job that an older rsd began is gone on with all the same.
    (tmp_path / "told.meta.json").write_text(
        json.dumps(json.loads((tmp_path / "told.meta.json").read_text()) | {"files": {}})
    )
    before = (tmp_path / "told.jsonl").read_bytes()
    run(folder / "in.jsonl", "-o", tmp_path / "told.jsonl", "--teacher-template", TEMPLATE)
    assert (tmp_path / "told.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore")
def test_trls_self_distillation_reads_it(folder, tmp_path):
    sdft = pytest.importorskip("trl.experimental.sdft")
    from datasets import load_dataset
    from transformers import AutoTokenizer

    export(folder / "told.jsonl", "--keep", "all", "--with-teacher-prompt", "-o", tmp_path / "out.jsonl")
    data = load_dataset("json", data_files=str(tmp_path / "out.jsonl"), cache_dir=str(tmp_path / "cache"))["train"]
    config = sdft.SDFTConfig(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        num_generations=1,
        max_completion_length=8,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(bundled("student"), padding_side="left")
    trainer = sdft.SDFTTrainer(
        model=str(bundled("student")), args=config, train_dataset=data, processing_class=tokenizer
    )
    (batch,) = trainer.get_train_dataloader()
    made = trainer._prepare_inputs(batch)
    read_by_teacher = tokenizer.batch_decode(made["teacher_input_ids"])
    for row in data:
        question = row["prompt"][-1]["content"]
        whole = f"{question}\n\n{row['privileged_context']}"
        assert sum(whole in text for text in read_by_teacher) == 1
