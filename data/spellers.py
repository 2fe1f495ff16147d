"""The tokenizers of the bundled models: a byte-level one, and one of SentencePiece's kind for the other teacher."""

import json
import random
from pathlib import Path

from problems import problems, terse, wordy
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SEED = 20250922
SHARED_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
STUDENT_SPECIALS = ["<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]
LLAMA_TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# Words, single digits, punctuation, white space: what Qwen's tokenizer splits at.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE (at most 1,024 tokens) over both styles; the think tags take no part in it."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024 - len(SHARED_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(tokenizer_texts("tokenizer", 5000), trainer)
    return tok


def train_llama_tokenizer() -> Tokenizer:
    """A BPE of SentencePiece's kind (at most 768 tokens): blanks are part of words, single bytes for all else."""
    # Words with what follows them, single digits, runs of blanks or line breaks: merges stay within them.
    split = r"▁?\p{L}+[,.:]?|▁+|\p{N}|\n+|[^▁\s\p{L}\p{N}]+"
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = pre_tokenizers.Split(Regex(split), behavior="isolated")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=[*LLAMA_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tok.train_from_iterator(tokenizer_texts("llama tokenizer", 2000), trainer)
    plain = json.loads(tok.to_str())  # the bytes are no special tokens: a text may hold them
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] in LLAMA_SPECIALS]
    plain["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(plain))


def tokenizer_texts(seed: str, count: int) -> list[str]:
    """Problems and both styles, role names, and pieces that spell the tags."""
    r, stream = random.Random(SEED), problems(f"{SEED} {seed}", held_out=False)
    texts = ["system\nuser\nassistant\nthink\n</"] * 100
    for _ in range(count):
        p = next(stream)
        texts += [p.text, *wordy(p, r), *terse(p)]
    return texts


def save_llama_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tok = PreTrainedTokenizerFast(
        tokenizer_object=train_llama_tokenizer(),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tok.chat_template = LLAMA_TEMPLATE
    tok.save_pretrained(folder)
    return tok


def save_tokenizer(folder: Path, base: Tokenizer, specials: list[str]) -> PreTrainedTokenizerFast:
    tok = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(base.to_str()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    # Fixed ids whatever the role of a token: first the shared specials, then the student's own.
    tok.chat_template = CHAT_TEMPLATE
    tok.add_tokens([t for t in specials if t in STUDENT_SPECIALS])
    tok.save_pretrained(folder)
    return tok
