"""One teacher held by several processes, a part of every layer each (transformers' tensor parallelism).

The first process of such a group, its lead, runs the engine and writes the files; it alone has a student, and decides
all that depends on time or on free memory. The others follow: they are told what the lead's model is to read and what
becomes of its cache, and do the same with theirs, so that all take part in every pass.
"""

import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from rsd.models.kv_cache import CachedModel, TreeMask
from rsd.models.room import out_of_memory
from rsd.models.source import Source
from rsd.settings import called

FOREVER = timedelta(days=365)  # for which a process may have nothing to do: another group has more rows


class Broken(ConnectionError):
    """A pass that several processes make together has failed in one of them."""


class Group:
    """The neighbouring processes of a launch that hold one teacher. `with Group(...)`: in the end all are let go.

    Of processes 0 to 7 and groups of 4, process 5 is number 1 of the second one.

    Raises:
        ValueError: this process is of no launch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        store, rank, _ = next(distributed.rendezvous("env://"))
        self.number = rank % size
        # Each group is a world of its own, which is what transformers divides a model among.
        own = distributed.PrefixStore(f"rsd/teacher/{rank // size}", store)
        distributed.init_process_group(store=own, rank=self.number, world_size=size, timeout=FOREVER)
        self.models = 0
        self.gone: list[int] = []  # models of which the others do not know yet that they are gone

    @property
    def leads(self) -> bool:
        return self.number == 0

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and (not issubclass(kind, Exception | SystemExit) or issubclass(kind, Broken)):
            return  # in the midst of a pass, maybe: the others end when their connections do
        if self.leads:
            with suppress(Broken):  # all is done, whoever is gone by now
                self.tell("end")
        distributed.destroy_process_group()

    def tell(self, what: str, *args: Any) -> None:
        """Have the others do something, at once."""
        gone, self.gone = self.gone, []
        self._share([(what, args, gone)])

    def hear(self) -> tuple[str, tuple[Any, ...], list[int]]:
        """What the lead tells next."""
        return self._share([None])[0]

    def _share(self, what: list[Any]) -> Any:
        with together():
            distributed.broadcast_object_list(what, src=0, device=torch.device("cpu"))
        return what


@contextmanager
def together() -> Iterator[None]:
    """What all processes of a group do at the same time: whatever fails in it cannot be made up for.

    Raises:
        Broken: something did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        said = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
        if out_of_memory(e):
            said = f"out of memory: take a smaller {called('batch_size')}"
        elif "onnection" in said or "peer" in said:
            said = "one of them is gone"
        raise Broken(f"the processes that hold the teacher: {said}") from e


def check(source: Source, size: int) -> None:
    """Refuse a teacher that cannot be divided among `size` processes.

    Raises:
        ValueError: its heads are no multiple of that, transformers does not say how to divide it, or its weights are
            in a form that cannot be divided.
    """
    config, name = source.config.get_text_config(), f"{called('teacher')} {source.name}"
    if not getattr(config, "base_model_tp_plan", None):
        without = f"leave {called('tensor_parallel')} out"
        raise ValueError(f"{name}: transformers has no plan to divide a {config.model_type}: {without}")
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if any(n % size for n in heads):
        several = f"{called('tensor_parallel')} {size}"
        raise ValueError(f"{name}: its {heads[0]} heads ({heads[1]} of keys) are no multiple of {several}")
    if source.adapter or source.path.endswith(".gguf") or getattr(source.config, "quantization_config", None):
        raise ValueError(f"{name}: a GGUF file, an adapter or quantised weights cannot be divided: save whole weights")


class Led(CachedModel):
    """The lead's model: what it reads, the others read."""

    def __init__(self, model: PreTrainedModel, rows: int, group: Group, *, pooled: bool) -> None:
        super().__init__(model, rows, pooled=pooled)
        self.group, self.name = group, group.models
        group.models += 1
        group.tell("model", self.name, rows, pooled)
        weakref.finalize(self, group.gone.append, self.name)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        reach: np.ndarray,
        *,
        last_only: bool = False,
        tree: TreeMask | None = None,
        rows: Sequence[int] | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        tensors = torch.stack([ids, positions, *(tree or ())]).cpu().numpy()
        self.group.tell("read", self.name, tensors, reach, last_only, rows, counts)
        with together():
            return super().__call__(ids, positions, reach, last_only=last_only, tree=tree, rows=rows, counts=counts)

    def copy_row(self, source: CachedModel, row: int, to: int, *, length: int) -> None:
        self.group.tell("copy", self.name, source.name, row, to, length)  # type: ignore[attr-defined]
        super().copy_row(source, row, to, length=length)

    def move_row(self, row: int, to: int) -> None:
        self.group.tell("move", self.name, row, to)
        super().move_row(row, to)

    def drop_row(self, row: int) -> None:
        self.group.tell("drop row", self.name, row)
        super().drop_row(row)

    def drop(self, rows: int) -> None:
        self.group.tell("drop", self.name, rows)
        super().drop(rows)

    def another(self, rows: int) -> "Led":
        return Led(self.model, rows, self.group, pooled=False)


@torch.inference_mode()
def follow(group: Group, load: Callable[[], PreTrainedModel]) -> None:
    """Do what the lead does, until it ends. load: the teacher, when the lead loads it."""
    models: dict[int, CachedModel] = {}
    while True:
        try:
            what, args, gone = group.hear()
        except Broken:  # the lead is gone, and has said why
            sys.exit(1)
        for name in gone:
            models.pop(name, None)
        if what == "end":
            return
        if what == "load":
            model = load()
        elif what == "model":
            name, rows, pooled = args
            models[name] = CachedModel(model, rows, pooled=pooled)
        elif what == "read":
            name, tensors, reach, last_only, some, counts = args
            ids, positions, *tree = torch.from_numpy(tensors).to(models[name].device)
            mask = TreeMask(*tree) if tree else None
            with together():
                models[name](ids, positions, reach, last_only=last_only, tree=mask, rows=some, counts=counts)
        elif what == "copy":
            name, source, row, to, length = args
            models[name].copy_row(models[source], row, to, length=length)
        elif what == "move":
            name, row, to = args
            models[name].move_row(row, to)
        elif what == "drop row":
            name, row = args
            models[name].drop_row(row)
        else:
            name, rows = args
            models[name].drop(rows)
