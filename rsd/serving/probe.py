"""A teacher behind servers, as it is found before a job."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig

from rsd.models.bundled import folder_of
from rsd.models.loading import generation_config, reading
from rsd.models.source import Source
from rsd.serving.answer import FAULTS, fault, httpx
from rsd.serving.client import opened
from rsd.serving.key import said
from rsd.serving.looks import Away, Seen, identify, look_at_completions, look_at_sglang, of_tls
from rsd.serving.replicas import unlike
from rsd.settings import called
from rsd.terminal import say

STARTING = 30.0  # seconds in which a server that is just starting may come to answer

T = TypeVar("T")
Work = Callable[[httpx.AsyncClient, str, float], Coroutine[Any, Any, T]]


def find_served(
    urls: Sequence[str], model: str | None, tokenizer: str | None, *, api: str, trust_remote_code: bool
) -> Source:
    """A teacher behind servers: its tokenizer is read here, the rest is asked of them.

    Args:
        model: its name there; an SGLang server says it itself. tokenizer: that name, if None. api: the kind of server,
            or auto.

    Raises:
        ValueError: httpx is not installed, the tokenizer cannot be read, there is no such server or model, or two
            servers have different ones.
    """
    urls = [url.rstrip("/") for url in urls]
    away: list[str] = []
    name = model
    if api != "completions":
        kinds = _everywhere(urls, lambda client, url, until: identify(client, url, api, until))
        away = [url for url in urls if url not in kinds]
        urls = list(kinds)
        api, only = _alike(kinds, "is another kind of server, or has another model,")
        name = model or only or None
    if api == "sglang":
        urls, away = ([url.removesuffix("/v1") for url in some] for some in (urls, away))
    if name is None:
        raise ValueError(f"a teacher behind a server needs its name there: give {called('teacher_model')}")
    path = folder_of(tokenizer or name)
    with reading(f"{called('teacher_tokenizer')} {tokenizer or name}"):
        # No server says whose code runs here.
        code = trust_remote_code and (tokenizer or model) is not None
        speller = AutoTokenizer.from_pretrained(path, trust_remote_code=code)
        speller.encode("a b")
        generation = generation_config(path, None) or GenerationConfig()
    look = look_at_sglang if api == "sglang" else look_at_completions
    there = _everywhere(urls, lambda client, url, until: look(client, url, name, speller, until))
    longest, by_ids = together(there)
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
    source = Source("teacher", name, f"served:{name}", f"served, tokenizer {digest}", config, speller, generation)
    servers = (*there, *(url for url in urls if url not in there), *away)
    return replace(source, api=api, by_ids=by_ids, servers=servers)


def together(there: dict[str, Seen]) -> tuple[int | None, str | None]:
    """The longest text that a served model takes, as far as its servers say, and what all of them tell of tokens that
    they are asked for by their ids (`told.Api`).

    Raises:
        ValueError: two servers have different models.
    """
    (first, known), *others = there.items()
    for url, seen in others:
        if why := unlike(seen.told, known.told):
            raise ValueError(f"{called('teacher')} {url} has another model than {first}: {why}")
    tells = {seen.by_ids for seen in there.values()}
    longest = min((seen.context for seen in there.values() if seen.context), default=None)
    return longest, tells.pop() if len(tells) == 1 else None


def _alike(there: dict[str, T], otherwise: str) -> T:
    (first, known), *others = there.items()
    for url, one in others:
        if one != known:
            raise ValueError(f"{called('teacher')} {url} {otherwise} than {first}")
    return known


def _everywhere(urls: Sequence[str], work: Work[T]) -> dict[str, T]:
    """What comes of asking each server, of those that are there; one that is not is named.

    Args:
        work: given a client, the address, and the time until which a server that is starting is waited for.

    Raises:
        ValueError: there is none, or one will not do.
    """
    with ThreadPoolExecutor(1) as thread:  # whose caller may be running a loop already
        made = thread.submit(lambda: asyncio.run(_all(urls, work))).result()
    there, away = {}, []
    for url, one in zip(urls, made, strict=True):
        if isinstance(one, Away):
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


async def _all(urls: Sequence[str], work: Work[T]) -> list[Any]:
    return await asyncio.gather(*(_one(url, work) for url in urls), return_exceptions=True)


async def _one(url: str, work: Work[T]) -> T:
    async with opened(url) as client:
        try:
            return await work(client, url, time.monotonic() + STARTING)
        except httpx.InvalidURL as e:
            raise ValueError(f"{called('teacher')} {url}: this is no address: {said(e)}") from e
        except FAULTS as e:
            hint = "; a certificate of your own is named by SSL_CERT_FILE" if of_tls(e) else ""
            raise Away(f"{called('teacher')} {url}: cannot be reached: {fault(e)}{hint}") from e
        except ConnectionError as e:
            raise ValueError(f"{called('teacher')} {url}: {e}") from e
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as e:
            what = "it does not answer like an OpenAI-compatible server"
            raise ValueError(f"{called('teacher')} {url}: {what} ({fault(e)})") from e
