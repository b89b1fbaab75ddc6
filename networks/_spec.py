"""What an adapter algorithm is: a name, its parameters and a few pure functions over named parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.discovery import discover
from ..core.errors import FormatError, unknown_name
from ..core.params import Params
from ._layer import Layer

Parts = Mapping[str, Tensor]
"""The tensors of one adapted module, named as in the file (`lora_down.weight`, `lora_up.weight`, ...)."""

Base = Callable[[Tensor], Tensor]
"""The frozen module's own forward."""

CONVENTIONAL_GROUPS = ("attention", "feed-forward", "projections")
"""What kohya's scripts train by default: the transformers, and the text encoder's layers."""
CONVOLUTION_GROUPS = ("resnets", "samplers")
"""What a second rank for 3x3 convolutions adds to it (LoCon)."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the adapter of one module is, and how its change is scaled.

    Attributes:
        rank: of the module; 1 for networks without one.
        alpha: as it is written to the file, so that every loader's alpha / rank is the scale; None writes none.
    """

    rank: int
    alpha: float | None

    @property
    def scale(self) -> float:
        """The factor on the product of the parts, alpha / rank; 1 without alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Sizing(Protocol):
    """Chooses the size of one module's adapter; `rank` and `alpha` override the parameters' own."""

    def __call__(
        self, params: Any, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
    ) -> Size: ...


class Init(Protocol):
    """Makes the trained parts of one module, fp32 on the CPU, such that the module's output does not change."""

    def __call__(self, layer: Layer, *, params: Any, size: Size, generator: torch.Generator) -> dict[str, Tensor]: ...


class Forward(Protocol):
    """The adapted module's output for `x`, without building the full weight change where that can be avoided.

    `base` is the frozen module's own forward. Its result is not used afterwards and may be changed in place where it
    is not a view.
    """

    def __call__(
        self, x: Tensor, base: Base, parts: Parts, *, params: Any, scale: float, layer: Layer, training: bool
    ) -> Tensor: ...


class Delta(Protocol):
    """Builds the full weight change, fp32, of `weight_shape`.

    `alpha` None means that the file names none; `weight` is the base weight, for networks that change it relatively.
    """

    def __call__(
        self, parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
    ) -> Tensor: ...


class ToFile(Protocol):
    """The parts as the file has them, from the trained ones."""

    def __call__(self, parts: Parts, *, layer: Layer, size: Size) -> dict[str, Tensor]: ...


class FromFile(Protocol):
    """The trained parts from a file's; the reverse of `ToFile`, for files of other tools too."""

    def __call__(self, parts: Parts, *, layer: Layer) -> dict[str, Tensor]: ...


class Unchanged(Protocol):
    """Whether the parts change nothing, as a 0-d bool tensor on their device."""

    def __call__(self, parts: Parts, *, layer: Layer) -> Tensor: ...


class Shrink(Protocol):
    """Shortens the change to a Frobenius norm of at most `max_norm`, in place and without waiting for the device."""

    def __call__(self, parts: Parts, *, scale: float, max_norm: float) -> None: ...


def same_parts(parts: Parts, *, layer: Layer, size: Size | None = None) -> dict[str, Tensor]:
    """For networks whose trained parts are those of the file."""
    return dict(parts)


def own_shapes(parts: Parts, layer: Layer) -> dict[str, tuple[int, ...]]:
    """For networks whose files have one form."""
    return {}


def any_part_zero(parts: Parts, *, layer: Layer) -> Tensor:
    """For products: one factor of zeros makes the whole change zero."""
    return torch.stack([(part.detach() == 0).all() for part in parts.values()]).any()


def every_part_zero(parts: Parts, *, layer: Layer) -> Tensor:
    """For sums: the change is zero when every part is."""
    return torch.stack([(part.detach() == 0).all() for part in parts.values()]).all()


def no_bias_delta(parts: Parts) -> Tensor | None:
    """For networks that leave the bias alone."""
    return None


@dataclass(frozen=True, kw_only=True)
class Network:
    """One adapter algorithm.

    Attributes:
        name: key and file name, e.g. `lora`.
        title: as people write it, e.g. `LoRA`.
        summary: one line for a tooltip.
        source: paper and equation, or the tool whose format it is.
        params: the parameter dataclass.
        part_names: every tensor name a module of this network may have in a file, without `alpha`.
        required_parts: the names by which a module in a file is recognised as this network's; of several sets the
            first that is whole counts.
        init, forward, delta, size: the maths, see the protocols above.
        rank, alpha: read from the parameters, for names and metadata; None where the network has none.
        rank_of: the rank of a module of a file, None where its scale does not depend on one.
        bias_delta: the change of the bias, fp32, or None.
        to_file, from_file: between the trained parts and those of the file.
        natural_shapes: the shapes that `forward` expects of parts which a file may hold as matrices.
        unchanged: whether a module's parts still change nothing.
        shrink: limits the norm of the change after an update; None where that has no meaning.
        adapts: the kinds of layers it can be put on.
        groups: the module groups that are trained when the targets name none.
        include: patterns of those modules; used together with groups.
        up_parts: the parts that LoRA+ trains at a higher rate.
        fp32_parts: parts that a file always holds in fp32, because they carry the base weight's own size.
        relative: whether the change depends on the base weight.
        strength_power: ComfyUI multiplies the change by the strength to this power.
        module: `ss_network_module` of the metadata.
        algo: `algo` in `ss_network_args`, "" for networks of kohya's own.
    """

    name: str
    title: str
    summary: str
    source: str
    params: type[Params]
    part_names: tuple[str, ...]
    required_parts: tuple[tuple[str, ...], ...]
    init: Init
    forward: Forward
    delta: Delta
    size: Sizing
    rank: Callable[[Any], int | None]
    alpha: Callable[[Any], float | None]
    rank_of: Callable[[Parts], int | None] = lambda parts: None
    bias_delta: Callable[[Parts], Tensor | None] = no_bias_delta
    to_file: ToFile = same_parts
    from_file: FromFile = same_parts
    natural_shapes: Callable[[Parts, Layer], Mapping[str, tuple[int, ...]]] = own_shapes
    unchanged: Unchanged = any_part_zero
    shrink: Shrink | None = None
    adapts: tuple[str, ...] = ("linear", "conv2d")
    groups: Callable[[Any], tuple[str, ...]] = lambda params: CONVENTIONAL_GROUPS
    include: tuple[str, ...] = ()
    up_parts: tuple[str, ...] = ()
    fp32_parts: tuple[str, ...] = ()
    relative: bool = False
    strength_power: int = 1
    module: str = "lycoris.kohya"
    algo: str = ""

    def knows(self, parts: Parts) -> bool:
        """Whether a module of a file with these parts is of this network."""
        return any(all(name in parts for name in names) for names in self.required_parts)


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
    """The network whose required parts are all present; of a plain LoRA's parts, LoRA itself.

    Raises:
        FormatError: no known network has these parts.
    """
    found = [network for network in networks().values() if network.knows(parts)]
    if found:
        return next((network for network in found if network.name == "lora"), found[0])
    raise FormatError(
        f"the module '{stem}' of the LoRA file holds {', '.join(sorted(parts)) or 'nothing'}, which is none of the "
        f"known networks ({', '.join(networks())}); convert the file to one of them first"
    )
