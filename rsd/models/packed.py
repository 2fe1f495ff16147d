"""Linear layers of a CPU model with their weights in oneDNN's blocked layout.

torch's own fp32 product reads a weight matrix at a fraction of the memory's speed when there are 2 to 16
rows to multiply, which is what a block of drafts has: a pass over eight columns then costs twice the pass
over one, where it should cost the same. The blocked layout does not have that step (bench/README.md).
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LEAST = 100_000  # weights below which a layer is all call overhead and stays as it is


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU in fp32; holds the packed weight alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 8)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")


@torch.no_grad()
def pack(model: PreTrainedModel) -> None:
    """Replace the linear layers of a model in place, where oneDNN is there and they are fp32 on a CPU."""
    if not torch.backends.mkldnn.is_available():
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.numel() >= LEAST:
                weight = child.weight
                if weight.dtype == torch.float32 and weight.device.type == "cpu":
                    setattr(parent, name, PackedLinear(child))
