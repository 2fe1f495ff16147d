"""`rsd tailor` on real parts: a vocabulary of 150,000 tokens, and a real student that is its own teacher."""

import pytest
from real import smollm2, tokenizer
from transformers import AutoModelForCausalLM, Qwen3Config

import rsd
from rsd.tailoring.tailor import reference

pytestmark = pytest.mark.real
RAW = [
    {
        "id": "pens",
        "prompt": "Tom has 34 pens and gives 12 to Ana. How many has he now?",
        "completion": "<think>\nHm, 数えよう 🧮: 34 - 12 = 22.\n</think>\n\nHe has \\boxed{22}.",
        "answer": "22",
    },
    {"id": "sum", "prompt": "6 + 7?", "completion": "Six and seven make 13. So \\boxed{13}.", "answer": "13"},
]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder, spelled = tmp_path_factory.mktemp("qwen"), tokenizer("qwen3")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=151_936, max_position_embeddings=512, eos_token_id=None, **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    spelled.save_pretrained(folder)
    return str(folder)


def test_a_real_vocabulary_reads_references_and_is_cut_to_its_context(qwen):
    long = {"id": "long", "prompt": "6 + 7?", "completion": "数 is 7. " * 400 + "So 13.", "answer": "13"}
    made = {
        size: {trace.id: trace for trace in rsd.tailor([*RAW, long], student=qwen, max_new_tokens=24, batch_size=size)}
        for size in (1, 3)
    }
    for row in RAW:
        trace = made[3][row["id"]]
        assert trace.error is None and reference(row["completion"]) in trace.teacher_messages[-1]["content"]
        assert trace.row()["raw_is_correct"] is True and trace.row()["raw_local_naturalness"] < 0
    assert made[3]["long"].error is None and made[3]["long"].row()["steps_left_out"] > 200
    for name, trace in made[1].items():
        assert trace.token_ids.tolist() == made[3][name].token_ids.tolist()


def test_a_real_student_tailors_its_data_by_itself():
    made = rsd.tailor(RAW, student=str(smollm2()), max_new_tokens=24, skip_check=True, temperature=0.7)
    for trace in made:
        row = trace.row()
        assert row["error"] is None and row["num_tokens"] and row["low_prob_share"] < 0.1
        assert row["raw_is_correct"] is True and row["raw_low_prob_share"] > row["low_prob_share"]
