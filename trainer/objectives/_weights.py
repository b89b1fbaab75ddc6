"""Weights of a sample's loss by its time step."""

from collections.abc import Callable, Mapping

import torch

from ._tables import snr

SNR_CEILING = 1000.0
"""Where the debiased weight stops to fall: the first time steps have an SNR of more than 1000."""

Weight = Callable[[torch.Tensor, float], torch.Tensor]


def min_snr_epsilon(ratio: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns min(SNR, gamma) / SNR; 1 where the SNR is 0, its limit.

    Source: Hang et al. 2023 (Efficient Diffusion Training via Min-SNR Weighting Strategy), section 3.4.
    """
    return (gamma / ratio.clamp(min=torch.finfo(ratio.dtype).tiny)).clamp(max=1.0)


def min_snr_v(ratio: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns min(SNR, gamma) / (SNR + 1). Source: as ``min_snr_epsilon``."""
    return ratio.clamp(max=gamma) / (ratio + 1.0)


def debiased_epsilon(ratio: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns 1 / sqrt(min(SNR, 1000)), the SNR being at least 1e-4 (below it only at a terminal SNR of zero).

    Source: Yu et al. 2023 (Unmasking Bias in Diffusion Model Training), equation 13; the ceiling is kohya's.
    """
    return ratio.clamp(min=1e-4, max=SNR_CEILING).rsqrt()


def debiased_v(ratio: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns 1 / (min(SNR, 1000) + 1), kohya's form for models that predict v."""
    return 1.0 / (ratio.clamp(max=SNR_CEILING) + 1.0)


def p2_epsilon(ratio: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns (1 + SNR)^-gamma.

    Source: Choi et al. 2022 (Perception Prioritized Training of Diffusion Models), equation 8, with k = 1.
    """
    return (1.0 + ratio).pow(-gamma)


def p2_v(ratio: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns (2 + SNR)^-gamma, OneTrainer's form for models that predict v."""
    return (2.0 + ratio).pow(-gamma)


WEIGHTS: Mapping[str, Mapping[str, Weight]] = {
    "epsilon": {"min_snr": min_snr_epsilon, "debiased": debiased_epsilon, "p2": p2_epsilon},
    "v_prediction": {"min_snr": min_snr_v, "debiased": debiased_v, "p2": p2_v},
}
"""By what the model predicts and by the name of the weighting."""

WEIGHTINGS = ("none", "min_snr", "debiased", "p2")


def like_noise(ratio: torch.Tensor) -> torch.Tensor:
    """Returns SNR / (SNR + 1) = abar: a v loss times this is the loss of the noise it implies.

    Source: from v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho 2022, appendix D); kohya's
    ``scale_v_pred_loss_like_noise_pred``.
    """
    return ratio / (ratio + 1.0)


def sample_weights(
    timesteps: torch.Tensor, *, alphas_cumprod: torch.Tensor, prediction_type: str, weighting: str, gamma: float
) -> torch.Tensor | None:
    """Returns the weight of every sample, [b] fp32, or None for "none"."""
    if weighting == "none":
        return None
    ratio = snr(alphas_cumprod[timesteps].float())
    return WEIGHTS[prediction_type][weighting](ratio, gamma).float()
