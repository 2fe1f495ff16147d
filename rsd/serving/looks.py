"""What one server is asked before a job, by its kind: whether it has the model, tells what is needed, and reads as we
write."""

import asyncio
import math
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rsd.acceptance import Sampling
from rsd.serving import client as serving
from rsd.serving.answer import FAULTS, UNREADABLE, Answer, fault, httpx
from rsd.serving.client import fetch
from rsd.serving.completions import body_of, by_ids, top_logprobs
from rsd.serving.key import KEY, key, said
from rsd.serving.sglang import PLAIN, RESERVED, alike, body, judged, prompt_ids, told_of
from rsd.serving.told import TOP, Chain, Told
from rsd.settings import called
from rsd.terminal import one_line, say

# To see what a server makes of log-probs: steeper ones, and the likeliest token alone.
WARPED = Sampling(temperature=0.5, top_p=1.0, top_k=0), Sampling(temperature=1.0, top_p=1e-6, top_k=0)
NEAR = 0.3  # nats that two answers of one server may differ, in bfloat16
SLOW = 10.0  # seconds after which it is said that an answer is waited for
# Text that tokenizers cut differently.
SAMPLE = "Let x_1 = 12.5: a na\u00efve caf\u00e9 sells 1,234 \u6f22\u5b57 cups.\n\n    return \\boxed{x**2}  # done"


class Seen(NamedTuple):
    """What one server says: the longest text that the model takes, if it tells; of a known context; and what it tells
    of tokens that it is asked for by their ids."""

    context: int | None
    told: list[Told]
    by_ids: str | None


class Away(ValueError):
    """There is no server, or it does not answer yet."""


async def identify(client: httpx.AsyncClient, url: str, api: str, until: float) -> tuple[str, str]:
    """The kind of server, and of an SGLang the model that it has.

    It is the list of models that tells: the one address that both kinds have, and proxies before them.
    """
    listed = await _patiently(client, f"{url.removesuffix('/v1')}/v1/models", None, until)
    if api == "sglang" or listed.status in (401, 403):
        _check_listed(listed, url)
    elif listed.status != 200:
        return "completions", ""
    models = _read(listed, url)["data"]
    mine = [one for one in models if not one.get("parent")]  # the others are adapters of it
    if api == "sglang" or any(one.get("owned_by") == "sglang" for one in mine):
        return "sglang", one_line(str(mine[0]["id"]))[:300]
    return "completions", ""


async def look_at_completions(
    client: httpx.AsyncClient, url: str, model: str, tokenizer: PreTrainedTokenizerBase, until: float
) -> Seen:
    """What a server of completions says.

    Args:
        tokenizer: the model's, as we have it.

    Raises:
        ValueError: it does not have the model, or does not let us in, or does not tell the likeliest tokens, as many as
            are needed, by their ids; or its tokenizer is another one.
    """
    listed = await _patiently(client, f"{url}/models", None, until)
    _check_listed(listed, url, hint="; the address ends in /v1, usually")
    models = {str(m["id"]): m for m in _read(listed, url)["data"]}
    _check_name(model, models, url)
    length = _length(models[model].get("max_model_len"), url, "max_model_len")
    ids = tokenizer.encode("1 + 1 =", add_special_tokens=False)
    asked = body_of(model, [ids], 1)
    probe = await _patiently(client, f"{url}/completions", asked, until)
    if probe.status != 200:
        raise _refused(url, probe)
    width = max(tokenizer.get_vocab().values()) + 1
    [(_, [told])] = _read(probe, url, lambda answer: top_logprobs(answer, 1, width))
    asked |= {"prompt": SAMPLE, "logprobs": 1, "echo": True}
    echo = await _patiently(client, f"{url}/completions", asked, until)
    try:
        tokens: Sequence[str] = echo.json()["choices"][0]["logprobs"]["tokens"] if echo.status == 200 else []
        theirs = [int(token.removeprefix("token_id:")) for token in tokens][:-1]  # the last one is its own
    except UNREADABLE:
        theirs = []
    _check_tokenizer(theirs, url, tokenizer)
    answers = []
    for sampling in WARPED:
        named = body_of(model, [ids], 1, _some(told), sampling)
        answers.append(await _patiently(client, f"{url}/completions", named, until))
    return Seen(length, [told], _told_by_ids(told, answers))


def _some(told: Told) -> list[int]:
    """The likeliest token on a list, the last one, and one between."""
    order = sorted(range(len(told.ids)), key=lambda n: -told.logprobs[n])
    return [told.ids[order[n]] for n in (0, -1, len(order) // 2)]


def _told_by_ids(told: Told, answers: Sequence[Answer]) -> str | None:
    """What a server told of `_some` tokens after what each of `WARPED` makes of a distribution, of which this is the
    list: "processed", as that makes it; "raw", as it was; None if it is neither, or no answer."""
    some = _some(told)
    try:
        told_of = [by_ids(answer.json(), 1, some)[0] if answer.status == 200 else {} for answer in answers]
        values = [[one[i] for i in some] for one in told_of]
    except UNREADABLE:
        return None
    listed = dict(zip(told.ids, told.logprobs, strict=True))
    was = [listed[i] for i in some]
    if all(abs(value - one) < NEAR for row in values for value, one in zip(row, was, strict=True)):
        return "raw"
    (first, *others), alone = values
    steeper = [first + (one - was[0]) / WARPED[0].temperature for one in was[1:]]
    near = all(abs(value - one) < NEAR for value, one in zip(others, steeper, strict=True))
    filtered = abs(alone[0]) < NEAR and all(value == -math.inf for value in alone[1:])
    return "processed" if near and filtered else None


async def look_at_sglang(
    client: httpx.AsyncClient, url: str, model: str, tokenizer: PreTrainedTokenizerBase, until: float
) -> Seen:
    """The same of an SGLang server, whose address is without /v1."""
    listed = await _patiently(client, f"{url}/v1/models", None, until)
    _check_listed(listed, url)
    models = {str(m["id"]): m for m in _read(listed, url)["data"] if not m.get("parent")}
    info = await _either(client, url, ("/model_info", "/get_model_info"), until)
    _check_name(model, [*models, *([str(info["model_path"])] if "model_path" in info else [])], url)
    if info.get("is_generation") is False:
        raise ValueError(f"{called('teacher')} {url}: its model makes no text")
    # A text first: ids that the model does not have end an SGLang.
    text = {"text": SAMPLE, "sampling_params": PLAIN | {"max_new_tokens": 1}, "return_logprob": True}
    read = await _patiently(client, f"{url}/generate", text | {"logprob_start_len": 0}, until)
    if read.status not in (200, 400):  # with --skip-tokenizer-init it takes no text
        raise _refused(url, read)
    _check_tokenizer(prompt_ids(_read(read, url)) if read.status == 200 else [], url, tokenizer)

    width = max(tokenizer.get_vocab().values()) + 1
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    whole = Chain(ids, list(range(len(ids) - 4, len(ids) + 1)))
    alone = [Chain(context, [len(context)]) for context in whole.contexts()]
    seen: list[list[Told]] = []
    each = partial(judged, width=width)
    for chains in ([whole], alone, [whole]):  # the second time from its cache
        answer = await _patiently(client, f"{url}/generate", body(chains, top=min(TOP, width)), until)
        if answer.status != 200:
            raise _refused(url, answer)
        told = _read(answer, url, partial(told_of, chains=chains, each=each))
        seen.append([one for chain in told for one in chain])
    if not all(alike(*places) for again in (seen[0], seen[2]) for places in zip(again, seen[1], strict=True)):
        raise ValueError(
            f"{called('teacher')} {url}: what it tells within a prompt is not what it tells behind it: "
            "start it without preferred-sampling-params"
        )
    server = await _either(client, url, ("/server_info", "/get_server_info"), until)
    told_lengths = [_length(m.get("max_model_len"), url, "max_model_len") for m in models.values()]
    lengths = [length - RESERVED for length in told_lengths if length]
    most = _length(server.get("max_req_input_len"), url, "max_req_input_len")
    lengths += [most] if most else []
    return Seen(min(lengths, default=None), seen[1], "raw")


async def _either(client: httpx.AsyncClient, url: str, paths: Sequence[str], until: float) -> Any:
    """What the first address says that a server has; nothing, if it has none."""
    for path in paths:
        answer = await _patiently(client, url + path, None, until)
        if answer.status == 200:
            return _read(answer, url)
    return {}


def _check_listed(listed: Answer, url: str, hint: str = "") -> None:
    if listed.status in (401, 403):
        hint = "" if key() else f" (no key in the environment: {KEY})"
        raise ValueError(f"{called('teacher')} {url}: {listed.refusal()}{hint}")
    if listed.status != 200:
        raise _refused(url, listed, hint)


def _check_name(model: str, models: Iterable[str], url: str) -> None:
    if model not in (there := list(models)):
        has = said(", ".join(there)) or "none"
        raise ValueError(f"{called('teacher_model')} {one_line(model)}: the server {url} has {has}")


def _refused(url: str, answer: Answer, hint: str = "") -> ValueError:
    kind = Away if answer.passing else ValueError
    return kind(f"{called('teacher')} {url}: {answer.refusal()}{hint if not answer.passing else ''}")


def _length(told: Any, url: str, name: str) -> int | None:
    """The longest text that a server says it takes, if it says one."""
    if told is None:
        return None
    number = isinstance(told, int | float) and not isinstance(told, bool) and math.isfinite(told)
    if not number or told < 2 or told != int(told):
        raise ValueError(f"{called('teacher')} {url}: its {name} is {said(repr(told))}, which is no length")
    return int(told)


def _read(answer: Answer, url: str, read: Callable[[Any], Any] = lambda answer: answer) -> Any:
    try:
        return read(answer.json())
    except UNREADABLE as e:
        raise ValueError(f"{called('teacher')} {url}: an answer that cannot be read ({fault(e)})") from e


async def _patiently(client: httpx.AsyncClient, url: str, body: Mapping[str, Any] | None, until: float) -> Answer:
    """An answer; what may pass is waited for, as a server that is loading its model says so, or says nothing yet."""
    delay, told = serving.DELAYS[0], False
    while True:
        # The first answer may be long in coming: then it is told what is waited for.
        slow = asyncio.get_running_loop().call_later(SLOW, say, f"waiting for an answer of the teacher's server {url}")
        try:
            answer = await fetch(client, url, body)
            if not answer.passing or time.monotonic() + delay > until:
                return answer
            why = answer.refusal()
        except FAULTS as e:
            if time.monotonic() + delay > until or of_tls(e):
                raise
            why = fault(e)
        except ValueError as e:
            raise ValueError(f"{called('teacher')} {url}: an answer that cannot be read ({fault(e)})") from e
        finally:
            slow.cancel()
        if not told:
            left = max(until - time.monotonic(), 0)
            say(f"waiting for the teacher's server {url}, for {left:.0f} s at the most: {why}")
            told = True
        await asyncio.sleep(delay)
        delay = min(2 * delay, serving.DELAYS[1])


def of_tls(e: BaseException | None) -> bool:
    """It is about certificates or the like, which no patience mends."""
    return e is not None and (isinstance(e, ssl.SSLError) or of_tls(e.__cause__ or e.__context__))


def _check_tokenizer(theirs: list[int], url: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the server read `SAMPLE` as our tokenizer does; one that does not tell is taken at its word.

    Raises:
        ValueError: it did not.
    """
    if not theirs:
        name = called("teacher_tokenizer")
        say(f"notice: the server {url} does not tell how it reads a text: {name} could not be compared with it")
        return
    ours = [tokenizer.encode(SAMPLE, add_special_tokens=special) for special in (True, False)]
    if theirs not in ours and theirs[1:] not in ours:  # servers may put a beginning of text where we do not
        raise ValueError(
            f"the server {url} reads a text as other tokens than {called('teacher_tokenizer')} does: "
            "name the served model's own"
        )
