"""Pairs of different tokenizers: bytes are exchanged, the teacher reads what it would have written."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import decode, fits, full_logprobs, random_model, table_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.models.bundled import bundled
from rsd.pair.meeting import meet
from rsd.pair.vocabulary import TeacherContext
from rsd.traces.readers import read_rows

CORPUS = [
    "The trays hold 12 rolls, and 345 of 6789 are left. Therefore x = 12.5 and y2 > 30; so f(x) = \\frac{1}{2}.",
    "def solve(n):\n    return [i for i in range(n)]\n\n\n  # two  blanks",
    "Größe, naïve café; 数学の問題を考える。中文测试 𝔸𝔹ℂ ∑∫ 😀👍🏽 don't we'll they're",
] * 20
GPT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"'s|'t|'re|'ve|'m|'ll|'d|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ADDED = {"byte-level": ["<|im_end|>", "<think>", "</think>"], "llama-2": ["<unk>", "<s>", "</s>"]}


def byte_level(split: str, size: int, *, normalizer=None) -> Tokenizer:
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(split), behavior="isolated")
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    if normalizer:
        tok.normalizer = normalizer
    tok.add_special_tokens(ADDED["byte-level"][:1])
    tok.add_tokens(ADDED["byte-level"][1:])
    return tok


def llama_2(size: int) -> Tokenizer:
    """With a blank put in front of every text, and single bytes to fall back on."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")  # for its training alone
    strip = decoders.Strip(" ", 1, 0)
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    special = [*ADDED["llama-2"], *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, limit_alphabet=60, show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    return without_splitter(tok, ADDED["llama-2"])


def without_splitter(tok: Tokenizer, added: list[str]) -> Tokenizer:
    state = json.loads(tok.to_str())
    state["pre_tokenizer"] = None
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in added]
    return Tokenizer.from_str(json.dumps(state))


TOKENIZERS = {
    "qwen": lambda: byte_level(QWEN, 500, normalizer=normalizers.NFC()),
    "llama-3": lambda: byte_level(GPT, 620),
    "llama-2": lambda: llama_2(700),
}
PAIRS = [("llama-2", "qwen"), ("llama-3", "qwen"), ("qwen", "llama-2"), ("qwen", "llama-3")]
made: dict[str, PreTrainedTokenizerFast] = {}


def tokenizer(kind):
    if kind not in made:
        made[kind] = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS[kind]())
    return made[kind]


def met(teacher, student):
    ends = {"llama-2": "</s>"}
    eos = {kind: tokenizer(kind).convert_tokens_to_ids(ends.get(kind, "<|im_end|>")) for kind in (teacher, student)}
    return meet(
        tokenizer(teacher),
        tokenizer(student),
        teacher_width=720,
        student_width=720,
        teacher_eos=[eos[teacher]],
        student_eos=eos[student],
    )


PLAIN = " the|Therefore|12|345|6789| |  |\n|\n\n|\t|don't|, |. |=|\\frac{1}{2}|<|/|s>|</s>|<|im_end|>|x".split("|")
WORDS = st.sampled_from([*PLAIN, "é", "数学", "考える", "𝔸", "𝔹ℂ", "😀", "👍🏽", "\u200d"])
TEXTS = st.one_of(st.lists(WORDS, max_size=20).map("".join), st.text(max_size=40))


def spelled(vocabulary, ids):
    """The bytes of the teacher's ids, control tokens by their text."""
    teacher = vocabulary.spellers[0]
    return b"".join(teacher.bytes.get(i, f"<{i}>".encode()) for i in ids)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_the_teacher_reads_text_as_it_would_write_it(pair, text):
    vocabulary = met(*pair)
    reading = vocabulary.read(TeacherContext(), vocabulary.spellers[1].encode(text.encode()))
    assert spelled(vocabulary, reading.ids) == text.encode()
    # Control tokens are none when a text spells them; words such as <think> are what the teacher takes them for.
    control = {i for i, token in tokenizer(pair[0]).added_tokens_decoder.items() if token.special}
    assert not set(reading.ids) & control


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_ids_are_those_of_the_teachers_own_tokenizer(pair):
    vocabulary = met(*pair)
    teacher = tokenizer(pair[0])
    for text in set(CORPUS):
        anchored = teacher.encode("x\n" + text, add_special_tokens=False)
        start = len(teacher.encode("x\n", add_special_tokens=False))
        ids = vocabulary.for_teacher(vocabulary.spellers[1].encode(("\n" + text).encode()))
        assert anchored[start:] == ids[1:] and teacher.decode(ids) in ("\n" + text, text)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@given(ids=st.lists(st.integers(0, 400), max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_tokens_can_be_read(pair, ids):
    # Halves of characters, bytes that no text has, control tokens in the midst of all that.
    vocabulary = met(*pair)
    reads, writes = vocabulary.spellers
    added = {i: t for t, i in tokenizer(pair[1]).get_added_vocab().items()}
    want = b"".join(writes.bytes[i] if i in writes.bytes else added[i].encode() for i in ids)
    control = {i: t for t, i in tokenizer(pair[0]).get_added_vocab().items()}
    read = vocabulary.for_teacher(ids)
    ends = {vocabulary.teacher_id(i): added[i] for i in ids if i in added and vocabulary.shared[i]}
    assert b"".join(reads.bytes[i] if i in reads.bytes else ends.get(i, control[i]).encode() for i in read) == want


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_what_is_proposed_has_the_same_bytes(pair):
    vocabulary = met(*pair)
    reads, writes = vocabulary.spellers
    plain = [s for s in vocabulary.shared.nonzero()[:, 0].tolist() if s in writes.bytes]
    assert len(plain) >= 256
    for s in plain:
        assert reads.bytes[vocabulary.teacher_id(s)] == writes.bytes[s]
    spelled = [writes.bytes[s] for s in plain]
    assert len(set(spelled)) == len(spelled)  # one token of the student for some bytes
    for t, s in vocabulary.also:
        assert s not in writes.bytes or reads.bytes[t] == writes.bytes[s]
    assert "different tokenizers" in vocabulary.describe()


def test_each_ends_with_the_end_of_the_other():
    vocabulary = met("llama-2", "qwen")
    end = tokenizer("qwen").convert_tokens_to_ids("<|im_end|>")
    assert vocabulary.teacher_id(end) == tokenizer("llama-2").convert_tokens_to_ids("</s>") and vocabulary.shared[end]
    assert end not in vocabulary.student_to_teacher
    think = tokenizer("qwen").convert_tokens_to_ids("</think>")
    assert tokenizer("llama-2").decode(list(vocabulary.student_to_teacher[think])).strip() == "</think>"


def tiny(tokens: list[str], merges: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of these tokens, no splitter: everything merges."""
    tok = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split("+")) for m in merges.split()])
    )
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tok)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("rows", [3, 20])
def test_the_tail_is_read_anew_where_it_changes(rows, kind):
    # The student writes a, b, c and pairs of them; the teacher has other pairs and triples, so that most of what
    # is committed changes its last ids.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    theirs = tiny([*alphabet, "ab", "abc", "cab", "bb", "aa", "aab"], "a+b ab+c c+ab b+b a+a aa+b")
    ours = tiny(["a", "b", "c", "bc", "ca", "cc", "ac"], "b+c c+a c+c a+c")
    vocabulary = meet(theirs, ours, teacher_width=262, student_width=8)
    teacher, student = random_model(kind, vocab=262, seed=1, layers=3), random_model(vocab=8, seed=2)
    prompts = [[0], [1, 2, 3], [4, 4, 0, 5], [6, 2], [3, 3, 3]] * 4
    kwargs = {"vocabulary": vocabulary, "acceptance": Acceptance(threshold=0.05), "max_new_tokens": 30}
    kwargs["sampling"] = Sampling(temperature=1.0, top_p=1.0, top_k=0)
    want = decode(teacher, student, prompts, rows=1, block=1, **kwargs)
    changed = 0
    for i, f in want.items():
        tokens = f.token_ids.tolist()
        assert len(tokens) == 30
        reading = TeacherContext(vocabulary.for_teacher(prompts[i]))
        for t, token in enumerate(tokens):
            if vocabulary.shared[token]:
                logprob = full_logprobs(teacher, reading.ids, [vocabulary.teacher_id(token)])[0]
                assert f.teacher_logprobs[t] == pytest.approx(logprob, abs=1e-4)
            before, edit = list(reading.ids), vocabulary.edit(reading, token)
            changed += edit.keep < len(reading.ids)
            reading.apply(edit)
        with torch.inference_mode():
            q = teacher(torch.tensor([before])).logits[0, -1].softmax(-1)
        known = [vocabulary.teacher_id(s) for s in vocabulary.shared.nonzero()[:, 0].tolist()]
        known += [*vocabulary.teacher_to_student]
        assert 0 <= f.left_out[-1] <= 1 - float(q[known].sum()) + 1e-4  # less in the midst of a token
    assert changed > 30
    for block in (1, 2, 5):
        made = decode(teacher, student, prompts, rows=rows, block=block, **kwargs)
        for i, f in want.items():
            assert made[i].token_ids.tolist() == f.token_ids.tolist()
            np.testing.assert_allclose(made[i].teacher_logprobs, f.teacher_logprobs, atol=1e-4)
            np.testing.assert_allclose(made[i].left_out, f.left_out, atol=1e-4)


@pytest.mark.parametrize(("block", "rows"), [(1, 100), (4, 100), (4, 7)])
def test_tokens_that_are_several_of_the_students_are_proposed_one_after_the_other(block, rows):
    # A teacher that says the same whatever came before, so that its text is independent draws: the student's tokens
    # follow the chances of all its texts, whichever of its tokens they were parts of.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    theirs = tiny([*alphabet, "ab", "abc", "ca", "cab"], "a+b ab+c c+a ca+b")
    ours = tiny(["a", "b", "c", "bc"], "b+c")
    vocabulary = meet(theirs, ours, teacher_width=260, student_width=4)
    by_text = {"a": 0.2, "b": 0.1, "c": 0.15, "ab": 0.25, "abc": 0.15, "cab": 0.15}
    chances = torch.zeros(260)
    chances[[theirs.convert_tokens_to_ids(t) for t in by_text]] = torch.tensor(list(by_text.values()))
    teacher = table_model(chances.clamp_min(1e-9).log().repeat(260, 1))
    student, sampling = random_model(vocab=4, seed=2), Sampling(temperature=1.0, top_p=0.999, top_k=6)
    made = decode(
        teacher,
        student,
        [[0]] * (2000 if rows > 7 else 300),
        vocabulary=vocabulary,
        sampling=sampling,
        acceptance=Acceptance(threshold=0),
        rows=rows,
        block=block,
        max_new_tokens=4,
    )
    want: dict[tuple[int, ...], float] = {}
    spelled = {t: ours.encode(t, add_special_tokens=False) for t in by_text}
    for text in itertools.product(by_text, repeat=4):
        ids = tuple(i for t in text for i in spelled[t])[:4]
        want[ids] = want.get(ids, 0.0) + math.prod(by_text[t] for t in text)
    outcomes = sorted(want)
    seen = np.array([outcomes.index(tuple(f.token_ids.tolist())) for f in made.values()])
    assert len(outcomes) > 30 and fits(seen, np.array([want[o] for o in outcomes]))
    assert all((f.left_out < 1e-5).all() and (f.accepted > 0.999).all() for f in made.values())


def gemma() -> PreTrainedTokenizerFast:
    """Of SentencePiece's kind, with runs of blanks and line breaks among its added tokens, as Gemma's."""
    runs = ["\n", "\n\n", "▁▁", "▁▁▁"]
    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *runs, "▁", *"itshen.5=+y"]
    merges = [("▁", "▁"), ("▁▁", "▁")]
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens)}, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tok = Tokenizer(model)
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tok.add_special_tokens(["<unk>"])
    tok.add_tokens([AddedToken(run, normalized=False) for run in runs])
    return PreTrainedTokenizerFast(tokenizer_object=tok)


@pytest.mark.parametrize("text", ["then  it is 5.", "\n   y += 1\n\n  5", "it ▁▁ is"])
def test_added_tokens_that_are_blanks_are_text(text):
    theirs, ours = gemma(), tokenizer("qwen")
    vocabulary = meet(theirs, ours, teacher_width=300, student_width=720)
    read = vocabulary.for_teacher(vocabulary.spellers[1].encode(text.encode()))
    assert spelled(vocabulary, read) == text.encode()
    assert "▁▁" in text or read == theirs.encode(text, add_special_tokens=False)
    vocabulary = meet(ours, theirs, teacher_width=720, student_width=300)
    read = vocabulary.for_teacher(vocabulary.spellers[1].encode(text.encode()))
    assert read == vocabulary.spellers[0].encode(text.encode())
    assert not vocabulary.student_to_teacher.keys() & {*theirs.convert_tokens_to_ids(["▁▁", "\n\n"])}


def test_words_that_the_teacher_alone_has_as_tokens():
    # The bundled pair the other way round: the student spells `</think>`, the teacher reads and says its token.
    generator = TraceGenerator(GenerateConfig(teacher="bundled-student", student="bundled-teacher", threshold=0))
    pair = generator.find()
    teacher, student, vocabulary = pair.teacher, pair.student, pair.vocabulary
    assert vocabulary.describe().startswith("one base, other added tokens, 760 shared tokens")
    text = "<think>\n1+2=3.\n</think>\n\n\\boxed{3}"
    ids = student.tokenizer.encode(text)
    assert vocabulary.for_teacher(ids) == teacher.tokenizer.encode(text) != ids
    close = teacher.tokenizer.convert_tokens_to_ids("</think>")
    assert vocabulary.teacher_to_student[close] == tuple(student.tokenizer.encode("</think>"))
    made = generator.run(read_rows(bundled("problems.jsonl"))[:8])
    alone = TraceGenerator(GenerateConfig(threshold=1)).run(read_rows(bundled("problems.jsonl"))[:8])
    for t, same in zip(made, alone, strict=True):  # raw traces of the teacher, other draws of the same form
        assert t.text.startswith("<think>\n") and t.text.count("</think>") == 1
        assert t.from_teacher.all() and abs(len(t.text) - len(same.text)) < 60
        assert float(t.left_out.max()) < 1e-3
