"""LoRAs that are on at some sampler steps only, as ComfyUI's weight hooks.

ComfyUI's own keyframes begin at a percentage of the noise levels; these go by the step itself, which the sampler tells
by its list of noise levels, so that they hold for every scheduler and every start of the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...core.errors import InputError
from .protocol import CLIP
from .shared import step_of


@lru_cache(maxsize=1)
def _keyframes_class() -> Any:
    import comfy.hooks

    class StepKeyframes(comfy.hooks.HookKeyframeGroup):
        """Strength 1 from step `start` up to before `stop`, else 0."""

        def __init__(self, start: int, stop: int | None) -> None:
            super().__init__()
            self.start, self.stop = start, stop
            self._is_on = self._on_at(1)

        @property
        def strength(self) -> float:
            return 1.0 if self._is_on else 0.0

        def clone(self) -> StepKeyframes:
            return StepKeyframes(self.start, self.stop)

        def reset(self) -> None:
            self._is_on = self._on_at(1)

        def initialize_timesteps(self, model: Any) -> None:
            self.reset()

        def prepare_current_keyframe(self, curr_t: Any, transformer_options: Mapping[str, Any] | None = None) -> bool:
            sigmas = (transformer_options or {}).get("sample_sigmas")
            if sigmas is None:
                raise InputError(
                    "This version of ComfyUI does not tell its steps, so a LoRA cannot begin or end at one; update "
                    "ComfyUI, or take start, stop and step out of the block weights."
                )
            was_on, self._is_on = self._is_on, self._on_at(step_of(float(curr_t), sigmas.tolist()))
            return was_on != self._is_on

        def _on_at(self, step: int) -> bool:
            return self.start <= step and (self.stop is None or step < self.stop)

    return StepKeyframes


def schedule(
    clip: CLIP, groups: Sequence[tuple[float, Mapping[Any, Any]]], *, start: int | None, stop: int | None
) -> CLIP:
    """A copy of a CLIP that puts weight hooks for the UNet on everything it encodes.

    Args:
        clip: ComfyUI's.
        groups: strength, and the patches that have it.
        start: first step at which they are on, counted from 1; None for the first.
        stop: first step at which they are off again; None for never.

    Raises:
        InputError: this ComfyUI has no hooks, or there is no CLIP.
    """
    if clip is None or not hasattr(clip, "apply_hooks_to_conds"):
        raise InputError(
            "A LoRA that begins or ends at a sampler step travels with the text, and no CLIP is there to carry it; "
            "connect CLIP (and use ComfyUI 0.3.8 or newer), or take start, stop and step out of the block weights."
        )
    import comfy.hooks

    found = comfy.hooks.HookGroup()
    for strength, patches in groups:
        hook = comfy.hooks.WeightHook(strength_model=strength, strength_clip=0.0)
        hook.weights, hook.weights_clip, hook.need_weight_init = dict(patches), {}, False
        hook.hook_keyframe = _keyframes_class()(start or 1, stop)
        found.add(hook)
    carrying = clip.clone()
    before = carrying.apply_hooks_to_conds
    carrying.apply_hooks_to_conds = found if before is None else before.clone_and_combine(found)
    return carrying


def described(thing: Any) -> list[Any]:
    """The hooks that a CLIP puts on texts, as plain values and tensors for a hash."""
    hooks = getattr(getattr(thing, "apply_hooks_to_conds", None), "hooks", ())
    found = []
    for hook in hooks:
        frames = hook.hook_keyframe
        steps = [getattr(frames, "start", None), getattr(frames, "stop", None)]
        marks = [[frame.start_percent, float(frame.strength)] for frame in frames.keyframes]
        strengths = [getattr(hook, "_strength_model", None), getattr(hook, "_strength_clip", None)]
        found.append([steps, marks, strengths, dict(getattr(hook, "weights", None) or {})])
    return found
