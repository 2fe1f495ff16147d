"""Devices that are not there: tensors on a CPU that say they are on a GPU, and fail where they meet one that is not.

What a machine with several GPUs would refuse is refused; what it would allow is computed on the CPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

CPU = torch.device("cpu")


class Devices(TorchFunctionMode):
    """Meanwhile `put` says where a model is, and tensors are where those are that they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.where: Any = WeakIdKeyDictionary()
        self.seen: set[str] = set()

    def put(self, module: torch.nn.Module, device: str) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            self.where[tensor] = torch.device(device)

    def of(self, tensor: Tensor) -> torch.device:
        return self.where.get(tensor, CPU)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return self.of(args[0])
        if name in ("to", "cpu"):
            return self._moved(func, name, args, kwargs)
        given = kwargs.pop("device", None)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if name == "numpy" and self.of(args[0]) != CPU:
            raise TypeError(f"numpy of a tensor on {self.of(args[0])}")
        if name == "__getitem__":  # an index may be on the CPU
            tensors = [args[0], *(t for t in tensors[1:] if self.of(t) != CPU)]
        places = {self.of(t) for t in tensors if t.dim() or self.of(t) != CPU} or {CPU}
        if len(places) > 1 and name != "copy_":
            raise RuntimeError(f"{name}: tensors on {sorted(map(str, places))}")
        place = self.of(tensors[0]) if name == "copy_" else places.pop()
        return self._placed(func(*args, **kwargs), place if given is None else torch.device(given))

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        tensor, place, rest = args[0], self.of(args[0]), []
        for x in (*args[1:], *([kwargs.pop("device")] if "device" in kwargs else [])):
            if isinstance(x, Tensor):
                place = self.of(x)
                rest.append(x.dtype)
            elif isinstance(x, str | torch.device):
                place = torch.device(x)
            elif x is not None:
                rest.append(x)
        if name == "cpu":
            place = CPU
        kwargs.pop("non_blocking", None)
        made = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        return self._placed(made.clone() if made is tensor and place != self.of(tensor) else made, place)

    def _placed(self, made: Any, place: torch.device) -> Any:
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, Tensor):
                self.where[tensor] = place
                self.seen.add(str(place))
        return made


def spread(model: PreTrainedModel, devices: Devices, first: str, second: str) -> None:
    """Its first layer and the embedding on one device, all else on another, with accelerate's hooks between them."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    devices.put(model, second)
    core, skip = model.model, model._skip_keys_device_placement
    for module in (core.embed_tokens, core.layers[0], core.rotary_emb):
        devices.put(module, first)
    blocks = [(core.embed_tokens, first), (core.layers[0], first), (core.rotary_emb, first)]
    blocks += [(module, second) for module in (*core.layers[1:], core.norm)]
    tied = model.lm_head.weight is core.embed_tokens.weight
    blocks.append((model.lm_head, first if tied else second))
    for module, device in blocks:
        add_hook_to_module(module, Carry(device, skip))
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True, skip_keys=skip))


def Carry(device: str, skip: Any) -> Any:
    """accelerate's hook, which would also move the module's weights to a device that is not there."""
    from accelerate.hooks import AlignDevicesHook

    hook = AlignDevicesHook(device, skip_keys=skip)
    hook.init_hook = lambda module: module
    return hook
