"""Puts an adapter on the modules of a frozen model and takes it off again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.errors import AtelierError, FormatError, InputError
from ..core.params import Choice
from ..core.seeds import generator
from ._spec import Network, get_network, op_of


class AdapterTarget(Protocol):
    """What attaching needs to know of a module; `families.Target` is one."""

    @property
    def stem(self) -> str: ...
    @property
    def part(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...


@dataclass
class _Adapted:
    """One adapted module."""

    stem: str
    part: str
    module: nn.Module
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
        self._adapted: list[_Adapted] = []

    @classmethod
    def attach(
        cls,
        targets: Sequence[AdapterTarget],
        choice: Choice,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> AdapterSet:
        """Adapts every target with the chosen network and freezes the targets' own weights.

        The starting values of a module depend on `seed` and its stem alone, so a choice of blocks does not change them.

        Args:
            targets: the modules, with their stems.
            choice: network name and parameters.
            seed: of the run.
            dtype: of the adapter's parameters; fp32 unless there is a reason.
            device: where the parameters live; None follows each module.

        Raises:
            InputError: no target is given, or two have one stem.
            UnknownNameError: no such network.
        """
        if not targets:
            raise InputError("no module is left to train: choose at least one block, and the UNet or the text encoder")
        stems = [target.stem for target in targets]
        if len(set(stems)) != len(stems):
            twice = sorted({stem for stem in stems if stems.count(stem) > 1})
            raise InputError(f"these modules are named twice: {', '.join(twice[:3])}; give every module one stem")
        adapters = cls(get_network(choice.name), choice)
        with torch.inference_mode(False):
            for target in targets:
                adapters._adapt(target, seed=seed, dtype=dtype, device=device)
        return adapters

    def _adapt(
        self, target: AdapterTarget, *, seed: int, dtype: torch.dtype, device: torch.device | str | None
    ) -> None:
        module, network, params = target.module, self.network, self.choice.params
        weight = module.weight
        if not isinstance(weight, Tensor):
            raise FormatError(f"the module '{target.stem}' ({type(module).__name__}) has no weight to adapt")
        op = op_of(module)
        scale = network.scale(params)
        values = network.init(tuple(weight.shape), params=params, generator=generator(seed, 0, f"init {target.stem}"))
        place = weight.device if device is None else torch.device(device)
        parts: dict[str, Tensor] = {
            name: nn.Parameter(value.to(device=place, dtype=dtype)) for name, value in values.items()
        }
        module.requires_grad_(False)
        base_forward: Callable[[Tensor], Tensor] = module.forward
        add = network.forward

        def adapted_forward(x: Tensor) -> Tensor:
            y = base_forward(x)
            if not self.enabled:
                return y
            return add(x, y, parts, params=params, scale=scale, op=op, training=self.training)

        own_forward = module.__dict__.get("forward")
        module.forward = adapted_forward
        self._adapted.append(
            _Adapted(
                stem=target.stem,
                part=target.part,
                module=module,
                parts=parts,
                own_forward=own_forward,
                adapted_forward=adapted_forward,
            )
        )

    @property
    def stems(self) -> tuple[str, ...]:
        """The adapted modules, in the order of the targets."""
        return tuple(adapted.stem for adapted in self._adapted)

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for adapted in self._adapted for value in adapted.parts.values())

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters, in the order of the targets, under "unet" and "text_encoder"."""
        groups: dict[str, list[nn.Parameter]] = {"unet": [], "text_encoder": []}
        for adapted in self._adapted:
            values = [value for value in adapted.parts.values() if isinstance(value, nn.Parameter)]
            groups.setdefault(adapted.part, []).extend(values)
        return groups

    def parts_of(self, stem: str) -> Mapping[str, Tensor]:
        """The live parameters of one module.

        Raises:
            InputError: the stem is not adapted.
        """
        for adapted in self._adapted:
            if adapted.stem == stem:
                return adapted.parts
        raise InputError(f"the module '{stem}' is not among the {len(self._adapted)} adapted ones")

    def delta(self, stem: str) -> Tensor:
        """The full weight change of one module now, fp32, as the live forward applies it."""
        parts = self.parts_of(stem)
        module = next(adapted.module for adapted in self._adapted if adapted.stem == stem)
        weight = module.weight
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        detached = {name: value.detach() for name, value in parts.items()}
        return self.network.delta(detached, alpha=self.network.alpha(self.choice.params), weight_shape=shape)

    def state(self) -> dict[str, Tensor]:
        """`<stem>.<part>` and a 0-d `<stem>.alpha` for every module: the tensors of the file, sharing live memory."""
        alpha = self.network.alpha(self.choice.params)
        tensors: dict[str, Tensor] = {}
        for adapted in self._adapted:
            tensors[f"{adapted.stem}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
            for name, value in adapted.parts.items():
                tensors[f"{adapted.stem}.{name}"] = value.detach()
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
        for adapted in self._adapted:
            for value in adapted.parts.values():
                value.requires_grad_(mode)
        return self

    def detach_from_model(self) -> None:
        """Gives every module its own forward back; the values stay readable through `state`.

        Raises:
            AtelierError: something else was put over the adapter since and must be taken off first.
        """
        for adapted in reversed(self._adapted):
            current = adapted.module.__dict__.get("forward")
            if current is None or current is adapted.own_forward:
                continue
            if current is not adapted.adapted_forward:
                raise AtelierError(
                    f"the module '{adapted.stem}' was changed by something else after the adapter was attached; "
                    "take that off first"
                )
            if adapted.own_forward is None:
                del adapted.module.__dict__["forward"]
            else:
                adapted.module.__dict__["forward"] = adapted.own_forward
