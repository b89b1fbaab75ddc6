"""Puts an adapter on the modules of a frozen model and takes it off again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError, FormatError, InputError
from ..core.params import Choice
from ..core.seeds import generator
from ._layer import Layer, layer_of
from ._spec import Network, Size, get_network


class AdapterTarget(Protocol):
    """What attaching needs to know of a module; `families.Target` is one."""

    @property
    def stem(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class ModuleSettings:
    """What one module has of its own; the network's parameters decide the rest.

    Attributes:
        rank: of this module, None for the network's.
        alpha: of this module, None for the network's.
        lr_factor: on the learning rate of its part.
        start: the file's parts to begin with (`alpha` among them), None for fresh ones; they decide rank and alpha.
    """

    rank: int | None = None
    alpha: float | None = None
    lr_factor: float = 1.0
    start: Mapping[str, Tensor] | None = None


PLAIN = ModuleSettings()


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate.

    Attributes:
        name: the part, and the factor where it is not 1, e.g. "unet" or "unet x16".
        parameters: in the order of the targets.
        lr_factor: on the learning rate of the part.
    """

    name: str
    parameters: list[nn.Parameter]
    lr_factor: float

    @property
    def part(self) -> str:
        """The part alone: "unet" or "text_encoder"."""
        return self.name.partition(" x")[0]


@dataclass
class _Adapted:
    """One adapted module."""

    stem: str
    part: str
    layer: Layer
    size: Size
    lr_factor: float
    parts: dict[str, Tensor]
    own_forward: Callable[..., Tensor] | None
    adapted_forward: Callable[..., Tensor]


class AdapterSet:
    """A network attached to the modules of a model; its parameters live here, not in the model.

    Attributes:
        enabled: False lets the model answer as if nothing were attached.
        training: whether dropout acts.
    """

    def __init__(self, network: Network, choice: Choice) -> None:
        """Holds nothing yet; use `attach`."""
        self.network = network
        self.choice = choice
        self.enabled = True
        self.training = True
        self._adapted: dict[str, _Adapted] = {}

    @classmethod
    def attach(
        cls,
        targets: Sequence[AdapterTarget],
        choice: Choice,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        settings: Mapping[str, ModuleSettings] | None = None,
    ) -> AdapterSet:
        """Adapts every target with the chosen network and freezes the targets' own weights.

        The starting values of a module depend on `seed` and its stem alone, so a choice of blocks does not change them.

        Args:
            targets: the modules, with their stems.
            choice: network name and parameters.
            seed: of the run.
            dtype: of the adapter's parameters; fp32 unless there is a reason.
            device: where the parameters live; None follows each module.
            settings: by stem, what a module has of its own.

        Raises:
            InputError: no target is given, or two have one stem.
            UnknownNameError: no such network.
            FormatError: the network cannot be put on a module, or a file to start from does not fit.
        """
        if not targets:
            raise InputError("no module is left to train: choose at least one block, and the UNet or the text encoder")
        stems = [target.stem for target in targets]
        if len(set(stems)) != len(stems):
            twice = sorted({stem for stem in stems if stems.count(stem) > 1})
            raise InputError(f"these modules are named twice: {', '.join(twice[:3])}; give every module one stem")
        adapters = cls(get_network(choice.name), choice)
        given = settings or {}
        with torch.inference_mode(False):
            for target in targets:
                own = given.get(target.stem, PLAIN)
                adapters._adapt(target, own, seed=seed, dtype=dtype, device=device)
        return adapters

    def _adapt(
        self,
        target: AdapterTarget,
        own: ModuleSettings,
        *,
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        module, network, params = target.module, self.network, self.choice.params
        layer = layer_of(module, stem=target.stem)
        if layer.op.kind not in network.adapts:
            raise FormatError(
                f"the network {network.name} cannot be put on '{target.stem}' ({type(module).__name__}), only on "
                f"{' and '.join(network.adapts)} layers"
            )
        if own.start is not None:
            size, values = _started(network, layer, own.start)
        else:
            size = network.size(params, layer.shape, rank=own.rank, alpha=own.alpha)
            random = generator(seed, 0, f"init {target.stem}")
            values = network.init(layer, params=params, size=size, generator=random)
        place = layer.weight.device if device is None else torch.device(device)
        parts: dict[str, Tensor] = {
            name: nn.Parameter(value.to(device=place, dtype=dtype)) for name, value in values.items()
        }
        module.requires_grad_(False)
        base_forward: Callable[[Tensor], Tensor] = module.forward
        forward, scale = network.forward, size.scale
        module_dropout = float(getattr(params, "module_dropout", 0.0))

        def adapted_forward(x: Tensor) -> Tensor:
            training = self.training
            if not self.enabled:
                return base_forward(x)
            if training and module_dropout > 0.0 and float(torch.rand(())) < module_dropout:
                return base_forward(x)
            return forward(x, base_forward, parts, params=params, scale=scale, layer=layer, training=training)

        own_forward = module.__dict__.get("forward")
        module.forward = adapted_forward
        self._adapted[target.stem] = _Adapted(
            stem=target.stem,
            part=target.part,
            layer=layer,
            size=size,
            lr_factor=own.lr_factor,
            parts=parts,
            own_forward=own_forward,
            adapted_forward=adapted_forward,
        )

    @property
    def stems(self) -> tuple[str, ...]:
        """The adapted modules, in the order of the targets."""
        return tuple(self._adapted)

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for adapted in self._adapted.values() for value in adapted.parts.values())

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters, in the order of the targets, under "unet" and "text_encoder"."""
        groups: dict[str, list[nn.Parameter]] = {"unet": [], "text_encoder": []}
        for adapted in self._adapted.values():
            groups.setdefault(adapted.part, []).extend(_parameters(adapted))
        return groups

    def param_groups(self) -> list[ParameterGroup]:
        """The trained parameters by part and learning rate; the parts in the order unet, text_encoder.

        A factor comes from the targets' text (a block's learning rate) and from LoRA+, which trains the up parts at
        `up_lr_ratio` times the rate of the others.

        Source: Hayou et al. 2024 (LoRA+, arXiv 2402.12354), section 4.
        """
        ratio = float(getattr(self.choice.params, "up_lr_ratio", 1.0))
        groups: dict[str, dict[float, list[nn.Parameter]]] = {"unet": {}, "text_encoder": {}}
        for adapted in self._adapted.values():
            by_factor = groups.setdefault(adapted.part, {})
            for name, value in adapted.parts.items():
                factor = adapted.lr_factor * (ratio if name in self.network.up_parts else 1.0)
                if isinstance(value, nn.Parameter):
                    by_factor.setdefault(factor, []).append(value)
        return [
            ParameterGroup(part if factor == 1.0 else f"{part} x{factor:g}", parameters, factor)
            for part, by_factor in groups.items()
            for factor, parameters in by_factor.items()
        ]

    def parts_of(self, stem: str) -> Mapping[str, Tensor]:
        """The live parameters of one module.

        Raises:
            InputError: the stem is not adapted.
        """
        return self._one(stem).parts

    def size_of(self, stem: str) -> Size:
        """Rank and alpha of one module.

        Raises:
            InputError: the stem is not adapted.
        """
        return self._one(stem).size

    def layer_of(self, stem: str) -> Layer:
        """The frozen layer of one module.

        Raises:
            InputError: the stem is not adapted.
        """
        return self._one(stem).layer

    def part_of(self, stem: str) -> str:
        """The part of the model it belongs to: "unet" or "text_encoder".

        Raises:
            InputError: the stem is not adapted.
        """
        return self._one(stem).part

    def _one(self, stem: str) -> _Adapted:
        if stem not in self._adapted:
            raise InputError(f"the module '{stem}' is not among the {len(self._adapted)} adapted ones")
        return self._adapted[stem]

    def delta(self, stem: str) -> Tensor:
        """The full weight change of one module now, fp32, as the live forward applies it."""
        adapted = self._one(stem)
        detached = {name: value.detach() for name, value in adapted.parts.items()}
        weight = adapted.layer.weight.to(next(iter(detached.values())).device)
        return self.network.delta(detached, alpha=adapted.size.alpha, weight_shape=adapted.layer.shape, weight=weight)

    def unchanged_stems(self) -> tuple[str, ...]:
        """The modules that change nothing yet; the device is waited for once."""
        with torch.no_grad():
            flags = [self.network.unchanged(adapted.parts, layer=adapted.layer) for adapted in self._adapted.values()]
            unchanged = torch.stack(flags).tolist()
        return tuple(stem for stem, flag in zip(self._adapted, unchanged, strict=True) if flag)

    def state(self) -> dict[str, Tensor]:
        """`<stem>.<part>`, and a 0-d `<stem>.alpha` where there is one; shares the memory of the live parameters."""
        tensors: dict[str, Tensor] = {}
        for adapted in self._adapted.values():
            tensors.update(_named(adapted, {name: value.detach() for name, value in adapted.parts.items()}))
        return tensors

    def file_tensors(self) -> dict[str, Tensor]:
        """What a LoRA file holds: as `state`, but in the form that ComfyUI loads."""
        tensors: dict[str, Tensor] = {}
        with torch.no_grad():
            for adapted in self._adapted.values():
                detached = {name: value.detach() for name, value in adapted.parts.items()}
                tensors.update(_named(adapted, self.network.to_file(detached, layer=adapted.layer, size=adapted.size)))
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies values made by `state` into the live parameters.

        Raises:
            FormatError: a name or shape differs; nothing is changed then.
        """
        own = self.state()
        missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        if missing or unexpected:
            raise FormatError(
                f"the saved adapter does not fit this one: {len(missing)} tensors are missing "
                f"({', '.join(missing[:3]) or 'none'}), {len(unexpected)} are unknown "
                f"({', '.join(unexpected[:3]) or 'none'}); use the network and blocks it was made with"
            )
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise FormatError(
                    f"the saved tensor '{name}' has shape {list(tensors[name].shape)}, this adapter needs "
                    f"{list(value.shape)}; use the rank it was made with"
                )
        with torch.no_grad():
            for name, value in own.items():
                if not name.endswith(".alpha"):
                    value.copy_(tensors[name])

    def train(self, mode: bool = True) -> AdapterSet:
        """Switches dropout on or off."""
        self.training = mode
        return self

    def requires_grad_(self, mode: bool = True) -> AdapterSet:
        """Whether the parameters collect gradients."""
        for adapted in self._adapted.values():
            for value in adapted.parts.values():
                value.requires_grad_(mode)
        return self

    @property
    def limits_norms(self) -> bool:
        """Whether `limit_norms` does anything."""
        return self.network.shrink is not None and float(getattr(self.choice.params, "max_norm", 0.0)) > 0.0

    def limit_norms(self) -> None:
        """Shortens every module's change to the parameters' `max_norm`; the device is not waited for."""
        shrink = self.network.shrink
        if shrink is None or not self.limits_norms:
            return
        max_norm = float(getattr(self.choice.params, "max_norm", 0.0))
        with torch.no_grad():
            for adapted in self._adapted.values():
                shrink(adapted.parts, scale=adapted.size.scale, max_norm=max_norm)

    def detach_from_model(self) -> None:
        """Gives every module its own forward back; the values stay readable through `state`.

        Raises:
            AtelierError: something else was put over the adapter since and must be taken off first.
        """
        for adapted in reversed(self._adapted.values()):
            module = adapted.layer.module
            current = module.__dict__.get("forward")
            if current is None or current is adapted.own_forward:
                continue
            if current is not adapted.adapted_forward:
                raise AtelierError(
                    f"the module '{adapted.stem}' was changed by something else after the adapter was attached; "
                    "take that off first"
                )
            if adapted.own_forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = adapted.own_forward


def _parameters(adapted: _Adapted) -> list[nn.Parameter]:
    return [value for value in adapted.parts.values() if isinstance(value, nn.Parameter)]


def _named(adapted: _Adapted, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if adapted.size.alpha is not None:
        tensors[f"{adapted.stem}.alpha"] = torch.tensor(adapted.size.alpha, dtype=torch.float32)
    tensors.update({f"{adapted.stem}.{name}": value for name, value in parts.items()})
    return tensors


def _started(network: Network, layer: Layer, given: Mapping[str, Tensor]) -> tuple[Size, dict[str, Tensor]]:
    """Size and parts of a module that begins as in a file.

    Raises:
        FormatError: the file's module is of another network, or does not fit the layer.
    """
    own = {name: value for name, value in given.items() if name != "alpha"}
    parts = {name: value.detach().float().cpu().clone() for name, value in network.from_file(own, layer=layer).items()}
    rank = network.rank_of(parts)
    alpha = float(given["alpha"]) if "alpha" in given else None
    if rank is None:  # a scale of 1, whatever alpha the file names; its alpha is kept where that can be
        whole = int(alpha) if alpha is not None and alpha >= 1.0 and alpha == int(alpha) else 1
        size = Size(rank=whole, alpha=None if alpha is None else float(whole))
    else:
        size = Size(rank=rank, alpha=float(rank) if alpha is None else alpha)
    weight = layer.weight.cpu()
    network.delta(parts, alpha=size.alpha, weight_shape=layer.shape, weight=weight)  # raises where it does not fit
    return size, _in_own_shape(network, layer, parts)


def _in_own_shape(network: Network, layer: Layer, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions that a file holds as matrices, and matrices it holds as 1x1 convolutions, as this layer has them."""
    shapes = network.natural_shapes(parts, layer)
    return {name: value.reshape(shapes.get(name, tuple(value.shape))) for name, value in parts.items()}
