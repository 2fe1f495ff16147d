"""What a server is asked before a job: whether it has the model, tells what is needed, and reads as we write."""

import asyncio
import hashlib
import math
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rsd.acceptance import Sampling
from rsd.models.bundled import folder_of
from rsd.models.loading import generation_config, reading
from rsd.models.source import Source
from rsd.serving import client as serving
from rsd.serving.client import FAULTS, UNREADABLE, Answer, fault, fetch, httpx, opened
from rsd.serving.completions import body_of, by_ids, top_logprobs
from rsd.serving.key import KEY, key, said
from rsd.serving.replicas import unlike
from rsd.serving.told import Told
from rsd.settings import called
from rsd.terminal import one_line, say

STARTING = 30.0  # seconds in which a server that is just starting may come to answer
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


def find_served(urls: Sequence[str], model: str, tokenizer: str, *, trust_remote_code: bool) -> Source:
    """A teacher behind servers: its tokenizer is read here, the rest is asked of them.

    Raises:
        ValueError: httpx is not installed, the tokenizer cannot be read, or there is no such server or model.
    """
    path = folder_of(tokenizer)
    with reading(f"{called('teacher_tokenizer')} {tokenizer}"):
        speller = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        speller.encode("a b")
        generation = generation_config(path, None) or GenerationConfig()
    longest, by_ids, servers = what_it_takes(urls, model, speller)
    context = longest or speller.model_max_length
    ids = speller.get_vocab()
    config = PreTrainedConfig.from_dict(
        {
            "vocab_size": max(ids.values()) + 1,
            "max_position_embeddings": min(context, 1 << 24) - 1,  # one is left for the token that is asked for
            "eos_token_id": None,
        }
    )
    digest = hashlib.blake2b(repr(sorted(ids.items())).encode(), digest_size=16).hexdigest()
    # Which servers, and how many, may change while the job is the same.
    source = Source("teacher", model, f"served:{model}", f"served, tokenizer {digest}", config, speller, generation)
    return replace(source, by_ids=by_ids, servers=servers)


def what_it_takes(
    urls: Sequence[str], model: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int | None, str | None, tuple[str, ...]]:
    """The longest text that a served model takes, as far as its servers say, what all of them tell of tokens that
    they are asked for by their ids (`told.Api`), and the servers, last those that are not there.

    Args:
        tokenizer: the model's, as we have it.

    Raises:
        ValueError: there is no such server or model, or it does not let us in, or does not tell the likeliest tokens,
            as many as are needed, by their ids; or its tokenizer is another one, or two have different models.
    """
    with ThreadPoolExecutor(1) as thread:  # whose caller may be running a loop already
        there = thread.submit(lambda: asyncio.run(_all(urls, model, tokenizer))).result()
    (first, known), *others = there.items()
    for url, seen in others:
        if why := unlike(seen.told, known.told):
            raise ValueError(f"{called('teacher')} {url} has another model than {first}: {why}")
    tells = {seen.by_ids for seen in there.values()}
    longest = min((seen.context for seen in there.values() if seen.context), default=None)
    servers = (*there, *(url for url in urls if url not in there))
    return longest, tells.pop() if len(tells) == 1 else None, servers


async def _all(urls: Sequence[str], model: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Seen]:
    """What each server says that is there."""
    made = await asyncio.gather(*(_asked(url.rstrip("/"), model, tokenizer) for url in urls), return_exceptions=True)
    there, away = {}, []
    for url, one in zip(urls, made, strict=True):
        if isinstance(one, _Away):
            away.append(one)
        elif isinstance(one, BaseException):
            raise one
        else:
            there[url] = one
    if not there:
        raise away[0]
    for one in away:
        say(f"notice: {one}; the others are asked until it is there")
    return there


class _Away(ValueError):
    """There is no server, or it does not answer yet."""


async def _asked(url: str, model: str, tokenizer: PreTrainedTokenizerBase) -> Seen:
    until = time.monotonic() + STARTING
    async with opened(url) as client:
        try:
            listed = await _patiently(client, f"{url}/models", None, until)
            if listed.status in (401, 403):
                hint = "" if key() else f" (no key in the environment: {KEY})"
                raise ValueError(f"{called('teacher')} {url}: {listed.refusal()}{hint}")
            if listed.status != 200:
                raise _refused(url, listed, "; the address ends in /v1, usually")
            models = {str(m["id"]): m for m in _read(listed, url)["data"]}
            if model not in models:
                has = said(", ".join(models)) or "none"
                raise ValueError(f"{called('teacher_model')} {one_line(model)}: the server {url} has {has}")
            length = _length(models[model].get("max_model_len"), url)
            ids = tokenizer.encode("1 + 1 =", add_special_tokens=False)
            body = body_of(model, [ids], 1)
            probe = await _patiently(client, f"{url}/completions", body, until)
            if probe.status != 200:
                raise _refused(url, probe)
            width = max(tokenizer.get_vocab().values()) + 1
            [(_, [told])] = _read(probe, url, lambda answer: top_logprobs(answer, 1, width))
            echo = body | {"prompt": SAMPLE, "logprobs": 1, "echo": True}
            _check_tokenizer(await _patiently(client, f"{url}/completions", echo, until), url, tokenizer)
            answers = []
            for sampling in WARPED:
                named = body_of(model, [ids], 1, _some(told), sampling)
                answers.append(await _patiently(client, f"{url}/completions", named, until))
            return Seen(length, [told], _told_by_ids(told, answers))
        except httpx.InvalidURL as e:
            raise ValueError(f"{called('teacher')} {url}: this is no address: {said(e)}") from e
        except FAULTS as e:
            hint = "; a certificate of your own is named by SSL_CERT_FILE" if _of_tls(e) else ""
            raise _Away(f"{called('teacher')} {url}: cannot be reached: {fault(e)}{hint}") from e
        except ConnectionError as e:
            raise ValueError(f"{called('teacher')} {url}: {e}") from e
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as e:
            what = "it does not answer like an OpenAI-compatible server"
            raise ValueError(f"{called('teacher')} {url}: {what} ({fault(e)})") from e


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


def _refused(url: str, answer: Answer, hint: str = "") -> ValueError:
    kind = _Away if answer.passing else ValueError
    return kind(f"{called('teacher')} {url}: {answer.refusal()}{hint if not answer.passing else ''}")


def _length(told: Any, url: str) -> int | None:
    """The longest text that a server says it takes, if it says one."""
    if told is None:
        return None
    number = isinstance(told, int | float) and not isinstance(told, bool) and math.isfinite(told)
    if not number or told < 2 or told != int(told):
        raise ValueError(f"{called('teacher')} {url}: its max_model_len is {said(repr(told))}, which is no length")
    return int(told)


def _of_tls(e: BaseException | None) -> bool:
    """It is about certificates or the like, which no patience mends."""
    return e is not None and (isinstance(e, ssl.SSLError) or _of_tls(e.__cause__ or e.__context__))


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
            if time.monotonic() + delay > until or _of_tls(e):
                raise
            why = fault(e)
        except ValueError as e:
            raise ValueError(f"{called('teacher')} {url}: an answer that cannot be read ({fault(e)})") from e
        finally:
            slow.cancel()
        if not told:
            say(f"waiting for the teacher's server {url}, for {STARTING:g} s at the most: {why}")
            told = True
        await asyncio.sleep(delay)
        delay = min(2 * delay, serving.DELAYS[1])


def _check_tokenizer(answer: Answer, url: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the server read `SAMPLE` as our tokenizer does; a server that does not tell is taken at its word.

    Raises:
        ValueError: it did not.
    """
    try:
        tokens: Sequence[str] = answer.json()["choices"][0]["logprobs"]["tokens"] if answer.status == 200 else []
        theirs = [int(token.removeprefix("token_id:")) for token in tokens][:-1]  # the last one is its own
    except UNREADABLE:
        theirs = []
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
