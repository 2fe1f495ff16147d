"""From Python: what people pass is taken or told in one line, and each command has a function that does the same."""

import datetime
import decimal
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType

import datasets
import numpy as np
import pandas
import pytest
from conftest import environment, read, write
from conftest import rsd as command
from hypothesis import given, settings
from hypothesis import strategies as st

import rsd
from rsd import DoctorConfig, ExportConfig, GenerateConfig, ScoreConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.reading import Reading
from rsd.scoring.responses import read_responses
from rsd.settings import kinds

QUESTION = "Tom has 34 pens. Tom gives 12 to Ana and then finds 25 more. How many pens does Tom have now?"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator():
    return TraceGenerator(max_new_tokens=60)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A folder with raw.jsonl and rsd.jsonl, made by the command, and the traces that Python makes of the same."""
    folder = tmp_path_factory.mktemp("sides")
    for name, threshold in (("raw", "0"), ("rsd", "0.01")):
        made = command("generate", "--limit", "6", "--threshold", threshold, "-o", f"{name}.jsonl", cwd=folder)
        assert made.returncode == 0, made.stderr
    return folder, {name: rsd.generate(limit=6, threshold=at) for name, at in (("raw", 0), ("rsd", 0.01))}


def test_importing_rsd_is_quick_and_shows_what_there_is():
    code = (
        "import rsd, sys; print(dir(rsd)); print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment()).stdout
    names, heavy = said.splitlines()
    assert heavy == "[]"
    for name in (
        "doctor",
        "generate",
        "score",
        "compare",
        "select",
        "verify",
        "export",
        "Trace",
        "TraceGenerator",
        "GenerateConfig",
    ):
        assert f"'{name}'" in names and getattr(rsd, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = rsd.generat


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.decimals()
    | st.fractions()
    | st.complex_numbers()
    | st.sampled_from([object(), print, Path("a"), np.float32(0.5), np.int64(3), np.bool_(True), np.zeros(2), 10**400])
    | st.sampled_from(["auto", "inf", "4bit", "http://x/v1", "none", "sentence", "20%", "token-ids", "own", "<think>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
FIELDS = [
    (config, f.name)
    for config in (GenerateConfig, ScoreConfig, ExportConfig, DoctorConfig, Reading)
    for f in fields(config)
]


@settings(max_examples=2000)
@given(st.sampled_from(FIELDS), ANYTHING)
def test_any_value_of_any_setting_is_taken_or_the_message_names_it(field, value):
    config, name = field
    try:
        made = config(**{name: value})
    except ValueError as e:
        assert name in str(e) and "\n" not in str(e) and len(str(e)) < 300
        return
    json.dumps(asdict(made))  # whatever is taken can be a job's
    held, kind = getattr(made, name), kinds(config)[name]
    if held is not None and kind.type in (int, float, str, bool):
        assert isinstance(held, (int, float) if kind.type is float else kind.type)
        assert isinstance(held, bool) == (kind.type is bool)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperature", "hot", "temperature: a number is needed, not 'hot'"),
        ("seed", "one", "seed: a whole number is needed, not 'one'"),
        ("seed", True, "seed: a whole number is needed, not True"),
        ("seed", 1.5, "seed: a whole number is needed, not 1.5"),
        ("student", None, "student: a text is needed, not None"),
        ("teacher", [1], r"teacher: a text or a list of texts is needed, not \[1\]"),
        ("score", "yes", "score: True or False is needed, not 'yes'"),
        ("suppress", "<think>", "suppress: a list of texts or whole numbers is needed, not '<think>'"),
        ("suppress", [None], "suppress: a list of texts or whole numbers"),
        ("chat_template_kwargs", {"a": object()}, "chat_template_kwargs: a mapping that JSON can hold"),
        ("chat_template_kwargs", {"a": math.nan}, "chat_template_kwargs: a mapping that JSON can hold"),
        ("threshold_on", 1, "threshold_on must be raw or sampled, not 1"),
        ("want", 2, "want 2 is more than num_generations 1"),
        ("top_p", 2, "top_p must be above 0"),
    ],
)
def test_a_wrong_value_is_told_by_the_name_of_its_field(name, value, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        GenerateConfig(**{name: value})


def test_numbers_of_numpy_and_paths_are_as_good_as_any():
    config = GenerateConfig(
        teacher=Path("some/model"),
        temperature=np.float32(0.5),
        max_new_tokens=np.int64(5),
        num_generations=2.0,
        chat_template_kwargs=MappingProxyType({"a": [1]}),
    )
    assert config == GenerateConfig(
        teacher="some/model", temperature=0.5, max_new_tokens=5, num_generations=2, chat_template_kwargs={"a": [1]}
    )
    assert [type(v) for v in (config.teacher, config.temperature, config.max_new_tokens)] == [str, float, int]


def test_keywords_make_a_configuration_or_amend_one():
    assert TraceGenerator().config == GenerateConfig()
    assert TraceGenerator(num_generations=2).config == GenerateConfig(num_generations=2)
    amended = TraceGenerator(GenerateConfig(seed=1, threshold=0.5), seed=2)
    assert amended.config == GenerateConfig(seed=2, threshold=0.5)
    assert pickle.loads(pickle.dumps(amended)).config == amended.config
    for make, said in (
        (lambda: TraceGenerator(num_generatons=2), "no setting num_generatons: num_generations?"),
        (lambda: TraceGenerator(zzz=2), "no setting zzz in GenerateConfig"),
        (lambda: TraceGenerator("some/model"), "config: a GenerateConfig is needed, not 'some/model'"),
        (lambda: TraceGenerator(GenerateConfig(), seed="x"), "seed: a whole number is needed"),
        (lambda: rsd.score([], windw="3"), "no setting windw: window"),
        (lambda: rsd.export([], fromat="alpaca"), "no setting fromat: format"),
        (lambda: rsd.generate(limit=0), "limit must be a whole number from 1"),
        (lambda: rsd.generate([], "t.jsonl", keep="best"), "keep must be all, correct"),
        (lambda: rsd.select({}, by="luck"), "by must be ln, "),
        (lambda: rsd.generate(QUESTION), "no such file.*in a list"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


FORMS = {
    "a prompt": lambda: QUESTION,
    "a dict": lambda: {"prompt": QUESTION},
    "prompts": lambda: [QUESTION],
    "an iterator of prompts": lambda: iter([QUESTION]),
    "a generator of dicts": lambda: ({"question": q} for q in [QUESTION]),
    "a mapping": lambda: [MappingProxyType({"prompt": QUESTION})],
    "messages": lambda: {"messages": ({"role": "user", "content": QUESTION},)},
    "a table of pandas": lambda: pandas.DataFrame({"question": [QUESTION], "n": [None]}),
    "a column of pandas": lambda: pandas.Series([QUESTION]),
    "messages from parquet": lambda: pandas.DataFrame(
        {"messages": [np.array([{"role": "user", "content": QUESTION}], dtype=object)]}
    ),
    "a Dataset": lambda: datasets.Dataset.from_dict({"problem": [QUESTION]}),
    "a stream of datasets": lambda: datasets.Dataset.from_dict({"problem": [QUESTION]}).to_iterable_dataset(),
    "an array": lambda: np.array([QUESTION]),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_form_a_problem_has_its_trace_is_the_same(form, generator):
    (want,), (made,) = generator.run([{"prompt": QUESTION}]), generator.run(FORMS[form]())
    assert (made.id, made.text, made.error) == (want.id, want.text, None)
    assert json.loads(json.dumps(made.row()))["completion"] == want.row()["completion"]


def test_texts_and_dicts_mix_and_traces_are_rows_again(generator, tmp_path):
    made = generator.run([QUESTION, {"prompt": "What is 6 plus 5?", "id": 4, "tag": ("a",)}])
    assert [t.prompt[-1]["content"] for t in made] == [QUESTION, "What is 6 plus 5?"]
    assert (made[1].id, made[1].row()["tag"]) == (4, ["a"])
    again = generator.run(made)
    assert [(t.id, t.text) for t in again] == [(t.id, t.text) for t in made]
    file = write(tmp_path / "in.jsonl", [{"prompt": QUESTION}])
    assert [t.text for t in generator.run(file)] == [made[0].text]


def test_what_is_missing_in_a_table_is_null_and_its_times_are_texts(generator):
    table = pandas.DataFrame(
        {
            "prompt": ["What is 6 plus 5?", "What is 7 plus 5?"],
            "answer": [11, None],
            "day": [datetime.date(2026, 1, 2), None],
            "at": pandas.to_datetime(["2026-01-02 03:04", None]),
            "cost": [decimal.Decimal("1.5"), decimal.Decimal("NaN")],
            "label": pandas.array([1, None], dtype="Int64"),
        }
    )
    first, last = (t.row() for t in generator.run(table))
    names = ("answer", "day", "at", "cost", "label")
    assert [first[n] for n in names] == [11, "2026-01-02", "2026-01-02T03:04:00", 1.5, 1]
    assert [last[n] for n in names] == [None] * 5 and first["is_correct"] in (True, False)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (5, "^rows are needed: a prompt, a row such as .* not 5$"),
        (None, "not None$"),
        (b"What is 2+2?", "^rows are needed"),
        ([QUESTION, 7], "^row 2: a prompt or a row such as .* is needed, not 7$"),
        ([[{"role": "user", "content": "a"}]], "^row 1: a prompt or a row"),
        ({"text": QUESTION}, "no prompt column: looked for prompt, .*found text; name yours with prompt_column$"),
        ([{"role": "user", "content": "a"}], "no prompt column"),
        ({"a\nb": QUESTION}, r"found 'a\\nb'; name yours"),
    ],
)
def test_what_is_no_row_is_told_in_one_line(rows, said, generator):
    with pytest.raises(ValueError, match=said) as told:
        generator.run(rows)
    assert "\n" not in str(told.value)


def test_a_row_that_holds_itself_is_told(generator):
    deep: list = []
    deep.append(deep)
    with pytest.raises(ValueError, match=r"^row 1: nested deeper"):
        generator.run([{"prompt": "a", "deep": deep}])


@given(ANYTHING)
@settings(max_examples=200)
def test_anything_as_rows_is_rows_or_one_line(value):
    try:
        TraceGenerator().prepare(value)
    except ValueError as e:
        assert "\n" not in str(e) and len(str(e)) < 300


def test_columns_come_back_as_columns_and_others_are_told(generator):
    for columns in ({"prompt": [QUESTION, "?"]}, {"prompt": np.array([QUESTION, "?"])}, {"prompt": (QUESTION, "?")}):
        made = generator(columns)
        assert {len(values) for values in made.values()} == {2} and "boxed" in made["completion"][0][0]["content"]
    assert generator({}) == generator({"prompt": []}) == {}
    for batch, said in (
        ({"prompt": ["a", "b"], "id": [1]}, "columns of one length are needed: prompt has 2, id has 1"),
        ({"prompt": "a"}, "columns such as .*batched=True.*prompt holds 'a'"),
        ({"prompt": 1}, "prompt holds 1"),
        (["a"], r"columns such as .* not \['a'\]"),
    ):
        with pytest.raises(ValueError, match=said):
            generator(batch)


def test_generate_makes_what_the_command_makes(sides, tmp_path):
    folder, traces = sides
    want = {row["id"]: row for row in read(folder / "rsd.jsonl")}
    assert [json.loads(json.dumps(t.row())) for t in traces["rsd"]] == [want[t.id] for t in traces["rsd"]]
    rows = read(bundled("problems.jsonl"))[:6]
    out = tmp_path / "t.jsonl"
    first = rsd.generate(pandas.DataFrame(rows[:2]), out)
    assert (first.totals["rows"], first.new_rows) == (2, 2)
    whole = rsd.generate(rows, out)  # a job that is gone on with
    assert (whole.totals["rows"], whole.new_rows) == (6, 4)
    assert rsd.generate(rows, str(out)).new_rows == 0
    assert {row["id"]: row for row in read(out)} == want
    ids = [
        {r["id"]: r["token_ids"] for r in read(f)} for f in (tmp_path / "t.tokens.jsonl", folder / "rsd.tokens.jsonl")
    ]
    assert ids[0] == ids[1]
    with pytest.raises(ValueError, match=r"seed .*; use another output, or overwrite=True to start anew"):
        rsd.generate(rows, out, seed=1)
    assert rsd.generate(rows[:1], out, seed=1, overwrite=True, keep="best-ln").kept in (0, 1)
    with pytest.raises(ValueError, match="row 1: a column holds bytes"):
        rsd.generate([{"prompt": "a", "image": b"a"}], tmp_path / "u.jsonl")
    assert not (tmp_path / "u.jsonl").exists()


def test_score_adds_what_the_command_adds(sides, tmp_path):
    folder, traces = sides
    assert command("score", "rsd.jsonl", "-o", tmp_path / "c.jsonl", cwd=folder).returncode == 0
    want = {row["id"]: row for row in read(tmp_path / "c.jsonl")}
    rows = [trace.row() for trace in traces["rsd"]]
    for source in (traces["rsd"], rows, pandas.DataFrame(rows), datasets.Dataset.from_list(rows), folder / "rsd.jsonl"):
        for row in rsd.score(source):
            assert json.loads(json.dumps(row))["local_naturalness"] == want[row["id"]]["local_naturalness"]
            assert row["step_spans"] == want[row["id"]]["step_spans"] and row["score_error"] is None
    summary = rsd.score(traces["rsd"][:2], tmp_path / "s.jsonl")
    assert (summary.rows, summary.new_rows) == (2, 2)
    assert rsd.score(traces["rsd"], tmp_path / "s.jsonl").new_rows == 4
    assert rsd.score(traces["rsd"], tmp_path / "s.jsonl").new_rows == 0
    assert read(tmp_path / "s.jsonl") == [want[row["id"]] for row in rows]
    with pytest.raises(ValueError, match=r"name yours with response_column .and prompt_column."):
        rsd.score([QUESTION])


def test_compare_of_traces_is_compare_of_their_files(sides, tmp_path):
    folder, traces = sides
    names = ("raw", "rsd")
    there = rsd.compare(folder / "raw.jsonl", folder / "rsd.jsonl", json=tmp_path / "there.json")
    here = rsd.compare(traces["raw"], traces["rsd"], html=tmp_path / "t.html", json=tmp_path / "t.json", names=names)
    assert there.names == (str(folder / "raw.jsonl"), str(folder / "rsd.jsonl")) and here.names == names
    for name, difference in there.metrics.items():
        assert here.metrics[name].delta == pytest.approx(difference.delta)
    assert len(here.pairs) == 6 and json.loads((tmp_path / "t.json").read_text()) and (tmp_path / "t.html").exists()
    assert rsd.compare(traces["raw"], [t.row() for t in traces["rsd"]]).names == ("baseline", "candidate")
    with pytest.raises(ValueError, match="is an input itself"):
        rsd.compare(folder / "raw.jsonl", traces["rsd"], html=folder / "raw.jsonl")


def test_what_the_teacher_said_of_a_trace_is_known_as_from_its_file(sides):
    folder, traces = sides
    noted = {r.id: r.tokens for r in read_responses(folder / "rsd.jsonl", ScoreConfig())}
    for response in read_responses(traces["rsd"], ScoreConfig()):
        want = noted[response.id]
        for name in ("token_ids", "from_teacher", "proposals"):
            assert (response.tokens[name] == want[name]).all()
        assert np.allclose(response.tokens["teacher_logprobs"], want["teacher_logprobs"], atol=1e-3, equal_nan=True)


def test_verify_judges_as_the_command_does(sides, tmp_path):
    folder, traces = sides
    assert command("verify", "rsd.jsonl", "-o", tmp_path / "c.jsonl", cwd=folder).returncode in (0, 1)
    want = {row["id"]: row["is_correct"] for row in read(tmp_path / "c.jsonl")}
    wrong = [trace.row() | {"is_correct": None} for trace in traces["rsd"]]
    for source in (traces["rsd"], wrong, pandas.DataFrame(wrong)):
        assert {row["id"]: row["is_correct"] for row in rsd.verify(source)} == want
    assert rsd.verify(traces["rsd"], tmp_path / "p.jsonl").rows == 6
    assert rsd.verify(traces["rsd"], tmp_path / "p.jsonl").new_rows == 0
    with pytest.raises(ValueError, match=r"name yours with answer_column, or use verify=.none."):
        rsd.verify([{"prompt": "a", "completion": "b"}])


def test_select_of_traces_is_select_of_their_files(sides, tmp_path):
    folder, traces = sides
    args = ("select", "raw.jsonl", "rsd.jsonl", "-o", str(tmp_path / "c.jsonl"))
    assert command(*args, cwd=folder).returncode == 0
    want = {row["id"]: (row["teacher"], row["local_naturalness"]) for row in read(tmp_path / "c.jsonl")}
    labelled = [{**t.row(), "teacher": name} for name, side in traces.items() for t in side]
    for teachers in (
        traces,
        {"raw": folder / "raw.jsonl", "rsd": pandas.DataFrame(t.row() for t in traces["rsd"])},
        [folder / "raw.jsonl", str(folder / "rsd.jsonl")],
        labelled,
    ):
        made = rsd.select(teachers, tmp_path / "p.jsonl", overwrite=True)
        assert {row["id"]: (row["teacher"], row["local_naturalness"]) for row in made.rows()} == want
        assert read(tmp_path / "p.jsonl") == [json.loads(json.dumps(row)) for row in made.rows()]
    with pytest.raises(ValueError, match=r"p.jsonl exists: name another output, or overwrite=True to replace it"):
        rsd.select(traces, tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="the rows: a row without `teacher`"):
        rsd.select(traces["raw"])


@pytest.mark.parametrize("format", ["prompt-completion", "token-ids"])
def test_export_of_traces_is_export_of_their_file(format, sides, tmp_path):
    folder, traces = sides
    there = rsd.export(folder / "rsd.jsonl", tmp_path / "there.jsonl", format=format, keep="all")
    here = rsd.export(traces["rsd"], tmp_path / "here.parquet", format=format, keep="all")
    by_id = [sorted(made.train, key=lambda row: row["id"]) for made in (there, here)]
    assert json.loads(json.dumps(by_id[0])) == json.loads(json.dumps(by_id[1])) and len(by_id[0]) == 6
    assert set(there.files) == {"train", "card"} and len(read(there.files["train"])) == 6
    assert len(datasets.Dataset.from_parquet(str(here.files["train"]))) == 6
    assert len(rsd.export([t.row() for t in traces["rsd"]], keep="all").train) == 6
    with pytest.raises(ValueError, match=r"row 1: .*traces, or rows of rsd generate, are needed"):
        rsd.export([{"prompt": "a"}])
    if format == "token-ids":
        with pytest.raises(ValueError, match="token-ids needs every trace's tokens"):
            rsd.export([t.row() for t in traces["rsd"]], format=format, keep="all")


def test_results_are_tables_of_pandas_and_datasets_again(sides):
    _, traces = sides
    table = pandas.DataFrame(trace.row() for trace in traces["rsd"])
    assert len(table) == 6 and 0 < table["acceptance_rate"].mean() <= 1
    made = datasets.Dataset.from_list([trace.row() for trace in traces["rsd"]])
    assert made.num_rows == 6
    assert pandas.DataFrame(rsd.score(made))["local_naturalness"].notna().all()


def test_the_section_of_the_readme_runs(tmp_path):
    text = (Path(rsd.__file__).parent / "README.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- python -->\n```python\n(.+?)```", text, re.S).group(1)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "train.parquet", "train.md"}
