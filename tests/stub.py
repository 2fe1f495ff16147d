"""A server of completions on loopback that answers as vLLM does, from a small model, and misbehaves when told to."""

import functools
import gzip
import json
import select
import socket
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ODD = {"nan": float("nan"), "infinite": float("inf"), "positive": 3.0, "text": "x", "huge": 10**400, "null": None}


class Refused(Exception):
    def __init__(self, message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"):
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class Stub:
    """`with Stub(folder) as stub:` serves that model at stub.url, by full forward passes in float32.

    stub.fail(429, "drop", ...) says what becomes of the next requests for completions, one each: a status; "drop"
    (half of the answer, then the connection is closed), "close" (no answer at all), "hang" (an answer after `hang`
    seconds), "malformed" (half of the JSON), "bare" (no top log-probs), "drip" (a byte now and then), "flood" and
    "bomb" (a huge answer, as it is or compressed), or one of `ODD` (such a log-prob). stub.stop() ends it with all its
    connections and stub.start() brings it back on the same port. `text` is always empty, and generation_config decides
    no draw. A list of likeliest tokens that is computed while a request by ids is under way is lost, as by vLLM's first
    sampler.
    """

    gets: ClassVar = {"/v1/models": "models"}  # what is answered where
    post = "/v1/completions"

    def __init__(self, folder: Path, *, name: str | None = None, key: str | None = None, max_model_len: int = 4096):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.name, self.key, self.max_model_len, self.max_logprobs = name or str(folder), key, max_model_len, 20
        ends = self.model.generation_config.eos_token_id
        self.ends: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self.faults: deque[int | str] = deque()
        self.retry_after: float | str | None = None
        self.answers_as: str | None = None  # the model's name in answers, if that is another one
        self.hang = 5.0
        self.keys = "token_id:{}"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tells = 20  # log-probs, at the most
        self.logprobs_mode = "raw_logprobs"  # or "processed_logprobs": after temperature, top-k and top-p
        self.by_ids = True  # knows logprob_token_ids
        self.stranger = 0  # that many lists of likeliest tokens are computed beside another client's request by ids
        self.bodies: list[dict] = []  # the requests for completions that were read, whatever became of them
        self.peak = self.in_flight = self.named = self.lost = self.port = 0
        self.counts, self.forward = Lock(), Lock()
        self.generator = torch.Generator().manual_seed(0)

    @property
    def prompts(self) -> list[int]:
        return [len(body["prompt"]) for body in self.bodies]

    def fail(self, *faults: int | str) -> None:
        self.faults.extend(faults)

    def start(self) -> None:
        self.connections: set[socket.socket] = set()
        self.stopped = Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Bound", (Handler,), {"stub": self}))
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "Stub":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.stopped.is_set():
            self.stop()

    def models(self) -> dict:
        card = {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "vllm"}
        return {
            "object": "list",
            "data": [card | {"root": self.name, "parent": None, "max_model_len": self.max_model_len}],
        }

    def check(self, body: dict) -> list[list[int]]:
        prompts, top, limit = body.get("prompt") or [], body.get("logprobs") or 0, self.max_model_len
        if isinstance(prompts, str):
            if self.tokenizer is None:
                raise Refused("This server takes token ids alone.", "prompt")
            prompts = [self.tokenizer.encode(prompts)]
        if body.get("model", self.name) != self.name:
            text = f"The model `{body['model']}` does not exist. Valid aliases: {self.name}."
            raise Refused(text, "model", 404, "NotFoundError")
        if self.by_ids and (named := body.get("logprob_token_ids")) is not None:
            if len(named) > 128:
                text = f"Requested logprob_token_ids of length {len(named)}, which is greater than max allowed: 128"
                raise Refused(text, "logprob_token_ids")
            if top != len(named):
                text = "When both logprobs and logprob_token_ids are set, logprobs must equal len(logprob_token_ids)."
                raise Refused(text, "logprob_token_ids")
            if any(not 0 <= i < self.model.config.vocab_size for i in named):
                raise Refused("token_id(s) in logprob_token_ids contain out-of-vocab token ids.", "logprob_token_ids")
        elif top > self.max_logprobs:
            text = f"Requested sample logprobs of {top}, which is greater than max allowed: {self.max_logprobs}"
            raise Refused(f"{text} (parameter=logprobs, value={top})", "logprobs")
        if not prompts:
            raise Refused("You must pass at least one prompt")
        for ids in prompts:
            if not ids:
                raise Refused("The decoder prompt cannot be empty")
            asked = body.get("max_tokens", 16)
            if len(ids) == limit:
                raise Refused("max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens")
            if len(ids) <= limit < len(ids) + asked:
                text = f"This model's maximum context length is {limit} tokens. However, you requested {asked} output"
                text += f" tokens and your prompt contains {len(ids)} input tokens, for a total of {len(ids) + asked}"
                raise Refused(f"{text} tokens. (parameter=input_tokens, value={len(ids)})", "input_tokens")
            if len(ids) > limit:
                text = (
                    f"This model's maximum context length is {limit} tokens. However, your prompt contains {len(ids)}"
                )
                text += (
                    " input tokens, which exceeds this limit even without any output tokens. Please reduce the length"
                )
                raise Refused(f"{text} of the input prompt. (parameter=input_tokens, value={len(ids)})", "input_tokens")
            if max(ids) >= self.model.config.vocab_size:
                raise Refused(f"Token id {max(ids)} is out of vocabulary")
        return prompts

    def spoil(self, value: dict, fault: int | str | None) -> None:
        """Make an answer one that is none."""
        for choice in value["choices"] if fault == "bare" else []:
            choice["logprobs"]["top_logprobs"] = None
        if fault in ODD:
            told = value["choices"][0]["logprobs"]["top_logprobs"][0]
            told[next(iter(told))] = ODD[fault]
        if fault == "deep":
            value["choices"] = functools.reduce(lambda inner, _: [inner], range(900), 1)

    @torch.inference_mode()
    def completions(self, body: dict, *, lost: bool = False) -> dict:
        prompts = self.check(body)
        choices = [self.begin(index, ids, body) for index, ids in enumerate(prompts)]
        rows = [list(ids) for ids in prompts]
        for _ in range(body.get("max_tokens", 16)):
            going = [i for i, choice in enumerate(choices) if choice["finish_reason"] != "stop"]
            if not going:
                break
            for i, logits in zip(going, self.logits([rows[i] for i in going]), strict=True):
                rows[i].append(self.say(choices[i], logits, body, lost=lost))
        read, said = sum(map(len, prompts)), sum(map(len, rows)) - sum(map(len, prompts))
        usage = {"prompt_tokens": read, "total_tokens": read + said, "completion_tokens": said}
        usage |= {"prompt_tokens_details": None, "completion_tokens_details": None}
        answer = {"id": "cmpl-0", "object": "text_completion", "created": int(time.time())}
        answer["model"] = self.answers_as or self.name
        answer |= {"choices": choices, "service_tier": None, "system_fingerprint": "stub", "usage": usage}
        return answer | {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def logits(self, rows: list[list[int]]) -> torch.Tensor:
        """After each of some texts, [R, V]; of equals once."""
        texts = list(dict.fromkeys(map(tuple, rows)))
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in texts], batch_first=True)
        last = torch.tensor([len(row) - 1 for row in texts])
        # No mask: no position looks to its right, where the padding is.
        logits = self.model(ids, use_cache=False).logits[torch.arange(len(texts)), last]
        return logits[[texts.index(tuple(row)) for row in rows]]

    def begin(self, index: int, ids: list[int], body: dict) -> dict:
        """A choice of which nothing is said yet."""
        echoed = ids if body.get("echo") else []
        lists = {"text_offset": [0] * len(echoed), "token_logprobs": [None] * len(echoed)}
        lists |= {"tokens": [f"token_id:{i}" for i in echoed], "top_logprobs": [None] * len(echoed)}
        choice = {"index": index, "text": "", "logprobs": lists, "finish_reason": "length", "stop_reason": None}
        return choice | {"token_ids": None, "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None}

    def warped(self, logits: torch.Tensor, body: dict) -> torch.Tensor:
        """Log-probs after temperature, top-k and top-p of logits [V]."""
        row = logits / (body.get("temperature", 1.0) or 1.0)
        if k := body.get("top_k", 0):
            row = row.masked_fill(row < row.topk(min(k, len(row))).values[-1], -torch.inf)
        if (p := body.get("top_p", 1.0)) < 1:
            values, ids = row.sort()
            last = values.softmax(-1).cumsum(-1) <= 1 - p
            last[-1] = False
            row = row.masked_fill(torch.zeros_like(last).scatter(0, ids, last), -torch.inf)
        return row.log_softmax(-1)

    def say(self, choice: dict, logits: torch.Tensor, body: dict, *, lost: bool = False) -> int:
        """The next token of a choice, of logits [V]. lost: its list of likeliest tokens is."""
        lists, warped = choice["logprobs"], self.warped(logits, body)
        token = int(torch.multinomial(warped.exp(), 1, generator=self.generator))
        token = token if body.get("temperature", 1.0) else int(logits.argmax())
        plain = self.logprobs_mode == "raw_logprobs" or not body.get("temperature", 1.0)
        row = logits.log_softmax(-1) if plain else warped
        named = body.get("logprob_token_ids") if self.by_ids else None
        ranked = row.topk(min(body.get("logprobs") or 0, self.tells)).indices.tolist() if named is None else named
        # The drawn one first, and then the others, which at most are as many as were asked for.
        top = {self.keys.format(i): max(row[i].item(), -9999.0) for i in [token, *ranked]}
        if named is None and lost:
            top = {self.keys.format(token): row[token].item(), self.keys.format(0): -9999.0}
        lists["top_logprobs"].append(top)
        lists["text_offset"].append(0)
        lists["token_logprobs"].append(row[token].item())
        lists["tokens"].append(f"token_id:{token}")
        if token in self.ends:
            choice |= {"finish_reason": "stop", "stop_reason": token if token in self.ends[1:] else None}
        return token


class Handler(BaseHTTPRequestHandler):
    stub: Stub
    protocol_version = "HTTP/1.1"  # a connection stays open
    disable_nagle_algorithm = True
    timeout = 5.0  # ... for as long as vLLM keeps one on which nothing is said

    def log_message(self, *arguments: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.stub.connections.add(self.connection)

    def finish(self) -> None:
        self.stub.connections.discard(self.connection)
        super().finish()

    def handle_one_request(self) -> None:
        self.close_connection = True  # should this end in an error: one of the two has gone
        with suppress(OSError):
            super().handle_one_request()

    def answer(self, value: dict, status: int = 200, fault: object = None) -> None:
        whole = json.dumps(value).encode()
        body = whole[: len(whole) // 2] if fault == "malformed" else whole
        if fault == "bomb":  # 200 MB of blanks in 200 kB
            body, whole = gzip.compress(whole + b" " * 200_000_000), whole
        if fault == "flood":
            body = whole + b" " * 50_000_000
        self.send_response(status)
        if fault == "bomb":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (429, 503) and self.stub.retry_after is not None:
            self.send_header("Retry-After", str(self.stub.retry_after))
        self.end_headers()
        if fault == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.stub.stopped.wait(0.1):
                    return
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
        self.close_connection |= fault == "drop"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        stub = self.stub
        if stub.key and self.headers["Authorization"] != f"Bearer {stub.key}":
            self.answer({"error": "Unauthorized"}, 401)
        elif self.path not in (stub.gets if self.command == "GET" else [stub.post]):
            self.answer({"detail": "Not Found"}, 404)
        elif self.command == "GET":
            self.answer(getattr(stub, stub.gets[self.path])())
        else:
            self.complete(json.loads(body))

    do_POST = do_GET

    def gone(self) -> bool:
        """Whether the client has closed the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def complete(self, body: dict) -> None:
        stub = self.stub
        with stub.counts:
            stub.bodies.append(body)
            fault = stub.faults.popleft() if stub.faults else None
            stub.in_flight += 1
            named = bool(body.get("logprob_token_ids"))
            stub.named += named
            lost = stub.named > 0 or (stub.stranger > 0 and not named)
            stub.stranger -= stub.stranger > 0 and not named
            stub.lost += lost and not named
            stub.peak = max(stub.peak, stub.in_flight)
        try:
            if isinstance(fault, int):
                raise Refused("The server was told to refuse this.", None, fault, "InternalServerError")
            if fault == "close":
                self.close_connection = True
                return
            if fault == "hang":
                stub.stopped.wait(stub.hang)
            with stub.forward:
                if self.gone():  # nobody waits for this any more; as vLLM, do not compute it while others do
                    return
                value = stub.completions(body, lost=lost)
            stub.spoil(value, fault)
            self.answer(value, fault=fault)
        except Refused as refused:
            self.answer(refused.body, refused.status)
        finally:
            with stub.counts:
                stub.in_flight -= 1
                stub.named -= named
