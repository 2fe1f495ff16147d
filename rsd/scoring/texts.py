"""Traces as the student's tokens: which these are, and where in the text each begins."""

import re

import numpy as np

from rsd.models.source import Source
from rsd.scoring.responses import Response
from rsd.traces.pieces import token_starts

PLAIN = re.compile(r"(?:[^\W_]| )+", re.ASCII)


class Texts:
    """How one student reads texts."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._plain: dict[int, bool] = {}
        self.known = np.isin(np.arange(source.width), list(source.tokenizer.get_vocab().values()))

    def tokens(self, response: Response) -> tuple[str, list[int], list[int]]:
        """The trace's text, its ids without the final EOS, and the character at which each token begins.

        Raises:
            ValueError: there are none, or too many, or they do not spell the text.
        """
        text, given = response.text, response.token_ids
        if given is not None:
            ids = self.without_eos(given)
            if (unknown := self.unknown(ids)) is not None:
                raise ValueError(f"token_ids holds {unknown}, which the student's tokenizer does not know")
            decoded = self.decode(ids)
            if text and decoded != text:
                raise ValueError("token_ids do not spell the row's text with the student's tokenizer")
            text = decoded
        else:
            ids = []
        if not text.strip():
            raise ValueError("the trace is empty")
        self.source.check_length(text, "the trace has")
        encoded = self.source.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if ids and ids != encoded["input_ids"]:
            return text, ids, self.starts(ids)
        ids = self.without_eos(encoded["input_ids"])
        starts = np.maximum.accumulate([0, *(a for a, _ in encoded["offset_mapping"][1:])])
        if len(ids) < len(starts):
            text = text[: starts[len(ids)]]
        if not ids:
            raise ValueError("the trace has no tokens")
        return text, ids, starts[: len(ids)].tolist()

    def without_eos(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self.source.eos else list(ids)

    def unknown(self, ids: list[int]) -> int | None:
        """The first of these ids that the student's tokenizer does not know."""
        return next((i for i in ids if not (0 <= i < self.source.width and self.known[i])), None)

    def sampled(self, response: Response, text: str) -> list[int] | None:
        """The ids that were sampled, the final EOS included, where the sidecar has them and they spell this text."""
        if response.tokens is None:
            return None
        ids: list[int] = response.tokens["token_ids"].tolist()
        shown = self.without_eos(ids)
        return ids if shown and self.unknown(shown) is None and self.decode(shown) == text else None

    def plain(self, token: int) -> bool:
        """Whether a token is words, numbers and spaces alone, by itself and so with any others: no step ends there."""
        if token not in self._plain:
            self._plain[token] = PLAIN.fullmatch(self.decode([token])) is not None
        return self._plain[token]

    def decode(self, ids: list[int]) -> str:
        return str(self.source.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def starts(self, ids: list[int]) -> list[int]:
        return token_starts(ids, self.decode, self.source.tokenizer.encode("\ufffd", add_special_tokens=False))
