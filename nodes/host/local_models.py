"""MODEL, CLIP and VAE of the local host: a base's parts held once, LoRA patches held beside them.

The loaded weights are shared by every MODEL and CLIP made from them and are never written to. A patched object only
remembers its patches; when it is used, the patched weights (base + strength * delta, summed in fp32 as ComfyUI does)
are put in place of the base's own, and they stay there until an object with other patches is used. Sets of patched
weights are kept up to a limit, so that a grid that goes back and forth between LoRAs does not build them again.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...core.errors import InputError
from ...families._clip import inner_text_model
from ...families._spec import Variant
from ...networks._apply import effective_strength, module_change, split_file

if TYPE_CHECKING:
    from ...families._spec import Components, Family
    from .local_schedules import NoiseLevels

_log = logging.getLogger(__name__)
_MAX_KEPT_BYTES = 2 * 2**30
_Place = tuple[nn.Module, str]
"""A layer, and "weight" or "bias"."""


@dataclass(frozen=True, eq=False)
class Patch:
    """One LoRA at some strengths.

    Attributes:
        modules: stem to part tensors, as ``networks._apply.split_file`` gives them.
        strengths: stem to factor on its delta, zeros left out.
        key: hash of the tensors and strengths.
    """

    modules: Mapping[str, Mapping[str, torch.Tensor]]
    strengths: Mapping[str, float]
    key: str


@dataclass(frozen=True, eq=False)
class StepPatch:
    """A LoRA for the UNet that is on at some sampler steps only.

    Attributes:
        patch: the LoRA at its strengths.
        start: first step at which it is on, counted from 1.
        stop: first step at which it is off again; None for never.
    """

    patch: Patch
    start: int
    stop: int | None

    def is_on(self, step: int) -> bool:
        """Whether it is on at a step, counted from 1."""
        return self.start <= step and (self.stop is None or step < self.stop)


class PatchedModule:
    """A network whose weights can be swapped for patched ones by LoRA stem."""

    def __init__(self, module: nn.Module, stems: Mapping[str, nn.Module]) -> None:
        self.module = module
        self.stems = dict(stems)
        self._base: dict[_Place, nn.Parameter] = {
            (layer, name): parameter
            for layer in self.stems.values()
            for name, parameter in layer.named_parameters(recurse=False)
            if name in ("weight", "bias")
        }
        self._kept: OrderedDict[tuple[str, ...], dict[_Place, nn.Parameter]] = OrderedDict()
        self._active: tuple[str, ...] = ()

    def activate(self, patches: tuple[Patch, ...]) -> nn.Module:
        """Put the weights of exactly these patches in place and return the network."""
        key = tuple(patch.key for patch in patches)
        if key != self._active:
            weights = self._kept.get(key) or self._build(patches)
            for layer, name in self._kept.get(self._active, {}):
                layer._parameters[name] = self._base[layer, name]
            for (layer, name), weight in weights.items():
                layer._parameters[name] = weight
            if key:
                self._kept[key] = weights
                self._kept.move_to_end(key)
            self._active = key
            self._forget()
        return self.module

    def _build(self, patches: tuple[Patch, ...]) -> dict[_Place, nn.Parameter]:
        sums: dict[_Place, torch.Tensor] = {}

        def current(place: _Place) -> torch.Tensor:
            return sums[place] if place in sums else self._base[place].detach().to(torch.float32)

        # Not inference tensors: the network outlives the inference mode it is used in.
        with torch.inference_mode(False), torch.no_grad():
            for patch in patches:
                for stem, strength in patch.strengths.items():
                    if stem not in self.stems:  # another encoder's
                        continue
                    layer = self.stems[stem]
                    weight = current((layer, "weight"))
                    parts = {name: part.to(weight.device) for name, part in _plain(patch.modules[stem]).items()}
                    change, bias = module_change(parts, weight=weight, stem=stem)
                    factor = effective_strength(parts, strength, stem=stem)
                    sums[layer, "weight"] = torch.add(weight, change, alpha=factor)
                    if bias is not None and (layer, "bias") in self._base:
                        sums[layer, "bias"] = torch.add(current((layer, "bias")), bias, alpha=factor)
            return {
                place: nn.Parameter(total.to(self._base[place].dtype), requires_grad=False)
                for place, total in sums.items()
            }

    def _forget(self) -> None:
        """Drop the sets used longest ago while all sets together exceed the limit; the active one stays."""

        def size_bytes() -> int:
            return sum(w.numel() * w.element_size() for weights in self._kept.values() for w in weights.values())

        while len(self._kept) > 1 and size_bytes() > _MAX_KEPT_BYTES:
            oldest = next(key for key in self._kept if key != self._active)
            del self._kept[oldest]


def _plain(parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: part.clone() if part.is_inference() else part for name, part in parts.items()}


class LocalBase:
    """The parts of one loaded base with what the sampler must know of it."""

    def __init__(
        self,
        family: Family,
        components: Components,
        device: torch.device,
        identity: str,
        variant: Variant | None = None,
    ) -> None:
        from .local_schedules import NoiseLevels

        self.family = family
        self.components = components
        self.device = device
        self.identity = identity
        self.variant = variant if variant is not None else Variant()
        bars = family.alphas_cumprod(zero_terminal_snr=self.variant.zero_terminal_snr)
        self.levels: NoiseLevels = NoiseLevels.from_alphas_cumprod(bars)
        self._patchable()

    def _patchable(self) -> None:
        stems = self.family.modules_by_stem(self.components)
        self.unet = _stems_within(self.components.unet, stems)
        self.texts = tuple(_stems_within(model, stems) for model in self.components.text_encoders)

    @property
    def text_stems(self) -> frozenset[str]:
        """The stems of all text encoders."""
        return frozenset(stem for text in self.texts for stem in text.stems)

    def move_to(self, device: torch.device) -> None:
        """Move all parts; patched sets are built again when they are needed."""
        if device == self.device:
            return
        for patched in (self.unet, *self.texts):
            patched.activate(())
        for part in (self.components.unet, *self.components.text_encoders, self.components.vae):
            if part is not None:
                part.to(device)
        self._patchable()
        self.device = device


def _stems_within(module: nn.Module, stems: Mapping[str, nn.Module]) -> PatchedModule:
    own = set(module.modules())
    return PatchedModule(module, {stem: layer for stem, layer in stems.items() if layer in own})


@dataclass(frozen=True, eq=False)
class LocalModel:
    """MODEL: the UNet of a base with patches."""

    base: LocalBase
    patches: tuple[Patch, ...] = ()

    def unet(self, further: tuple[Patch, ...] = ()) -> nn.Module:
        """The UNet with this object's weights in place, and further LoRAs on top."""
        return self.base.unet.activate((*self.patches, *further))


@dataclass(frozen=True, eq=False)
class LocalClip:
    """CLIP: the text encoders of a base with patches.

    Attributes:
        base: the loaded base.
        patches: LoRAs in the order they were applied.
        layer: of every encoder, counted from the last (1); None is the one the base was made with.
        step_patches: for the UNet at some steps, put on whatever is encoded.
    """

    base: LocalBase
    patches: tuple[Patch, ...] = ()
    layer: int | None = None
    step_patches: tuple[StepPatch, ...] = ()

    def text_encoders(self) -> list[nn.Module]:
        """The text encoders with this object's weights in place."""
        return [text.activate(tuple(p for p in self.patches if _touches(p, text))) for text in self.base.texts]

    def at_steps(self, patches: tuple[Patch, ...], *, start: int | None, stop: int | None) -> LocalClip:
        """The same with LoRAs for the UNet at sampler steps; what it encodes carries them."""
        added = (StepPatch(patch=patch, start=start or 1, stop=stop) for patch in patches)
        return replace(self, step_patches=(*self.step_patches, *added))

    def at_layer(self, layer: int) -> LocalClip:
        """The same at another layer; as in ComfyUI, more layers than an encoder has mean its last one."""
        deepest = max(len(inner_text_model(model).encoder.layers) for model in self.base.components.text_encoders)
        return replace(self, layer=min(layer, deepest + 1))


def _touches(patch: Patch, module: PatchedModule) -> bool:
    return any(stem in module.stems for stem in patch.strengths)


@dataclass(frozen=True, eq=False)
class LocalVae:
    """VAE of a base."""

    base: LocalBase


def add_lora(
    model: LocalModel | None,
    clip: LocalClip | None,
    tensors: Mapping[str, torch.Tensor],
    *,
    strength_model: float,
    strength_clip: float,
    stem_strengths: Mapping[str, float],
) -> tuple[LocalModel | None, LocalClip | None]:
    """Patched copies; stems the base does not have are logged and left out, as ComfyUI does.

    Args:
        model: patched on the stems of the UNet, None to leave out.
        clip: patched on the stems of the text encoder, None to leave out.
        tensors: content of a LoRA file.
        strength_model: factor on every delta of the UNet.
        strength_clip: factor on every delta of the text encoder.
        stem_strengths: further factor by stem, 1.0 where it has none.

    Raises:
        FormatError: a tensor belongs to no known network.
        InputError: no stem of the file fits the base.
    """
    modules = split_file(tensors)
    unet_stems: Collection[str] = () if model is None else model.base.unet.stems
    text_stems: Collection[str] = () if clip is None else clip.base.text_stems
    known_text = text_stems or (() if model is None else model.base.text_stems)
    unknown = [stem for stem in modules if stem not in unet_stems and stem not in known_text]
    if len(unknown) == len(modules):
        raise InputError(
            f"none of the LoRA's {len(modules)} modules fits the loaded base (such as {next(iter(modules), 'none')}); "
            "use a LoRA that was trained for this kind of base."
        )
    for stem in unknown:
        _log.warning("lora key not loaded: %s", stem)
    content = _content_hash(modules)
    if model is not None:
        patch = _patch(modules, content, unet_stems, strength_model, stem_strengths)
        model = replace(model, patches=(*model.patches, patch)) if patch.strengths else model
    if clip is not None:
        patch = _patch(modules, content, text_stems, strength_clip, stem_strengths)
        clip = replace(clip, patches=(*clip.patches, patch)) if patch.strengths else clip
    return model, clip


def _patch(
    modules: Mapping[str, Mapping[str, torch.Tensor]],
    content: str,
    stems: Collection[str],
    strength: float,
    stem_strengths: Mapping[str, float],
) -> Patch:
    strengths = {stem: strength * stem_strengths.get(stem, 1.0) for stem in modules if stem in stems}
    strengths = {stem: factor for stem, factor in strengths.items() if factor != 0.0}
    digest = hashlib.sha256(content.encode())
    digest.update(repr(sorted(strengths.items())).encode())
    return Patch(modules=modules, strengths=strengths, key=digest.hexdigest())


def _content_hash(modules: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for stem, parts in modules.items():
        for name, part in parts.items():
            digest.update(f"{stem}.{name}:{tuple(part.shape)}:{part.dtype}".encode())
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def patch_keys(*objects: Any) -> list[str]:
    """What tells these objects from others: identity of the base, clip skip, keys of the patches."""
    keys: list[str] = []
    for thing in objects:
        if isinstance(thing, (LocalModel, LocalClip, LocalVae)):
            keys += [type(thing).__name__, thing.base.identity]
        if isinstance(thing, (LocalModel, LocalClip)):
            keys += [patch.key for patch in thing.patches]
        if isinstance(thing, LocalClip):
            keys.append(str(thing.layer))
            keys += [f"{at.patch.key} {at.start}-{at.stop}" for at in thing.step_patches]
    return keys
