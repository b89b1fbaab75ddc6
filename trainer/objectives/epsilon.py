"""The error of the predicted noise: the objective Stable Diffusion 1.x and SDXL were made with."""

from dataclasses import dataclass

import torch

from ...core.params import param
from ._denoising import DenoisingParams, ask_about, loss_of
from ._spec import Objective, Question
from ._tables import snr


@dataclass(frozen=True, kw_only=True)
class EpsilonParams(DenoisingParams):
    """The settings of the noise prediction objective."""

    v_pred_like_loss: float = param(
        0.0,
        doc="Part of the loss of the velocity that is added to the loss of the noise, so that noisy time steps count "
        "more; 0 is off.",
        minimum=0.0,
        maximum=10.0,
        step=0.1,
        advanced=True,
    )


def _noise_itself(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    return noise


def ask(
    latents: torch.Tensor, *, alphas_cumprod: torch.Tensor, params: EpsilonParams, generator: torch.Generator
) -> Question:
    """Draws noise and time steps; the target is the noise."""
    return ask_about(latents, alphas_cumprod=alphas_cumprod, params=params, generator=generator, target=_noise_itself)


def loss(
    prediction: torch.Tensor,
    question: Question,
    *,
    alphas_cumprod: torch.Tensor,
    params: EpsilonParams,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the loss of every sample, [b] fp32.

    ``v_pred_like_loss`` adds that part of the loss divided by SNR / (SNR + 1), which is the loss of the velocity that
    the noise implies.

    Source: Ho, Jain and Abbeel 2020 (DDPM), equation 14; the addition is kohya's.
    """
    losses = loss_of(
        prediction, question, alphas_cumprod=alphas_cumprod, params=params, prediction_type="epsilon", mask=mask
    )
    if params.v_pred_like_loss == 0.0:
        return losses
    ratio = snr(alphas_cumprod[question.timesteps].float())
    return losses + params.v_pred_like_loss * losses * (ratio + 1.0) / ratio.clamp(min=1e-4)


OBJECTIVE = Objective(
    name="epsilon",
    title="Epsilon",
    summary="The error of the predicted noise, for models that predict noise (SD1.x, SDXL).",
    source="Ho, Jain and Abbeel 2020 (DDPM), equations 4 and 14",
    prediction_type="epsilon",
    params=EpsilonParams,
    ask=ask,
    loss=loss,
)
