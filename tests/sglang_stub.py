"""A server on loopback that answers as SGLang 0.5.23's `/generate` does, held against the real one."""

import functools
import time
from typing import ClassVar

import torch
from stub import ODD, Refused, Stub


class SglangStub(Stub):
    """`with SglangStub(folder) as stub:` serves that model; see `Stub`.

    A fault "abort" is an answer of status 200 that broke off. died: an id or a number beyond the vocabulary has ended
    the server, as it does the real one. longest: the input length that is refused. `boost` is added to the first
    token's logit wherever a token is generated, as a server's preferred sampling parameters may.
    """

    gets: ClassVar = {"/v1/models": "models", "/model_info": "info", "/server_info": "server_info"}
    post = "/generate"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.died, self.longest, self.boost, self.truncates = False, self.max_model_len - 6, 0.0, False

    @property
    def chains(self) -> list[dict]:
        """The requests that were about ids."""
        return [body for body in self.bodies if "input_ids" in body]

    def models(self) -> dict:
        card = {"id": self.name, "object": "model", "created": int(time.time()), "owned_by": "sglang"}
        card |= {"root": self.name, "parent": None, "max_model_len": self.max_model_len}
        return {"object": "list", "data": [card, card | {"id": "an-adapter", "parent": self.name}]}

    def info(self) -> dict:
        return {"model_path": "/models/it", "tokenizer_path": "/models/it", "is_generation": True}

    def server_info(self) -> dict:
        return {"version": "0.5.23", "max_req_input_len": self.longest}

    def check(self, body: dict) -> list[list[int]]:
        limit, width = self.max_model_len, self.model.config.vocab_size
        if "text" in body:
            if self.tokenizer is None:
                raise Refused("The engine initialized with skip_tokenizer_init=True cannot accept text prompts.")
            return [self.tokenizer.encode(body["text"])]
        prompts = body["input_ids"]
        for ids, start in zip(prompts, body["logprob_start_len"], strict=True):
            most = body["sampling_params"]["max_new_tokens"] + len(ids)
            if len(ids) >= limit:
                raise Refused(
                    f"The input ({len(ids)} tokens) is longer than the model's context length ({limit} tokens)."
                )
            if most > limit:
                text = f"Requested token count exceeds the model's maximum context length of {limit} tokens. You "
                raise Refused(f"{text}requested a total of {most} tokens.")
            if len(ids) >= self.longest and not self.truncates:
                text = f"Input length ({len(ids)} tokens) exceeds the maximum allowed length ({self.longest} tokens)."
                raise Refused(f"{text} Use a shorter input or enable --allow-auto-truncate.")
            if start > len(ids):
                raise Refused(f"req.logprob_start_len={start} is higher than the number of input tokens")
            if max(ids) >= width or body["top_logprobs_num"] > width:
                self.died = True
        return [ids[: self.longest - 1] for ids in prompts] if self.truncates else prompts

    @torch.inference_mode()
    def completions(self, body: dict, *, lost: bool = False) -> list | dict:
        prompts = self.check(body)
        starts = body["logprob_start_len"] if "input_ids" in body else [body["logprob_start_len"]]
        given = body.get("token_ids_logprob") or [None] * len(prompts)
        made = [self.generate(*one, body) for one in zip(prompts, starts, given, strict=True)]
        return made if "input_ids" in body else made[0]

    def generate(self, ids: list[int], start: int, given: list[int] | None, body: dict) -> dict:
        top, count, said = body.get("top_logprobs_num") or 0, body["sampling_params"]["max_new_tokens"], list(ids)
        meta: dict = {"id": "0", "prompt_tokens": len(ids), "weight_version": "default"}
        logprobs = self.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        tokens = [[None, ids[start], None]]
        tokens += [[logprobs[at - 1, ids[at]].item(), ids[at], None] for at in range(start + 1, len(ids))]
        meta |= {"input_token_logprobs": tokens, "output_token_logprobs": [], "output_top_logprobs": []}
        meta["input_top_logprobs"] = [None, *(self.ranked(row, top) for row in logprobs[start : len(ids) - 1])]
        meta["finish_reason"] = {"type": "length", "length": count}
        while len(said) < len(ids) + count and said[-1:] != [meta["finish_reason"].get("matched")]:
            logits = self.model(torch.tensor([said]), use_cache=False).logits[0, -1]
            logits[0] += self.boost
            row = logits.log_softmax(-1)
            token = int(row.argmax())
            said.append(token)
            meta["output_token_logprobs"].append([row[token].item(), token, None])
            meta["output_top_logprobs"].append(self.ranked(row, top))
            if given is not None:
                told = meta.setdefault("output_token_ids_logprobs", [])
                told.append([[row[i].item(), i, None] for i in given])
            if token in self.ends:
                meta["finish_reason"] = {"type": "stop", "matched": token}
        return {"text": "", "output_ids": said[len(ids) :], "meta_info": meta}

    def ranked(self, row: torch.Tensor, top: int) -> list[list]:
        best = row.topk(min(top, len(row), self.tells))
        return [[v, i, None] for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def spoil(self, value: list | dict, fault: int | str | None) -> None:
        meta = value[0]["meta_info"] if isinstance(value, list) else value["meta_info"]
        if fault == "abort":
            meta["finish_reason"] = {"type": "abort", "message": "Abort in waiting queue"}
        if fault == "bare":
            meta["output_top_logprobs"] = []
        if fault in ODD:  # null alone is minus infinity
            meta["output_top_logprobs"][0] = [[ODD[fault], i, None] for _, i, _ in meta["output_top_logprobs"][0]]
        if fault == "deep":
            meta["output_top_logprobs"] = functools.reduce(lambda inner, _: [inner], range(900), 1)
