"""Trading time for memory: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

KWARGS = {"use_reentrant": False}

ALL, TRANSFORMERS, OUTER, INNER = "everything", "transformers", "outer levels", "inner levels"
RECOMPUTED = (ALL, TRANSFORMERS, OUTER, INNER)
"""What is computed again. Every level less of it gives back a part of the time, and takes a part of the memory."""


def recompute_activations(module: Any, *, part: str = ALL) -> None:
    """Switches gradient checkpointing on for a UNet or text encoder, under every supported library version.

    The older transformers take the re-entrant kind unless told otherwise, and that one trains nothing when the
    module's inputs need no gradient: an adapter on the text encoder would silently stay as it is. Both libraries do
    it in training mode alone; no part of SD1.x has a dropout that this mode would switch on.

    Args:
        module: of diffusers or transformers; put into training mode.
        part: of `RECOMPUTED`. "transformers": of a UNet, attention and feed-forward alone, its convolutions are kept.
            "outer levels": of a UNet, the half of the levels whose pictures are largest; "inner levels": the others,
            with the middle. The levels are no part of a text encoder, which is left as it is then.
    """
    is_unet = hasattr(module, "down_blocks")
    if not is_unet and part in (OUTER, INNER):
        return
    module.train()
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    elif hasattr(module, "activation_checkpointing_enable"):
        module.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(KWARGS))
    else:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(KWARGS))
    if is_unet and part != ALL:
        _keep_others(module, part)


def _keep_others(unet: Any, part: str) -> None:
    """Switches it off again where the part does not reach."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    if part == TRANSFORMERS:
        for block in blocks:
            block.gradient_checkpointing = False
        return
    outer = (len(unet.down_blocks) + 1) // 2
    is_outer = [number < outer or number >= len(blocks) - outer for number in range(len(blocks))]
    for block, kept in zip(blocks, is_outer, strict=True):
        for inner in block.modules() if kept != (part == OUTER) else ():
            if hasattr(inner, "gradient_checkpointing"):
                inner.gradient_checkpointing = False
