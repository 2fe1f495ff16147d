"""A setting is said once: whether a job may be resumed with another value of it, and what flag it has."""

from dataclasses import fields

import pytest
from click.testing import CliRunner
from conftest import read, write
from jobs import PROBLEMS, run

from rsd import DoctorConfig, GenerateConfig, ScoreConfig, TraceGenerator, WeighConfig
from rsd.cli import main
from rsd.dataset.config import ExportConfig
from rsd.settings import FREE, SAME, about, default_of, flag, kinds, settings

# Another value of each setting that shapes traces. A setting that is not in one of these tables fails a test.
SHAPES = {
    "teacher": "bundled-llama",
    "student": "bundled-teacher",
    "threshold": 0.02,
    "threshold_on": "sampled",
    "trials": 2,
    "accept_top_k": 3,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "max_new_tokens": 10,
    "seed": 1,
    "verify": "none",
    "answer_column": "level",
    "loop_check": False,
    "teacher_prompt": "own",
    "teacher_prompt_column": "level",
    "teacher_template": "{{ prompt }}",
    "completion_prefix": "So",
    "suppress": (3,),
    "teacher_load_in": "8bit",
    "student_load_in": "8bit",
    "score": True,
    "top_logprobs": 3,
    "system_prompt": "Be brief.",
    "chat_template_kwargs": {"enable_thinking": True},
    "dtype": "bfloat16",
}
# What these name a model's files have, or a server's model, and it is by that that models are told apart.
BY_FILES = {"teacher_revision", "student_revision", "teacher_model", "teacher_tokenizer"}
CHANGES = {
    "num_generations": 3,
    "until_correct": True,
    "want": 1,
    "max_fallback_rate": 0.5,
    "batch_size": 3,
    "block_size": 2,
    "teacher_api": "sglang",
    "teacher_device": "cpu",
    "student_device": "cpu",
    "compile": True,
    "prompt_column": "problem",
    "split": "test",
    "device": "cpu",
    "device_map": "auto",
    "teacher_device_map": "auto",
    "student_device_map": "sequential",
    "tensor_parallel": 2,
    "attn_implementation": "eager",
    "trust_remote_code": True,
    "allow_pickle": True,
    "skip_check": True,
}


def test_every_setting_is_classified():
    names = {kind: {f.name for f in settings(GenerateConfig) if about(f).resume == kind} for kind in (SAME, FREE)}
    assert names[SAME] | names[FREE] == {f.name for f in fields(GenerateConfig)}
    assert names == {SAME: {*SHAPES} | BY_FILES, FREE: {*CHANGES}}


BOUNDED = [
    (config, f.name)
    for config in (GenerateConfig, ExportConfig, WeighConfig, DoctorConfig)
    for f in settings(config)
    if about(f).whole
]


@pytest.mark.parametrize(("config", "name"), BOUNDED)
def test_a_whole_number_is_within_its_bounds(config, name):
    least, most = next(about(f).whole for f in settings(config) if f.name == name)
    more = {"want": {"num_generations": most}, "prefix_tokens": {"format": "token-ids"}}.get(name, {})
    for value in (least, most):
        assert getattr(config(**{name: value}, **more), name) == value
    for value in (least - 1, most + 1, 2**63, 10**30, 1.5, float("nan"), "3", True):
        with pytest.raises(ValueError, match=f"^{name} must be a whole number from {least} to {most}"):
            config(**{name: value}, **more)


def test_all_that_is_counted_has_bounds():
    unbounded = {f.name for f in settings(GenerateConfig) if kinds(GenerateConfig)[f.name].type is int} - {
        name for _, name in BOUNDED
    }
    assert unbounded == {"seed"}


@pytest.fixture(scope="module")
def identity():
    return TraceGenerator(GenerateConfig()).identity()


@pytest.mark.parametrize("name", SHAPES)
def test_another_value_of_what_shapes_traces_is_another_job(name, identity):
    assert TraceGenerator(GenerateConfig(**{name: SHAPES[name]})).identity() != identity


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_of_any_other_setting_is_the_same_job(name, identity):
    assert TraceGenerator(GenerateConfig(**{name: CHANGES[name]})).identity() == identity


def test_a_job_goes_on_with_other_free_settings_and_with_no_others(tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:4]), tmp_path / "t.jsonl"
    run(source, "-o", out, "--max-new-tokens", "8", "--limit", "2")
    run(source, "-o", out, "--max-new-tokens", "8", "--batch-size", "3", "--num-generations", "2", "--skip-check")
    assert len(read(out)) == 8
    said = run(source, "-o", out, "--max-new-tokens", "8", "--threshold", "0.5", expect=2).output
    assert "threshold (there 0.01, now 0.5)" in said


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("doctor", DoctorConfig),
        ("generate", GenerateConfig),
        ("score", ScoreConfig),
        ("export", ExportConfig),
        ("weigh", WeighConfig),
    ],
)
def test_the_command_line_has_a_flag_for_every_setting_and_tells_its_default(command, config):
    said = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    assert {f.name for f in settings(config)} == {f.name for f in fields(config)}
    for one in settings(config):
        assert f"--{flag(one.name)} " in said, one.name
        default = default_of(one)
        if default and default is not True:
            shown = f"{default:g}" if isinstance(default, float) else default
            assert f"[{shown}]" in said, one.name
        assert about(one).help.split()[0] in said
