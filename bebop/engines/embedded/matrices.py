"""Products with weight matrices where few rows come at a time, as they do in decoding on a CPU.

PyTorch's product arranges the weights anew at every call, which with few rows costs more than the product. A
``Matrix`` holds a copy arranged once: matrices that read the same input side by side in one, transposed; or in oneDNN's
own layout, where it pays: in float32 for large ones (up to twice as fast from 2 to 32 rows, with a fixed cost per
call), in bfloat16 for all.

Legend: N rows, I inputs, O outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

_MIN_PACKED = 1 << 19
"""float32 elements from which oneDNN's layout gains more than its calls cost (on Zen 3 885,000 gain, 262,000 lose)."""

Arrange = Callable[[list[Tensor]], Tensor]
"""One tensor out of the weights [O, I] of several modules, or out of their biases [O]."""


class Matrix:
    """x W^T + b of one linear module, or of several side by side."""

    def __init__(self, *modules: nn.Module, arrange: Arrange = torch.cat) -> None:
        self._modules = modules
        self._arrange = arrange
        self._seen: list[tuple[int, int]] | None = None
        self._weight = torch.empty(0)
        self._bias: Tensor | None = None
        self._is_packed = False
        self.refresh()

    def refresh(self) -> None:
        """Take over the modules' tensors where they changed since."""
        weights = [_parameter(module, "weight") for module in self._modules]
        biases = [_parameter(module, "bias") for module in self._modules]
        tensors = [tensor for tensor in (*weights, *biases) if tensor is not None]
        # Tensors made in inference mode do not count their changes.
        changes = None if any(t.is_inference() for t in tensors) else [(t.data_ptr(), t._version) for t in tensors]
        if changes is not None and changes == self._seen:
            return
        self._seen = changes
        weight_OI = self._arrange([weight for weight in weights if weight is not None])
        self._is_packed = _can_pack(weight_OI)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI) if self._is_packed else _transposed(weight_OI)
        self._bias = None
        if any(bias is not None for bias in biases):
            pairs = zip(biases, weights, strict=True)
            self._bias = self._arrange([w.new_zeros(len(w)) if b is None else b for b, w in pairs if w is not None])

    def __call__(self, x_NI: Tensor) -> Tensor:
        """[N, O]."""
        if self._is_packed:
            return torch.ops.mkldnn._linear_pointwise(x_NI, self._weight, self._bias, "none", [], "")
        if self._bias is None:
            return torch.mm(x_NI, self._weight)
        return torch.addmm(self._bias, x_NI, self._weight)

    def onto(self, sum_NO: Tensor, x_NI: Tensor) -> Tensor:
        """The product added to ``sum_NO``, which stays as it is; in float32 if that is."""
        if self._is_packed:
            return sum_NO + self(x_NI)
        return torch.addmm(sum_NO if self._bias is None else sum_NO + self._bias, x_NI, self._weight)


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    parameter = getattr(module, name, None)
    return None if parameter is None else parameter.detach()


def _transposed(weight_OI: Tensor) -> Tensor:
    return weight_OI.t().contiguous()


def packs_bfloat16(device: torch.device) -> bool:
    """Whether oneDNN's layout is there for bfloat16."""
    return _has_packing(device) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _can_pack(weight_OI: Tensor) -> bool:
    """Whether this build of PyTorch packs it, and it pays."""
    if weight_OI.dtype == torch.bfloat16:
        return packs_bfloat16(weight_OI.device)
    is_large = weight_OI.numel() >= _MIN_PACKED
    return weight_OI.dtype == torch.float32 and is_large and _has_packing(weight_OI.device)


def _has_packing(device: torch.device) -> bool:
    is_built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return is_built and device.type == "cpu"
