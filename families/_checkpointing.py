"""Trading time for memory: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

KWARGS = {"use_reentrant": False}


def recompute_activations(module: Any) -> None:
    """Switches gradient checkpointing on for a UNet or text encoder, under every supported library version.

    The older transformers take the re-entrant kind unless told otherwise, and that one trains nothing when the
    module's inputs need no gradient: an adapter on the text encoder would silently stay as it is. Both libraries do
    it in training mode alone; no part of SD1.x has a dropout that this mode would switch on.

    Args:
        module: of diffusers or transformers; put into training mode.
    """
    module.train()
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    elif hasattr(module, "activation_checkpointing_enable"):
        module.activation_checkpointing_enable(activation_checkpointing_kwargs=dict(KWARGS))
    else:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(KWARGS))
