"""Tokens in bytes: what a token of a tokenizer spells, and how a tokenizer spells bytes.

Two kinds of tokenizers give every token exact bytes: byte-level ones (GPT-2, Llama 3, Qwen) and those of
SentencePiece's kind with single bytes to fall back on (Llama 2, Mistral, Gemma). Text never comes between:
a token may be half a character.
"""

import copy
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

BLANK = "\u2581"  # what stands for a space in SentencePiece's vocabularies
# The bytes of every assigned character that controls nothing; a tokenizer may lack the others.
NEEDED = frozenset([*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1), 0xF3])


def _byte_alphabet() -> dict[int, str]:
    """The byte that each character of byte-level vocabularies stands for (GPT-2's table), for `str.translate`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    none = dict.fromkeys(range(256), "\uffff")  # no Latin-1
    return none | {b: chr(b) for b in printable} | {256 + i: chr(b) for i, b in enumerate(others)}


class Speller:
    """One tokenizer, between ids and bytes.

    Added tokens that the tokenizer's model has as well and that control nothing (Gemma's line breaks, tabs and
    HTML tags) are ordinary text: a tokenizer cuts a text at them first, and that is all.

    Args:
        words: other added tokens that are read in a text, as the tokenizer itself reads them; the rest is not.
        vocab: the tokenizer's map from tokens to ids, where it is at hand (it takes a while to make).

    bytes: of all ids but the other added tokens'. single: the ids that stand for single bytes.

    Raises:
        ValueError: its tokens have no exact bytes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        role: str,
        words: Mapping[str, int] | None = None,
        *,
        vocab: Mapping[str, int] | None = None,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"the {role}'s tokenizer is not a fast one, whose tokens could be read as bytes")
        model = backend.model
        splitter, decoder = (
            part.__getstate__().decode() if part else "" for part in (backend.pre_tokenizer, backend.decoder)
        )
        self.byte_level = "ByteLevel" in splitter + decoder
        kind = type(model).__name__
        blanks = BLANK in decoder or "Metaspace" in decoder
        if (
            kind not in ("BPE", "Unigram")
            or (kind == "BPE" and (model.continuing_subword_prefix or model.end_of_word_suffix))
            or not (self.byte_level or blanks)
        ):
            raise ValueError(
                f"the {role}'s tokenizer ({kind}) gives its tokens no exact bytes: with another tokenizer on "
                "the other side, choose a model with a byte-level one, or one of SentencePiece's kind"
            )
        # SentencePiece's kind cuts at blanks, if at all.
        self.cuts_at_blanks = '"Metaspace"' in splitter and '"split":true' in splitter
        self.splitter = copy.deepcopy(backend.pre_tokenizer)
        if '"add_prefix_space":true' in splitter:
            self.splitter.__setstate__(splitter.replace('"add_prefix_space":true', '"add_prefix_space":false').encode())
        self.piece = lru_cache(1 << 16)(lambda piece: [token.id for token in model.tokenize(piece)])
        vocab = tokenizer.get_vocab() if vocab is None else vocab
        added = tokenizer.added_tokens_decoder
        ordinary = {t.content: i for i, t in added.items() if not t.special and model.token_to_id(t.content) == i}
        # A run of `BLANK` is what the model makes of spaces, not a word that a text could hold.
        words = {t: i for t, i in (words or {}).items() if t not in ordinary}
        words |= {t: i for t, i in ordinary.items() if self.byte_level or BLANK not in t}
        self.words = words
        self.lengths = sorted({len(word) for word in words}, reverse=True)
        others = {i for i, t in added.items() if t.content not in ordinary and t.content not in words}
        whole = {i for i in added if i not in others}  # whose text is what it says
        self.bytes = self._bytes({t: i for t, i in vocab.items() if i not in others}, whole)
        alone = [(i, b) for i, b in self.bytes.items() if len(b) == 1]
        self.single = {b[0]: i for i, b in sorted(alone, reverse=True)}
        if not self.byte_level:  # the bytes to fall back on, not the letters
            self.single |= {b: vocab[f"<0x{b:02X}>"] for b in range(256) if f"<0x{b:02X}>" in vocab}

        # Where a word may begin, and what is no text (nor what stands for a space, nor what this tokenizer lacks).
        begins = "".join(sorted({re.escape(word[0]) for word in words}))
        lone = "" if self.byte_level else BLANK
        lone += "".join(re.escape(chr(b)) for b in range(128) if b not in self.single)
        self.cut = re.compile(f"([\udc80-\udcff{lone}]+)" + (f"|[{begins}]" if begins else ""))

    def _bytes(self, vocab: Mapping[str, int], whole: Collection[int]) -> dict[int, bytes]:
        """The bytes of each token, by id; those in `whole` that are words stand for their text."""
        alphabet = _byte_alphabet()
        found: dict[int, bytes] = {}
        for token, i in vocab.items():
            if i in whole and token in self.words:
                found[i] = token.encode()
            elif self.byte_level:
                with suppress(UnicodeEncodeError):
                    found[i] = token.translate(alphabet).encode("latin-1")
            elif token.startswith("<0x") and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                found[i] = bytes([int(token[3:5], 16)])
            else:
                found[i] = token.replace(BLANK, " ").encode("utf-8", "surrogatepass")
        return found

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The id that spells some bytes; of several, the one that encoding gives."""
        fallback = set() if self.byte_level else set(self.single.values())
        ids = {self.bytes[i]: i for i in sorted(fallback, reverse=True)}
        for i in sorted(self.bytes, reverse=True):
            if i not in fallback:
                ids[self.bytes[i]] = i
        return ids

    def encode(self, data: bytes) -> list[int]:
        """The ids of some bytes as this tokenizer encodes text, without control tokens and a blank in front.

        What is no text (half a character, say) is spelled in single bytes; bytes that it lacks are left out.
        """
        ids: list[int] = []
        text = data.decode("utf-8", "surrogateescape")
        at = 0
        for cut in self.cut.finditer(text):
            start, end = cut.span()
            if start < at:  # within a word
                continue
            if cut[1]:
                new = self._singly(cut[1].encode("utf-8", "surrogateescape"))
            elif length := next((n for n in self.lengths if text[start : start + n] in self.words), 0):
                end = start + length
                new = [self.words[text[start:end]]]
            else:
                continue
            ids += self._plain(text[at:start]) + new
            at = end
        return ids + self._plain(text[at:])

    def _plain(self, text: str) -> list[int]:
        """The ids of a text that holds none of `words`; in single bytes, should they not spell it exactly."""
        raw = text.encode()
        spelled = [i for piece in self._pieces(text) for i in self.piece(piece)]
        exact = b"".join(self.bytes.get(i, b"") for i in spelled) == raw
        return spelled if exact else self._singly(raw)

    def _singly(self, raw: bytes) -> list[int]:
        return [self.single[b] for b in raw if b in self.single]

    def _pieces(self, text: str) -> list[str]:
        if self.byte_level:
            return [piece for piece, _ in self.splitter.pre_tokenize_str(text)]
        text = text.replace(" ", BLANK)
        return re.findall(f"{BLANK}?[^{BLANK}]+|{BLANK}", text) if self.cuts_at_blanks else [text]

    def cuts(self, before: bytes, after: bytes) -> bool:
        """Whether this tokenizer cuts a text between these two before it looks for tokens."""
        if not self.byte_level:
            return after[:1] == b" " != before[-1:]
        begins = len(before.decode("utf-8", "replace"))
        pieces = self.splitter.pre_tokenize_str((before + after).decode("utf-8", "replace"))
        return any(start == begins for _, (start, _) in pieces)
