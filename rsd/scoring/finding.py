"""One response of a file, which is read as far as to its row and no further."""

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from rsd.reading import Columns, Reading
from rsd.scoring.responses import FORMATS, Response, noted_tokens, responses, sidecar_of
from rsd.settings import shown
from rsd.traces.readers import stream_rows
from rsd.traces.sidecar import Sidecar


def find_response(
    source: str,
    config: Columns,
    *,
    name: str | None = None,
    generation: int | None = None,
    prompt: str | None = None,
    named: bool = True,
) -> Response:
    """The response of an id and a generation, as `responses.read_responses` would read it.

    Args:
        name: the id; by default the first row's. generation: by default the first that there is.
        prompt: if no row has that id, the first of this prompt will do.
        named: as of `responses.read_responses`.

    Raises:
        ValueError: the file cannot be read, it has no such row, or the row no columns of a known format.
    """
    asked, known = Reading(**asdict(config)), Reading(split=config.split)
    counts: Counter[str] = Counter()
    second: Response | None = None
    for row in stream_rows(source, split=config.split):
        reading = asked if named or not any(c in row for c in FORMATS) else known
        given, number = row.get("id"), row.get("generation")
        own = isinstance(given, str | int) and not isinstance(given, bool)
        at = str(given) if own else _one(source, row, reading).id
        number = number if type(number) is int else counts[at]
        counts[at] += 1
        if generation not in (None, number):
            continue
        if name in (None, at):
            return _with_tokens(source, replace(_one(source, row, reading), generation=number))
        if prompt is not None and second is None and (one := _one(source, row, reading)).prompt == prompt:
            second = replace(one, generation=number)
    if second is not None:
        return _with_tokens(source, second)
    if name is None or name in counts:
        raise ValueError(f"{source}: no generation {generation}" + (f" of id {shown(name)}" if name else ""))
    near = difflib.get_close_matches(name, counts, 1)
    raise ValueError(f"{source}: no row has the id {shown(name)}" + (f" (did you mean {near[0]}?)" if near else ""))


def _one(source: str, row: Mapping[str, Any], config: Reading) -> Response:
    try:
        return responses([row], config)[0]
    except ValueError as e:
        raise ValueError(f"{source}: {e}") from e


def _with_tokens(source: str, one: Response) -> Response:
    record = Sidecar(sidecar_of(source)).record((one.id, one.generation))
    return replace(one, tokens=noted_tokens(record))
