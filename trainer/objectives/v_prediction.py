"""The error of the predicted velocity: the objective of Stable Diffusion 2.x (768) and of v-prediction SDXL models."""

from dataclasses import dataclass

import torch

from ...core.params import param
from ._denoising import DenoisingParams, ask_about, loss_of
from ._spec import Objective, Question
from ._tables import snr, velocity, zero_terminal_snr
from ._weights import like_noise

TERMINAL_SNR = ("from_model", "on", "off")


@dataclass(frozen=True, kw_only=True)
class VPredictionParams(DenoisingParams):
    """The settings of the velocity prediction objective."""

    zero_terminal_snr: str = param(
        "from_model",
        doc="Whether the last time step is noise alone, so that quite dark and quite bright pictures can be drawn. "
        "from_model: as the model says it was trained.",
        choices=TERMINAL_SNR,
    )
    scale_like_noise: bool = param(
        False,
        doc="Weigh the loss as if noise were predicted: noisy time steps count less.",
        advanced=True,
    )


def ask(
    latents: torch.Tensor, *, alphas_cumprod: torch.Tensor, params: VPredictionParams, generator: torch.Generator
) -> Question:
    """Draws noise and time steps; the target is the velocity."""
    return ask_about(latents, alphas_cumprod=alphas_cumprod, params=params, generator=generator, target=velocity)


def loss(
    prediction: torch.Tensor,
    question: Question,
    *,
    alphas_cumprod: torch.Tensor,
    params: VPredictionParams,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the loss of every sample, [b] fp32.

    Source: Salimans and Ho 2022 (Progressive Distillation), section 4; ``scale_like_noise`` is kohya's.
    """
    losses = loss_of(
        prediction, question, alphas_cumprod=alphas_cumprod, params=params, prediction_type="v_prediction", mask=mask
    )
    if not params.scale_like_noise:
        return losses
    return losses * like_noise(snr(alphas_cumprod[question.timesteps].float()))


def schedule(alphas_cumprod: torch.Tensor, *, params: VPredictionParams, terminal_snr_is_zero: bool) -> torch.Tensor:
    """Returns the model's noise schedule, with a terminal SNR of zero where it is asked for or the model has it."""
    wanted = params.zero_terminal_snr == "on" or (params.zero_terminal_snr == "from_model" and terminal_snr_is_zero)
    return zero_terminal_snr(alphas_cumprod) if wanted else alphas_cumprod


OBJECTIVE = Objective(
    name="v_prediction",
    title="V-Prediction",
    summary="The error of the predicted velocity, for models that predict v (SD 2.x 768, v-prediction SDXL).",
    source="Salimans and Ho 2022 (Progressive Distillation), section 4 and appendix D",
    prediction_type="v_prediction",
    params=VPredictionParams,
    ask=ask,
    loss=loss,
    schedule=schedule,
)
