"""What a server is asked before a job: whether it has the model, tells what is needed, and reads as we write."""

import asyncio
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rsd.acceptance import Sampling
from rsd.models.bundled import folder_of
from rsd.models.loading import generation_config, reading
from rsd.models.source import Source
from rsd.serving import client as serving
from rsd.serving.client import FAULTS, KEY, UNREADABLE, Answer, fault, fetch, headers, httpx
from rsd.serving.completions import body_of, by_ids, top_logprobs
from rsd.serving.told import Told
from rsd.settings import called
from rsd.terminal import one_line, say

STARTING = 30.0  # seconds in which a server that is just starting may come to answer
# To see what a server makes of log-probs: steeper ones, and the likeliest token alone.
WARPED = Sampling(temperature=0.5, top_p=1.0, top_k=0), Sampling(temperature=1.0, top_p=1e-6, top_k=0)
NEAR = 0.3  # nats that two answers of one server may differ, in bfloat16
TIMEOUT = httpx.Timeout(60, connect=10)
# Text that tokenizers cut differently.
SAMPLE = "Let x_1 = 12.5: a na\u00efve caf\u00e9 sells 1,234 \u6f22\u5b57 cups.\n\n    return \\boxed{x**2}  # done"


def find_served(url: str, model: str, tokenizer: str, *, trust_remote_code: bool) -> Source:
    """A teacher behind a server: its tokenizer is read here, the rest is asked of the server.

    Raises:
        ValueError: httpx is not installed, the tokenizer cannot be read, or there is no such server or model.
    """
    path = folder_of(tokenizer)
    with reading(f"{called('teacher_tokenizer')} {tokenizer}"):
        speller = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        speller.encode("a b")
        generation = generation_config(path, None) or GenerationConfig()
    longest, tells = what_it_takes(url, model, speller)
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
    source = Source("teacher", model, url, f"served, tokenizer {digest}", config, speller, generation)
    return replace(source, by_ids=tells)


def what_it_takes(url: str, model: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str | None]:
    """The longest text that a served model takes, as far as its server says; and what that tells of tokens that it is
    asked for by their ids (`told.Api`).

    Args:
        tokenizer: the model's, as we have it.

    Raises:
        ValueError: there is no such server or model, or it does not let us in, or does not tell the likeliest tokens,
            as many as are needed, by their ids; or its tokenizer is another one.
    """
    with ThreadPoolExecutor(1) as thread:  # whose caller may be running a loop already
        return thread.submit(lambda: asyncio.run(_asked(url.rstrip("/"), model, tokenizer))).result()


async def _asked(url: str, model: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str | None]:
    until = time.monotonic() + STARTING
    async with httpx.AsyncClient(timeout=TIMEOUT, headers=headers()) as client:
        try:
            listed = await _patiently(client, f"{url}/models", None, until)
            if listed.status in (401, 403):
                hint = "" if "Authorization" in headers() else f" (no key in the environment: {KEY})"
                raise ValueError(f"{called('teacher')} {url}: {listed.refusal()}{hint}")
            if listed.status != 200:
                raise ValueError(f"{called('teacher')} {url}: {listed.refusal()}; the address ends in /v1, usually")
            models = {str(m["id"]): m for m in _read(listed, url)["data"]}
            if model not in models:
                has = one_line(", ".join(models))[:300] or "none"
                raise ValueError(f"{called('teacher_model')} {model}: the server has {has}")
            ids = tokenizer.encode("1 + 1 =", add_special_tokens=False)
            body = body_of(model, [ids], 1)
            probe = await _patiently(client, f"{url}/completions", body, until)
            if probe.status != 200:
                raise ValueError(f"{called('teacher')} {url}: {probe.refusal()}")
            [(_, [told])] = top_logprobs(_read(probe, url), 1, max(tokenizer.get_vocab().values()) + 1)
            echo = body | {"prompt": SAMPLE, "logprobs": 1, "echo": True}
            _check_tokenizer(await _patiently(client, f"{url}/completions", echo, until), tokenizer)
            answers = []
            for sampling in WARPED:
                named = body_of(model, [ids], 1, _some(told), sampling)
                answers.append(await _patiently(client, f"{url}/completions", named, until))
            length = models[model].get("max_model_len")
            return int(length) if length else None, _told_by_ids(told, answers)
        except httpx.InvalidURL as e:
            raise ValueError(f"{called('teacher')} {url}: this is no address: {e}") from e
        except FAULTS as e:
            raise ValueError(f"{called('teacher')} {url}: cannot be reached: {fault(e)}") from e
        except ConnectionError as e:
            raise ValueError(f"{called('teacher')} {url}: {e}") from e
        except (KeyError, TypeError, IndexError, AttributeError) as e:
            raise ValueError(f"{called('teacher')} {url}: it does not answer like an OpenAI-compatible server") from e


def _some(told: Told) -> list[int]:
    """The likeliest token on a list, the last one, and one between."""
    order = sorted(range(len(told.ids)), key=lambda n: -told.logprobs[n])
    return [told.ids[order[n]] for n in (0, -1, len(order) // 2)]


def _told_by_ids(told: Told, answers: Sequence[Answer]) -> str | None:
    """What a server told of `_some` tokens after what each of `WARPED` makes of a distribution, of which this is the
    list: "processed", as that makes it; "raw", as it was; None if it is neither, or no answer."""
    some = _some(told)
    try:
        said = [by_ids(answer.json(), 1, some)[0] if answer.status == 200 else {} for answer in answers]
        values = [[one[i] for i in some] for one in said]
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


def _read(answer: Answer, url: str) -> Any:
    try:
        return answer.json()
    except UNREADABLE as e:
        raise ValueError(f"{called('teacher')} {url}: an answer that cannot be read ({fault(e)})") from e


async def _patiently(client: httpx.AsyncClient, url: str, body: Mapping[str, Any] | None, until: float) -> Answer:
    """An answer; what may pass is waited for, as a server that is loading its model says so, or says nothing yet."""
    delay, told = serving.DELAYS[0], False
    while True:
        try:
            answer = await fetch(client, url, body)
            if not answer.passing or time.monotonic() + delay > until:
                return answer
            why = answer.refusal()
        except FAULTS as e:
            if time.monotonic() + delay > until:
                raise
            why = fault(e)
        except ValueError as e:
            raise ValueError(f"{called('teacher')} {url}: an answer that cannot be read ({fault(e)})") from e
        if not told:
            say(f"waiting for the teacher's server, for {STARTING:g} s at the most: {why}")
            told = True
        await asyncio.sleep(delay)
        delay = min(2 * delay, serving.DELAYS[1])


def _check_tokenizer(answer: Answer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the server read `SAMPLE` as our tokenizer does; a server that does not tell is taken at its word.

    Raises:
        ValueError: it did not.
    """
    try:
        said: Sequence[str] = answer.json()["choices"][0]["logprobs"]["tokens"] if answer.status == 200 else []
        theirs = [int(token.removeprefix("token_id:")) for token in said][:-1]  # the last one is its own
    except UNREADABLE:
        theirs = []
    if not theirs:
        name = called("teacher_tokenizer")
        say(f"notice: the server does not tell how it reads a text: {name} could not be compared with it")
        return
    ours = [tokenizer.encode(SAMPLE, add_special_tokens=special) for special in (True, False)]
    if theirs not in ours and theirs[1:] not in ours:  # servers may put a beginning of text where we do not
        raise ValueError(
            f"the server reads a text as other tokens than {called('teacher_tokenizer')} does: "
            "name the served model's own"
        )
