"""A frozen layer that is adapted: how it applies its weight, and the weight itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import FormatError

LayerKind = Literal["linear", "conv2d", "layer_norm", "group_norm"]


@dataclass(frozen=True, kw_only=True)
class Op:
    """How the adapted module applies its weight."""

    kind: LayerKind
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    num_groups: int = 1
    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One frozen layer.

    Attributes:
        op: how it applies its weight.
        module: holds weight and bias; read at every use, because a model may be moved.
        stem: its name in a LoRA file.
        plain: whether the layer's forward is torch's own, so that it may be replaced as a whole.
    """

    op: Op
    module: nn.Module
    stem: str = ""
    plain: bool = False
    _kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def weight(self) -> Tensor:
        """The frozen weight."""
        weight = self.module.weight
        if not isinstance(weight, Tensor):
            raise FormatError(f"the module '{self.stem}' ({type(self.module).__name__}) has no weight to adapt")
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, or None."""
        bias = self.module.bias
        return bias.detach() if isinstance(bias, Tensor) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: [out, in], [out, in, kernel, kernel], or [channels] of a norm."""
        return tuple(self.weight.shape)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's output for `x` with another weight."""
        op = self.op
        if op.kind == "linear":
            return F.linear(x, weight, bias)
        if op.kind == "conv2d":
            return F.conv2d(x, weight, bias, op.stride, op.padding, op.dilation)
        if op.kind == "layer_norm":
            return F.layer_norm(x, tuple(weight.shape), weight, bias, op.eps)
        return F.group_norm(x, op.num_groups, weight, bias, op.eps)

    def over_channels(self, values: Tensor) -> Tensor:
        """[channels] in the shape that multiplies the layer's input or output."""
        return values.view(1, -1, 1, 1) if self.op.kind in ("conv2d", "group_norm") else values

    def once(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """A value made from the weight, kept until the weight is another tensor (a moved model)."""
        weight = self.weight
        kept = self._kept.get(name)
        if kept is None or kept[0].data_ptr() != weight.data_ptr() or kept[0].device != weight.device:
            with torch.no_grad():
                kept = (weight, make(weight))
            self._kept[name] = kept
        return kept[1]

    def in_full_precision(self, x: Tensor) -> bool:
        """Whether weight and input are fp32 and nothing casts them on the way."""
        return x.dtype == torch.float32 == self.weight.dtype and not autocasting(x.device)


def autocasting(device: torch.device) -> bool:
    """Whether autocast is on for a device; torch before 2.4 asks per kind."""
    try:
        return bool(torch.is_autocast_enabled(device.type))
    except TypeError:
        return bool(torch.is_autocast_cpu_enabled() if device.type == "cpu" else torch.is_autocast_enabled())


def layer_of(module: nn.Module, *, stem: str = "") -> Layer:
    """Describes a module.

    Raises:
        FormatError: the module is of another kind, has no weight, or is a grouped or string-padded convolution.
    """
    plain = "forward" not in module.__dict__ and type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)
    layer = Layer(op=op_of(module), module=module, stem=stem, plain=plain)
    if len(layer.shape) < 1:
        raise FormatError(f"the module '{stem}' has a weight without axes")
    return layer


def op_of(module: nn.Module) -> Op:
    """How `module` (linear, 2-D convolution, layer or group norm) applies its weight.

    Raises:
        FormatError: the module is of another kind, or a grouped or string-padded convolution.
    """
    if isinstance(module, nn.Linear):
        return Op(kind="linear")
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return Op(kind="layer_norm", eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return Op(kind="group_norm", num_groups=module.num_groups, eps=module.eps)
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        return Op(
            kind="conv2d",
            stride=(module.stride[0], module.stride[1]),
            padding=(module.padding[0], module.padding[1]),
            dilation=(module.dilation[0], module.dilation[1]),
        )
    raise FormatError(
        f"a network can be attached to linear and ungrouped 2-D convolution layers and to norms, not to "
        f"{type(module).__name__}"
    )
