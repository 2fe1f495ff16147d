"""Tokens in bytes: what a token of a tokenizer spells, and how a tokenizer spells bytes.

Two kinds of tokenizers give every token exact bytes: byte-level ones (GPT-2, Llama 3, Qwen) and those of
SentencePiece's kind with single bytes to fall back on (Llama 2, Mistral, Gemma). Text never comes between:
a token may be half a character.
"""

import json
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

BLANK = "\u2581"  # what stands for a space in SentencePiece's vocabularies


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Speller:
    """One tokenizer, between ids and bytes.

    Args:
        words: added tokens that are read in a text, as the tokenizer itself reads them; others are not.

    bytes: of all ids but the added tokens'. single: the ids that stand for single bytes.

    Raises:
        ValueError: its tokens have no exact bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, role: str, words: Mapping[str, int] | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"the {role}'s tokenizer is not a fast one, whose tokens could be read as bytes")
        state = json.loads(backend.to_str())
        splitter, decoder = (json.dumps(state[part], ensure_ascii=False) for part in ("pre_tokenizer", "decoder"))
        self.byte_level = "ByteLevel" in splitter + decoder
        model = state["model"]
        marks = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
        blanks = BLANK in decoder or "Metaspace" in decoder
        if model["type"] not in ("BPE", "Unigram") or marks or not (self.byte_level or blanks):
            raise ValueError(
                f"the {role}'s tokenizer ({model['type']}) gives its tokens no exact bytes: with another tokenizer on "
                "the other side, choose a model with a byte-level one, or one of SentencePiece's kind"
            )
        # SentencePiece's kind cuts at blanks, if at all.
        self.cuts_at_blanks = '"Metaspace"' in splitter and '"split": true' in splitter
        if '"add_prefix_space": true' in splitter:
            splitter = splitter.replace('"add_prefix_space": true', '"add_prefix_space": false')
            backend = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": json.loads(splitter)}))
        self.splitter = backend.pre_tokenizer
        self.piece = lru_cache(1 << 16)(lambda piece: [token.id for token in backend.model.tokenize(piece)])
        self.words = words or {}
        longest_first = sorted(map(re.escape, self.words), key=len, reverse=True)
        self.cut = re.compile("|".join([*longest_first, "[\udc80-\udcff]+"]))  # a word, or what is no text
        added = set(tokenizer.get_added_vocab().values()) - set(self.words.values())
        alphabet = _byte_alphabet()
        self.bytes: dict[int, bytes] = {}
        for token, i in tokenizer.get_vocab().items():
            if i in added:
                continue
            if token in self.words:
                self.bytes[i] = token.encode()
            elif self.byte_level:
                if all(c in alphabet for c in token):
                    self.bytes[i] = bytes(alphabet[c] for c in token)
            elif single := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
                self.bytes[i] = bytes([int(single[1], 16)])
            else:
                self.bytes[i] = token.replace(BLANK, " ").encode("utf-8", "surrogatepass")
        self.single = {b[0]: i for i, b in sorted(self.bytes.items(), reverse=True) if len(b) == 1}
        if not self.byte_level:  # the bytes to fall back on, not the letters
            vocab = tokenizer.get_vocab()
            self.single |= {b: vocab[f"<0x{b:02X}>"] for b in range(256) if f"<0x{b:02X}>" in vocab}

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The id that spells some bytes; of several, the one that encoding gives."""
        ids: dict[bytes, int] = {}
        fallback = set() if self.byte_level else set(self.single.values())
        for i, spelled in sorted(self.bytes.items(), key=lambda item: (item[0] in fallback, item[0])):
            ids.setdefault(spelled, i)
        return ids

    def encode(self, data: bytes) -> list[int]:
        """The ids of some bytes as this tokenizer encodes text, without control tokens and a blank in front.

        What is no text (half a character, say) is spelled in single bytes.
        """
        ids: list[int] = []
        text = data.decode("utf-8", "surrogateescape")
        at = 0
        for cut in [*self.cut.finditer(text), None]:
            ids += self._plain(text[at : cut.start() if cut else len(text)])
            if cut:
                word = self.words.get(cut[0])
                ids += [self.single[b] for b in cut[0].encode("utf-8", "surrogateescape")] if word is None else [word]
                at = cut.end()
        return ids

    def _plain(self, text: str) -> list[int]:
        """The ids of a text that holds none of `words`; in single bytes, should they not spell it exactly."""
        raw = text.encode()
        spelled = [i for piece in self._pieces(text) for i in self.piece(piece)]
        exact = b"".join(self.bytes.get(i, b"") for i in spelled) == raw
        return spelled if exact else [self.single[b] for b in raw]

    def _pieces(self, text: str) -> list[str]:
        if self.byte_level:
            return [piece for piece, _ in self.splitter.pre_tokenize_str(text)]
        text = text.replace(" ", BLANK)
        return re.findall(f"{BLANK}?[^{BLANK}]+|{BLANK}", text) if self.cuts_at_blanks else [text]
