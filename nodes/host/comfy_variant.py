"""What a base predicts, told to ComfyUI where its own guess by the file is another.

Like ``comfy.py``, this file touches ComfyUI, and only inside functions.
"""

from __future__ import annotations

from ...families._spec import V_PREDICTION, Variant
from .protocol import MODEL


def as_told(model: MODEL, variant: Variant) -> MODEL:
    """The model with the prediction and noise schedule of the variant, as the core ModelSamplingDiscrete node sets it.

    Args:
        model: as ComfyUI loaded it.
        variant: what the base predicts, by its markers or as the person said.

    Returns:
        The same model where ComfyUI took it for that already, else a clone.
    """
    import comfy.model_base
    import comfy.model_sampling

    own = model.get_model_object("model_sampling")
    predicts_v = isinstance(own, comfy.model_sampling.V_PREDICTION) and not isinstance(own, comfy.model_sampling.EDM)
    wants_v = variant.prediction_type == V_PREDICTION
    if predicts_v == wants_v and bool(getattr(own, "zsnr", False)) == variant.zero_terminal_snr:
        return model
    kind = comfy.model_sampling.V_PREDICTION if wants_v else comfy.model_sampling.EPS

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, kind):  # type: ignore[misc, name-defined]
        """ComfyUI puts its schedule and its parametrisation together in the same way."""

    changed = model.clone()
    changed.add_object_patch("model_sampling", Sampling(model.model.model_config, zsnr=variant.zero_terminal_snr))
    return changed
