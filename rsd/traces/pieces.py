"""Where in a text each of its tokens begins."""

from collections.abc import Callable, Sequence


def token_starts(
    ids: Sequence[int], decode: Callable[[list[int]], str], replacement: Sequence[int] | None = None
) -> list[int]:
    """The character at which each token begins, by decoding a token with the one before it.

    A character whose bytes are split over several tokens is the first one of all but the first.

    Args:
        decode: the text of ids.
        replacement: the ids of "\\ufffd", which a text may hold: it is also what stands for bytes that are none yet.
    """
    ids, wanted = list(ids), None if replacement is None else list(replacement)
    starts, done, begin, end = [], 0, 0, 0  # the text of ids[:end] has `done` characters
    before, partial = "", 0
    for i in range(len(ids)):
        starts.append(done + partial)
        after = decode(ids[begin : i + 1])
        itself = wanted is not None and ids[max(0, i + 1 - len(wanted)) : i + 1] == wanted
        whole = not after.endswith("\ufffd") or itself
        partial = max(0, len(after if whole else after.rstrip("\ufffd")) - len(before))
        if whole:
            done, partial = done + partial, 0
            begin, end = end, i + 1
            before = decode(ids[begin:end])
    return starts


def pieces(text: str, starts: Sequence[int]) -> list[str]:
    """The text of each token; joined, `text`."""
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
