"""What a server is asked before a job: whether it has the model, tells what is needed, and reads as we write."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rsd.models.bundled import folder_of
from rsd.models.loading import generation_config, reading
from rsd.models.source import Source
from rsd.serving import client as serving
from rsd.serving.client import FAULTS, KEY, UNREADABLE, Answer, fault, fetch, headers, httpx
from rsd.serving.completions import top_logprobs
from rsd.serving.sglang import PLAIN, RESERVED, alike, body, judged, prompt_ids, told_of
from rsd.serving.told import TOP, Chain, Told
from rsd.settings import called
from rsd.terminal import one_line, say

STARTING = 30.0  # seconds in which a server that is just starting may come to answer
TIMEOUT = httpx.Timeout(60, connect=10)
# Text that tokenizers cut differently.
SAMPLE = "Let x_1 = 12.5: a na\u00efve caf\u00e9 sells 1,234 \u6f22\u5b57 cups.\n\n    return \\boxed{x**2}  # done"

T = TypeVar("T")


def find_served(url: str, model: str | None, tokenizer: str | None, *, api: str, trust_remote_code: bool) -> Source:
    """A teacher behind a server: its tokenizer is read here, the rest is asked of the server.

    Args:
        model: its name there; an SGLang server says it itself. tokenizer: that name, if None. api: the kind of server,
            or auto.

    Raises:
        ValueError: httpx is not installed, the tokenizer cannot be read, or there is no such server or model.
    """
    url = url.rstrip("/")
    if api != "completions":
        api, said = _run(url, lambda client, until: _identified(client, url, api, until))
    if api == "sglang":
        url = url.removesuffix("/v1")
        name = model or said
    elif model is None:
        raise ValueError(f"a teacher behind a server needs its name there: give {called('teacher_model')}")
    else:
        name = model
    path = folder_of(tokenizer or name)
    with reading(f"{called('teacher_tokenizer')} {tokenizer or name}"):
        # No server says whose code runs here.
        code = trust_remote_code and (tokenizer or model) is not None
        speller = AutoTokenizer.from_pretrained(path, trust_remote_code=code)
        speller.encode("a b")
        generation = generation_config(path, None) or GenerationConfig()
    ask = _asked_sglang if api == "sglang" else _asked
    context = _run(url, lambda client, until: ask(client, url, name, speller, until)) or speller.model_max_length
    ids = speller.get_vocab()
    config = PreTrainedConfig.from_dict(
        {
            "vocab_size": max(ids.values()) + 1,
            "max_position_embeddings": min(context, 1 << 24) - 1,  # one is left for the token that is asked for
            "eos_token_id": None,
        }
    )
    digest = hashlib.blake2b(repr(sorted(ids.items())).encode(), digest_size=16).hexdigest()
    return Source("teacher", name, url, f"served, tokenizer {digest}", config, speller, generation, api=api)


def _run(url: str, work: Callable[[httpx.AsyncClient, float], Coroutine[Any, Any, T]]) -> T:
    """What comes of asking a server.

    Args:
        work: given a client, and the time until which a server that is starting is waited for.

    Raises:
        ValueError: there is none, or it is no server of this kind.
    """

    async def begin() -> T:
        async with httpx.AsyncClient(timeout=TIMEOUT, headers=headers()) as client:
            return await work(client, time.monotonic() + STARTING)

    try:
        with ThreadPoolExecutor(1) as thread:  # whose caller may be running a loop already
            return thread.submit(lambda: asyncio.run(begin())).result()
    except httpx.InvalidURL as e:
        raise ValueError(f"{called('teacher')} {url}: this is no address: {e}") from e
    except FAULTS as e:
        raise ValueError(f"{called('teacher')} {url}: cannot be reached: {fault(e)}") from e
    except ConnectionError as e:
        raise ValueError(f"{called('teacher')} {url}: {e}") from e
    except (KeyError, TypeError, IndexError, AttributeError) as e:
        raise ValueError(f"{called('teacher')} {url}: it does not answer like an OpenAI-compatible server") from e


async def _identified(client: httpx.AsyncClient, url: str, api: str, until: float) -> tuple[str, str]:
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


async def _asked(
    client: httpx.AsyncClient, url: str, model: str, tokenizer: PreTrainedTokenizerBase, until: float
) -> int | None:
    """The longest text that a served model takes, as far as its server says.

    Args:
        tokenizer: the model's, as we have it.

    Raises:
        ValueError: there is no such server or model, or it does not let us in, or does not tell the likeliest tokens,
            as many as are needed, by their ids; or its tokenizer is another one.
    """
    listed = await _patiently(client, f"{url}/models", None, until)
    _check_listed(listed, url, hint="; the address ends in /v1, usually")
    models = {str(m["id"]): m for m in _read(listed, url)["data"]}
    _check_name(model, models)
    ids = tokenizer.encode("1 + 1 =", add_special_tokens=False)
    body = {"model": model, "prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": TOP}
    body["return_tokens_as_token_ids"] = True  # beside the token's text, which several may have
    probe = await _patiently(client, f"{url}/completions", body, until)
    if probe.status != 200:
        raise ValueError(f"{called('teacher')} {url}: {probe.refusal()}")
    top_logprobs(_read(probe, url), 1, max(tokenizer.get_vocab().values()) + 1)
    echo = await _patiently(client, f"{url}/completions", body | {"prompt": SAMPLE, "logprobs": 1, "echo": True}, until)
    try:
        said: Sequence[str] = echo.json()["choices"][0]["logprobs"]["tokens"] if echo.status == 200 else []
        theirs = [int(token.removeprefix("token_id:")) for token in said][:-1]  # the last one is its own
    except UNREADABLE:
        theirs = []
    _check_tokenizer(theirs, tokenizer)
    length = models[model].get("max_model_len")
    return int(length) if length else None


async def _asked_sglang(
    client: httpx.AsyncClient, url: str, model: str, tokenizer: PreTrainedTokenizerBase, until: float
) -> int | None:
    """The same of an SGLang server, whose address is without /v1."""
    listed = await _patiently(client, f"{url}/v1/models", None, until)
    _check_listed(listed, url)
    models = {str(m["id"]): m for m in _read(listed, url)["data"] if not m.get("parent")}
    info = await _either(client, url, ("/model_info", "/get_model_info"), until)
    _check_name(model, [*models, *([str(info["model_path"])] if "model_path" in info else [])])
    if info.get("is_generation") is False:
        raise ValueError(f"{called('teacher')} {url}: its model makes no text")
    # A text first: ids that the model does not have end an SGLang.
    text = {"text": SAMPLE, "sampling_params": PLAIN | {"max_new_tokens": 1}, "return_logprob": True}
    read = await _patiently(client, f"{url}/generate", text | {"logprob_start_len": 0}, until)
    if read.status not in (200, 400):  # with --skip-tokenizer-init it takes no text
        raise ValueError(f"{called('teacher')} {url}: {read.refusal()}")
    _check_tokenizer(prompt_ids(_read(read, url)) if read.status == 200 else [], tokenizer)

    width = max(tokenizer.get_vocab().values()) + 1
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    whole = Chain(ids, list(range(len(ids) - 4, len(ids) + 1)))
    alone = [Chain(context, [len(context)]) for context in whole.contexts()]
    said: list[list[Told]] = []
    for chains in ([whole], alone, [whole]):  # the second time from its cache
        answer = await _patiently(client, f"{url}/generate", body(chains, top=min(TOP, width)), until)
        if answer.status != 200:
            raise ValueError(f"{called('teacher')} {url}: {answer.refusal()}")
        try:
            told = told_of(_read(answer, url), chains, partial(judged, width=width))
        except UNREADABLE as e:
            raise ValueError(f"{called('teacher')} {url}: an answer that cannot be read ({fault(e)})") from e
        said.append([one for chain in told for one in chain])
    if not all(alike(*places) for again in (said[0], said[2]) for places in zip(again, said[1], strict=True)):
        raise ValueError(
            f"{called('teacher')} {url}: what it tells within a prompt is not what it tells behind it: "
            "start it without preferred-sampling-params"
        )
    server = await _either(client, url, ("/server_info", "/get_server_info"), until)
    lengths = [m["max_model_len"] - RESERVED for m in models.values() if m.get("max_model_len")]
    lengths += [server["max_req_input_len"]] if server.get("max_req_input_len") else []
    return min(map(int, lengths), default=None)


async def _either(client: httpx.AsyncClient, url: str, paths: Sequence[str], until: float) -> Any:
    """What the first address says that a server has; nothing, if it has none."""
    for path in paths:
        answer = await _patiently(client, url + path, None, until)
        if answer.status == 200:
            return _read(answer, url)
    return {}


def _check_listed(listed: Answer, url: str, hint: str = "") -> None:
    if listed.status in (401, 403):
        hint = "" if "Authorization" in headers() else f" (no key in the environment: {KEY})"
    if listed.status != 200:
        raise ValueError(f"{called('teacher')} {url}: {listed.refusal()}{hint}")


def _check_name(model: str, models: Iterable[str]) -> None:
    if model not in (there := list(models)):
        has = one_line(", ".join(there))[:300] or "none"
        raise ValueError(f"{called('teacher_model')} {model}: the server has {has}")


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


def _check_tokenizer(theirs: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the server read `SAMPLE` as our tokenizer does; one that does not tell is taken at its word.

    Raises:
        ValueError: it did not.
    """
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
