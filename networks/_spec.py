"""What an adapter algorithm is: a name, its parameters and four pure functions over named parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.discovery import discover
from ..core.errors import FormatError, unknown_name
from ..core.params import Params

Parts = Mapping[str, Tensor]
"""The tensors of one adapted module, named as in the file (`lora_down.weight`, `lora_up.weight`, ...)."""


class Init(Protocol):
    """Makes the parts of one adapted module, fp32 on the CPU."""

    def __call__(
        self, weight_shape: Sequence[int], *, params: Any, generator: torch.Generator
    ) -> dict[str, Tensor]: ...


class Forward(Protocol):
    """Adds the adapter's output for `x` to the base module's output `y`, without building the full delta.

    `y` is not used afterwards and may be changed in place where it is not a view.
    """

    def __call__(
        self, x: Tensor, y: Tensor, parts: Parts, *, params: Any, scale: float, op: Op, training: bool
    ) -> Tensor: ...


class Delta(Protocol):
    """Builds the full weight change, fp32, of `weight_shape`; `alpha` None means that the file names none."""

    def __call__(self, parts: Parts, *, alpha: float | None, weight_shape: Sequence[int] | None) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Op:
    """How the adapted module applies its weight."""

    kind: Literal["linear", "conv2d"]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One adapter algorithm.

    Attributes:
        name: key and file name, e.g. `lora`.
        summary: one line for a tooltip.
        source: paper and equation, or the tool whose format it is.
        params: the parameter dataclass.
        part_names: every tensor name a module of this network may have in a file, without `alpha`.
        required_parts: the names by which a module in a file is recognised as this network's.
        init, forward, delta: the maths, see the protocols above.
        alpha, rank: read from the parameters; the scale of a module is alpha / rank.
    """

    name: str
    summary: str
    source: str
    params: type[Params]
    part_names: tuple[str, ...]
    required_parts: tuple[str, ...]
    init: Init
    forward: Forward
    delta: Delta
    alpha: Callable[[Any], float]
    rank: Callable[[Any], int]

    def scale(self, params: Any) -> float:
        """The factor on the product of the parts, alpha / rank."""
        return self.alpha(params) / self.rank(params)


@lru_cache(maxsize=1)
def networks() -> dict[str, Network]:
    """Every network of this folder by name."""
    return discover(__package__, "NETWORK")


def get_network(name: str) -> Network:
    """The network called `name`.

    Raises:
        UnknownNameError: there is none; the nearest names are listed.
    """
    found = networks()
    if name not in found:
        raise unknown_name("network", name, found)
    return found[name]


def network_of_parts(parts: Parts, *, stem: str = "") -> Network:
    """The network whose required parts are all present.

    Raises:
        FormatError: no known network has these parts.
    """
    for network in networks().values():
        if all(name in parts for name in network.required_parts):
            return network
    raise FormatError(
        f"the module '{stem}' of the LoRA file holds {', '.join(sorted(parts)) or 'nothing'}, which is none of the "
        f"known networks ({', '.join(networks())}); convert the file to one of them first"
    )


def op_of(module: nn.Module) -> Op:
    """How `module` (nn.Linear or nn.Conv2d) applies its weight.

    Raises:
        FormatError: the module is of another kind, or a grouped or string-padded convolution.
    """
    if isinstance(module, nn.Linear):
        return Op(kind="linear")
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        return Op(
            kind="conv2d",
            stride=(module.stride[0], module.stride[1]),
            padding=(module.padding[0], module.padding[1]),
            dilation=(module.dilation[0], module.dilation[1]),
        )
    raise FormatError(
        f"a network can be attached to linear and ungrouped 2-D convolution layers, not to {type(module).__name__}"
    )
