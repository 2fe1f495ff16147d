"""Soft targets in the layouts of axolotl and DistillKit, read back by their rules: each target beside its own token."""

import shutil
import struct

import numpy as np
import pytest
import yaml
from conftest import read, write
from exports import export
from hub import Hub
from jobs import by_key, command, files, run
from test_card import push
from transformers import AutoTokenizer

import rsd
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows
from rsd.traces.soft import SoftFile, batch, head, schema_of, soft_file

K = 5
AXOLOTL = ["axolotl-kd", "axolotl-kd-v1"]
TOOLS = [*AXOLOTL, "distillkit"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A job whose completions begin with what nobody sampled, of which some are wrong."""
    folder = tmp_path_factory.mktemp("soft")
    write(folder / "in.jsonl", read_rows(bundled("problems.jsonl"))[:12])
    how = ["--top-logprobs", K, "--num-generations", 2, "--completion-prefix", "<think>"]
    run(folder / "in.jsonl", "-o", folder / "traces.jsonl", *how)
    return folder


@pytest.fixture
def traces(made, tmp_path):
    for file in made.glob("traces*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "traces.jsonl"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled("student"))


def name(format):
    return f"out.{'parquet' if format == 'distillkit' else 'jsonl'}"


def table(file):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


def layout(row):
    """Ids [R][K] and log-probs of a row of axolotl's, of either layout."""
    if "target_token_ids" in row:
        return row["target_token_ids"], row["logprobs"]
    return (
        [[int(entry["token"].removeprefix("token_id:")) for entry in place] for place in row["logprobs"]],
        [[entry["logprob"] for entry in place] for place in row["logprobs"]],
    )


def about(line, place, ids, logprobs):
    """Whether targets are of this place of a trace, by what the sidecar says of the token that stands there."""
    token, told = line["token_ids"][place], line["teacher_logprobs"][place]
    assert sorted(logprobs, reverse=True) == logprobs and len(set(ids)) == len(ids) == len(logprobs) == K
    if told is None:  # the teacher spells this one in pieces
        return token in ids
    if token in ids:
        assert logprobs[ids.index(token)] == pytest.approx(told, rel=2e-3, abs=2e-3)
    else:
        assert told <= logprobs[-1] + 1e-3
    return token in ids


@pytest.mark.parametrize("format", AXOLOTL)
def test_axolotl_finds_each_target_beside_its_token(traces, tmp_path, tokenizer, format):
    export(traces, "--format", format, "--keep", "all", "-o", tmp_path / "out.jsonl")
    lines, rows = by_key(files(traces)[1]), read(tmp_path / "out.jsonl")
    assert len(rows) >= 12
    found = 0
    for row in rows:
        read_by_axolotl = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        ids, logprobs = layout(row)
        line = lines[row["id"], row["generation"]]
        # The last target is of the last token, behind the EOS: a line break that the template puts there.
        first = len(read_by_axolotl) - len(ids)
        n = len(line["token_ids"])
        assert read_by_axolotl[first : first + n] == line["token_ids"] and len(ids) == n + 1
        found += sum(about(line, place, ids[place], logprobs[place]) for place in range(n))
        assert ids[n][0] == read_by_axolotl[-1] and logprobs[n][0] == 0 and max(logprobs[n][1:]) <= -40
        assert {len(place) for place in (*ids, *logprobs)} == {K}
    assert found > 0.9 * sum(row["num_tokens"] for row in rows)


@pytest.mark.parametrize("format", AXOLOTL)
def test_axolotls_own_reader_takes_the_file(traces, tmp_path, tokenizer, format):
    kd = pytest.importorskip("axolotl.integrations.kd.chat_template")
    from axolotl.utils.dict import DictDefault

    export(traces, "--format", format, "--keep", "all", "-o", tmp_path / "out.jsonl")
    loader = kd.load if format == "axolotl-kd" else kd.load_legacy
    how = DictDefault(chat_template="tokenizer_default", roles_to_train=["assistant"])
    strategy = loader(tokenizer, DictDefault(sequence_len=2560, train_on_inputs=False, kd_temperature=1.0), how)
    soft = SoftFile(soft_file(traces))
    for row in read(tmp_path / "out.jsonl"):
        sample, mine = strategy.tokenize_prompt(dict(row)), soft.get((row["id"], row["generation"]))
        learnt = np.array(sample["labels"]) >= 0
        assert len(sample["target_token_ids"]) == len(sample["input_ids"]) == len(learnt)
        # In versions after 0.21 targets lie one place before their token, as the loss wants them.
        begins = [i for i in range(len(learnt)) if sample["target_token_ids"][i] == mine.teacher_ids[0].tolist()]
        at = len(learnt) - 1 - len(mine.token_ids)
        assert {at, at - 1} & set(begins)
        at = at if at in begins else at - 1
        there = slice(at, at + len(mine.token_ids))
        assert np.array_equal(sample["target_token_ids"][there], mine.teacher_ids)
        assert np.array(sample["target_mask"])[there].all()
        among = mine.teacher_logprobs - np.log(np.exp(mine.teacher_logprobs).sum(1, keepdims=True))
        np.testing.assert_allclose(sample["target_logprobs"][there], among, atol=1e-3)


def unpacked(data, bits):
    """K whole numbers of so many bits, the first in the highest ones."""
    whole = int.from_bytes(bytes(data), "big")
    return [whole >> (8 * len(data) - (i + 1) * bits) & (1 << bits) - 1 for i in range(K)]


def decoded(row, config):
    """Ids and log-probs of every place of a row of DistillKit's, by its compression file."""
    assert config["k"] == config["exact_k"] == K and config["exact_dtype"] == "float16" and not config["delta_encoding"]
    assert not config["residual_bins"] and not config["polynomial_terms"]
    bits = (config["d"] - 1).bit_length()
    ids = [unpacked(place, bits) for place in row["bytepacked_indices"]]
    assert {len(place) for place in row["bytepacked_indices"]} == {-(-K * bits // 8)}
    return ids, [list(struct.unpack(f"<{K}e", bytes(place))) for place in row["compressed_logprobs"]]


def test_distillkit_finds_each_target_before_its_token(traces, tmp_path):
    export(traces, "--format", "distillkit", "--keep", "all", "-o", tmp_path / "out.parquet")
    config = yaml.safe_load((tmp_path / "out.compression_config.yaml").read_text())
    lines = {tuple(line["prompt_ids"] + line["prefix_ids"] + line["token_ids"]): line for line in files(traces)[1]}
    rows = table(tmp_path / "out.parquet")
    assert len(rows) >= 12 and len({len(column) for row in rows for column in row.values()}) == 1
    for row in rows:
        n = max(i for i, label in enumerate(row["labels"]) if label >= 0) + 1
        line = lines.pop(tuple(row["input_ids"][:n]))
        begin = len(line["prompt_ids"])
        assert row["labels"] == [-100] * begin + row["input_ids"][begin:n] + [-100] * (len(row["labels"]) - n)
        ids, logprobs = decoded(row, config)
        first = n - len(line["token_ids"]) - 1
        assert all(about(line, i, ids[first + i], logprobs[first + i]) or True for i in range(len(line["token_ids"])))
        for i in (*range(first), n - 1, len(ids) - 1):  # of all others the token that follows is sure
            follows = row["input_ids"][min(i + 1, n - 1)]
            assert ids[i][0] == follows and logprobs[i][0] == 0 and max(logprobs[i][1:]) <= -40
            assert len(set(ids[i])) == K and max(ids[i]) < config["d"]


def test_distillkit_loads_the_file_as_tensors(traces, tmp_path):
    datasets, torch = pytest.importorskip("datasets"), pytest.importorskip("torch")
    (tmp_path / "data").mkdir()
    export(traces, "--format", "distillkit", "-o", tmp_path / "data" / "out.parquet")
    rows = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))["train"]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows.column_names}  # as its packed batches are
    shape = batch["input_ids"].shape
    assert all(of.shape[:2] == shape for of in batch.values()) and batch["compressed_logprobs"].shape[2] == 2 * K
    compression = pytest.importorskip("distillkit.compression")
    config = yaml.safe_load((tmp_path / "data" / "out.compression_config.yaml").read_text())
    compressor = compression.LogprobCompressor(config=compression.DistributionQuantizationConfig(**config))
    ids, logprobs = compressor.decompress_to_sparse(batch)
    want = [decoded(row, config) for row in rows]
    assert ids.tolist() == [of[0] for of in want] and logprobs.tolist() == [of[1] for of in want]


@pytest.mark.parametrize("format", TOOLS)
def test_counts_cards_and_overwriting_are_those_of_every_format(traces, tmp_path, format):
    out = tmp_path / name(format)
    told = export(traces, "--format", format, "--test-share", "0.4", "-o", out)
    plain = export(traces, "--test-share", "0.4", "-o", tmp_path / "plain.jsonl")
    assert told.splitlines()[0] == next(line for line in plain.splitlines() if line.startswith("rows"))
    test = out.with_suffix(f".test{out.suffix}")
    assert test.exists() and f"--format {format}" not in out.with_suffix(".md").read_text()
    assert f"The format is {format}" in out.with_suffix(".md").read_text()
    if format != "distillkit":
        assert [(r["id"], r["generation"]) for r in read(out)] == [
            (r["id"], r["generation"]) for r in read(tmp_path / "plain.jsonl")
        ]
    before = {f: f.read_bytes() for f in tmp_path.glob("out*")}
    assert "exists" in export(traces, "--format", format, "-o", out, expect=2)
    export(traces, "--format", format, "--test-share", "0.4", "-o", out, "--overwrite")
    assert {f: f.read_bytes() for f in tmp_path.glob("out*")} == before
    export(traces, "--format", format, "-o", out, "--overwrite")
    assert not test.exists()  # those rows train now
    out.with_suffix(".md").write_text("mine")
    assert "not a file that this command wrote" in export(
        traces, "--format", format, "-o", out, "--overwrite", expect=2
    )


def test_a_compression_file_of_somebody_elses_stays(traces, tmp_path):
    (tmp_path / "out.compression_config.yaml").write_text("d: 7\n")
    flags = ["--format", "distillkit", "-o", tmp_path / "out.parquet", "--overwrite"]
    assert "not a file that this command wrote" in export(traces, *flags, expect=2)
    assert (tmp_path / "out.compression_config.yaml").read_text() == "d: 7\n"


@pytest.mark.parametrize("end", ["kept", "scored", "weighed", "scored.kept"])
def test_what_was_made_of_a_jobs_file_finds_its_soft_targets(traces, tmp_path, end):
    shutil.copy(traces, tmp_path / f"traces.{end}.jsonl")
    export(tmp_path / f"traces.{end}.jsonl", "--format", "axolotl-kd", "-o", tmp_path / "out.jsonl")
    export(traces, "--format", "axolotl-kd", "-o", tmp_path / "want.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "want.jsonl").read_bytes()


def test_traces_in_memory_have_theirs(tmp_path):
    traces = rsd.generate(read_rows(bundled("problems.jsonl"))[:3], top_logprobs=K)
    made = rsd.export(traces, tmp_path / "out.parquet", format="distillkit", keep="all")
    config = yaml.safe_load((tmp_path / "out.compression_config.yaml").read_text())
    rows = table(tmp_path / "out.parquet")
    assert len(rows) == len(made.train) == 3
    for trace, row in zip(traces, rows, strict=True):
        ids, _ = decoded(row, config)
        first = len(trace.prompt_ids) - 1
        assert ids[first : first + len(trace.token_ids)] == trace.tokens["teacher_top_ids"].tolist()
    with pytest.raises(ValueError, match="student's tokenizer"):
        rsd.export(traces, format="axolotl-kd", keep="all")
    with pytest.raises(ValueError, match="rsd generate makes them with"):
        rsd.export(rsd.generate(read_rows(bundled("problems.jsonl"))[:1]), format="distillkit", keep="all")


def rewrite(traces, change):
    """The file of soft targets anew, each as `change` has it; None: it is gone."""
    soft = SoftFile(soft_file(traces))
    schema = schema_of(soft.k)
    made = [(key, change(i, soft.get(key))) for i, key in enumerate(list(soft.keys()))]
    with open(soft_file(traces), "wb") as file:
        file.write(head(schema))
        file.writelines(batch(schema, key, of) for key, of in made if of is not None)


@pytest.mark.parametrize("format", TOOLS)
def test_without_soft_targets_one_line_says_how_to_make_them(traces, tmp_path, format):
    def refused(*words):
        output = export(traces, "--format", format, "-o", tmp_path / name(format), expect=2)
        assert len(output.strip().splitlines()) == 1 and "rsd generate makes them with" in output
        assert all(word in output for word in words) and not list(tmp_path.glob("out*"))

    rewrite(traces, lambda i, soft: soft if i else None)
    refused("1 rows have none")
    soft_file(traces).write_bytes(b"nothing")
    refused("no soft targets")
    soft_file(traces).unlink()
    refused("traces.logprobs.arrow", "not there")


@pytest.mark.parametrize("format", TOOLS)
def test_soft_targets_of_other_tokens_are_left_out(traces, tmp_path, format):
    def change(i, soft):
        other = np.where(np.arange(len(soft.token_ids)) == 1, soft.token_ids + 1, soft.token_ids)
        return soft._replace(token_ids=other) if i < 2 else soft

    rewrite(traces, change)
    told = export(traces, "--format", format, "--keep", "all", "-o", tmp_path / name(format))
    assert "with soft targets of other tokens" in told


@pytest.mark.parametrize("format", AXOLOTL)
def test_a_text_that_axolotl_reads_as_other_tokens_is_left_out(tmp_path, format):
    write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:3])
    # The raw teacher spells its tags in pieces, which the student's tokenizer never would.
    without = ["--suppress", "<think>", "--suppress", "</think>", "--threshold", 0, "--top-logprobs", K]
    run(tmp_path / "in.jsonl", "-o", tmp_path / "raw.jsonl", *without)
    output = export(tmp_path / "raw.jsonl", "--keep", "all", "--format", format, expect=2)
    assert "3 with other ids as a text than were sampled" in output and len(output.strip().splitlines()) == 1
    export(tmp_path / "raw.jsonl", "--keep", "all", "--format", "distillkit")
    assert len(table(tmp_path / "raw.distillkit.parquet")) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-o", "out.jsonl"], "name a file that ends in .parquet"),
        (["--with-teacher-prompt"], "--with-teacher-prompt out"),
        (["--prefix-tokens", 5], "--format token-ids"),
    ],
)
def test_what_distillkit_has_no_place_for_is_refused(traces, tmp_path, flags, words):
    output = export(traces, "--format", "distillkit", *flags, expect=2)
    assert words in output and len(output.strip().splitlines()) == 1


def test_soft_targets_of_a_score_are_of_the_whole_completion(traces, tmp_path, tokenizer):
    soft_file(traces).unlink()
    command("score", traces, "--top-logprobs", K)
    export(tmp_path / "traces.scored.jsonl", "--format", "axolotl-kd", "-o", tmp_path / "out.jsonl")
    lines = by_key(files(traces)[1])
    for row in read(tmp_path / "out.jsonl"):
        line, (ids, logprobs) = lines[row["id"], row["generation"]], layout(row)
        whole = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        first, beginning = len(whole) - len(ids), len(line["prefix_ids"])
        n = beginning + len(line["token_ids"])
        assert whole[first : first + n] == line["prefix_ids"] + line["token_ids"] and len(ids) == n + 1
        for place in range(len(line["token_ids"])):
            about(line, place, ids[beginning + place], logprobs[beginning + place])


@pytest.mark.parametrize("format", TOOLS)
def test_the_file_of_soft_targets_alone_knows_the_tokens(traces, tmp_path, format):
    """As for traces that a score read; what was written and not sampled counts for a part of the prompt then."""
    export(traces, "--format", format, "--keep", "all", "-o", tmp_path / name(format))
    (tmp_path / "traces.tokens.jsonl").unlink()
    (tmp_path / "bare").mkdir()
    export(traces, "--format", format, "--keep", "all", "-o", tmp_path / "bare" / name(format))
    if format == "distillkit":
        rows, want = table(tmp_path / "bare" / name(format)), table(tmp_path / name(format))
        for a, b in zip(rows, want, strict=True):
            first = next(i for i, label in enumerate(b["labels"]) if label >= 0)
            assert a.pop("labels") == [*b["labels"][:first], -100, *b.pop("labels")[first + 1 :]]
        assert rows == want
    else:
        assert (tmp_path / "bare" / name(format)).read_bytes() == (tmp_path / name(format)).read_bytes()


def test_a_pushed_data_set_has_its_compression_file(traces, tmp_path):
    with Hub() as hub:
        result = push(hub, tmp_path, "--format", "distillkit", "-o", "out.parquet")
        assert result.returncode == 0, result.stderr
    assert hub.files.keys() == {"README.md", "data/train.parquet", "compression_config.yaml"}
    assert hub.files["compression_config.yaml"] == (tmp_path / "out.compression_config.yaml").read_bytes()


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_what_a_teacher_did_not_tell_is_filled_with_next_to_nothing(traces, tmp_path, share):
    known = {}

    def change(_, soft):
        gaps = np.random.default_rng(soft.token_ids).random(soft.teacher_ids.shape) < share
        ids, logprobs = np.where(gaps, -1, soft.teacher_ids), np.where(gaps, np.nan, soft.teacher_logprobs)
        known[tuple(soft.token_ids)] = [[i for i in place if i >= 0] for place in ids.tolist()]
        return soft._replace(teacher_ids=ids, teacher_logprobs=logprobs)

    rewrite(traces, change)
    export(traces, "--format", "axolotl-kd", "--keep", "all", "-o", tmp_path / "out.jsonl")
    export(traces, "--format", "distillkit", "--keep", "all", "-o", tmp_path / "packed.parquet")
    config = yaml.safe_load((tmp_path / "packed.compression_config.yaml").read_text())
    lines = by_key(files(traces)[1])
    packed = {tuple(row["input_ids"]): row for row in table(tmp_path / "packed.parquet")}
    for row in read(tmp_path / "out.jsonl"):
        line = lines[row["id"], row["generation"]]
        ids, logprobs = layout(row)
        whole = line["prompt_ids"] + line["prefix_ids"] + line["token_ids"]
        n = len(line["token_ids"])
        its = next(of for ids_, of in packed.items() if list(ids_[: len(whole)]) == whole)
        both = (ids[:n], logprobs[:n]), [of[len(whole) - n - 1 : len(whole) - 1] for of in decoded(its, config)]
        for ids_, logprobs_ in both:
            for told, token, place, values in zip(
                known[tuple(line["token_ids"])], line["token_ids"], ids_, logprobs_, strict=True
            ):
                want = told or [token]
                assert place[: len(want)] == want and len(set(place)) == K
                assert np.isfinite(values).all() and all(v <= -40 for v in values[len(want) :])
                assert told or values[0] == 0
