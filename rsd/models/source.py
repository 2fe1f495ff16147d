"""One model of a pair, read but for its weights: how it reads a prompt, what ends its texts, what identifies it."""

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rsd.models import kv_cache
from rsd.models.adapters import Adapter
from rsd.models.fingerprint import fingerprint
from rsd.models.limits import chat_template, in_time
from rsd.settings import called

# The beginning of a thought, or a whole and empty one, that a chat template's prompt ends in.
THOUGHT = re.compile(r"(?:<think>\s*)?(?:</think>\s*)?\Z")
# Templates that print the day's date (`strftime_now`) print this one, which Llama's falls back on: the same rows must
# follow from the same command on any day. The chat template argument of this name, an ISO date, gives another.
DATE, TODAY = datetime.date(2024, 7, 26), "strftime_now"


@dataclass(frozen=True, eq=False)
class Source:
    """Where one model comes from, read but for its weights.

    name: as the user gave it. path: the directory, the GGUF file, or the Hub id. revision: the commit of a
        Hub model, else None. adapter: what is merged into the weights; the tokenizer is the
        adapter's if it has one, and all else is the base's. load_in: how the weights are quantised. by_ids: what a
        served model's server tells of tokens that it is asked for by their ids, if it does (`serving.told.Api`).
        servers: those that have it, if it is served, the ones first that were there.
    """

    role: str
    name: str
    path: str
    revision: str | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig
    adapter: Adapter | None = None
    load_in: str | None = None
    by_ids: str | None = None
    servers: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The name without the adapter's."""
        return self.name.removesuffix(f"+{self.adapter.name}") if self.adapter else self.name

    @property
    def label(self) -> str:
        """The name, of directories their last part: a path says more of a machine than of a model."""
        names = [self.base, self.adapter.name] if self.adapter else [self.base]
        return "+".join(Path(name).name if Path(name).exists() else name for name in names)

    @property
    def width(self) -> int:
        return self.adapter.width if self.adapter else int(self.config.get_text_config().vocab_size)

    @property
    def context(self) -> int:
        return kv_cache.context(self.config)

    @cached_property
    def ends(self) -> list[int]:
        """All ids that end a text, the usual one first: what the generation config names, or else the config, and
        the tokenizer's."""
        own, named = self.tokenizer.eos_token_id, self.generation.eos_token_id
        if named is None:
            named = self.config.get_text_config().eos_token_id
        several = list(named) if isinstance(named, list | tuple) else [named]
        ids = [*sorted(several, key=lambda i: i != own), own]
        ids = list(dict.fromkeys(i for i in ids if isinstance(i, int) and 0 <= i < self.width))
        if not ids:
            raise ValueError(
                f"the {self.role} {self.name} names no EOS token: add eos_token_id to its generation config"
            )
        return ids

    @property
    def eos(self) -> set[int]:
        return set(self.ends)

    @property
    def dated(self) -> bool:
        """The chat template prints the day's date."""
        return TODAY in str(self.tokenizer.chat_template)

    def prompt_ids(
        self, messages: list[dict[str, str]], template_kwargs: Mapping[str, Any], *, thought: str | None = None
    ) -> list[int]:
        """The prompt as this model reads it before it answers, by its chat template.

        Args:
            thought: what the prompt is to end in, in place of what the template leaves of a thought there.

        Raises:
            ValueError: the tokenizer has no chat template for these messages, or no tokens for them.
        """
        if self.tokenizer.chat_template is None:
            if [m["role"] for m in messages] != ["user"]:
                raise ValueError(f"the {self.role}'s tokenizer has no chat template: only a plain prompt can be read")
            text = messages[0]["content"]
            text = text if thought is None else THOUGHT.sub("", text, 1) + thought
            self.check_length(text)
            ids = self.tokenizer.encode(text)
        else:
            text = self._apply(messages, template_kwargs, add_generation_prompt=True)
            text = text if thought is None else THOUGHT.sub("", text, 1) + thought
            self.check_length(text)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise ValueError(f"the prompt has no tokens for the {self.role}")
        return list(ids)

    def thought(self, ids: list[int]) -> str:
        """What the prompt of these ids leaves of a thought at its end: `<think>` and a line break, or nothing."""
        tail = str(self.tokenizer.decode(ids[-32:], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return THOUGHT.search(tail)[0]  # type: ignore[index]  # it may be empty

    def training_ids(
        self, messages: list[dict[str, str]], answer: str, template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        """Prompt and answer as a trainer makes them of text: by the chat template, else one after the other."""
        if self.tokenizer.chat_template is None:
            ids = self.prompt_ids(messages, template_kwargs) + self.tokenizer.encode(answer, add_special_tokens=False)
            return [*ids, self.tokenizer.eos_token_id]
        text = self._apply([*messages, {"role": "assistant", "content": answer}], template_kwargs)
        self.check_length(text)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def check_length(self, text: str, what: str = "the prompt has") -> None:
        """Refuse a text that is far too long for the context, without tokenizing all of it.

        Its beginning alone must have twice as many tokens as the context holds: where it is cut, only the
        tokens nearby may be others, so that no text that fits is refused.

        Raises:
            ValueError: it is too long.
        """
        size = max(1024, 8 * self.context)
        while size < len(text):
            if len(self.tokenizer.encode(text[:size], add_special_tokens=False)) > 2 * self.context:
                raise ValueError(
                    f"{what} more than {2 * self.context} tokens and the {self.role}'s context {self.context}: "
                    "there is no room for a trace"
                )
            size *= 2

    def _apply(self, messages: list[dict[str, str]], template_kwargs: Mapping[str, Any], **how: Any) -> str:
        """The text that the chat template makes of messages. Raises ValueError."""
        kwargs = dict(template_kwargs)
        date = kwargs.pop(TODAY, None)
        try:
            template = self.tokenizer.get_chat_template()
            if self.dated:
                template = _dated(DATE if date is None else datetime.date.fromisoformat(date)) + template
            # As `apply_chat_template` does, which compiles templates without bounds.
            given = {"tools": None, "documents": None, "add_generation_prompt": False, **how}
            given |= {**self.tokenizer.special_tokens_map, **kwargs}
            with in_time():
                return chat_template(template).render(messages=messages, **given)
        except Exception as e:  # a template is a program
            system = messages[0]["role"] == "system"
            way_out = f"; if it takes no system message, leave {called('system_prompt')} out" if system else ""
            said = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
            raise ValueError(f"the {self.role}'s chat template refuses the prompt: {said}{way_out}") from e

    def fingerprint(self) -> str:
        """What identifies the model: base, adapter, and how its weights are quantised."""
        text = fingerprint(self.path) if os.path.exists(self.path) else f"{self.base}@{self.revision}"
        if one := self.adapter:
            text += f"+{one.name}@{one.revision}" if one.revision else f"+{fingerprint(one.path)}"
        return f"{text} in {self.load_in}" if self.load_in else text


def _dated(date: datetime.date) -> str:
    """A macro for the head of a template: `strftime_now` of this day's midnight.

    Templates see no functions of a caller's, so that it puts in what each directive comes to.
    """
    midnight = datetime.datetime.combine(date, datetime.time())
    puts = {f"%{d}": midnight.strftime(f"%{d}") for d in "aAbBdHIjmMpSyY"}
    puts |= {"%-d": str(date.day), "%e": f"{date.day:2}", "%-m": str(date.month), "%F": date.isoformat()}
    replaced = "".join(f".replace('{directive}', '{text}')" for directive, text in puts.items())
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}"
