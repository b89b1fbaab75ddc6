"""Mean squared error on the predicted noise: the objective Stable Diffusion 1.x was made with."""

from dataclasses import dataclass

import torch

from ...core.errors import InputError
from ...core.params import Params, param
from ._spec import Objective, Question


@dataclass(frozen=True, kw_only=True)
class EpsilonParams(Params):
    """The settings of the noise prediction objective."""

    noise_offset: float = param(
        0.0,
        doc="Strength of an extra noise that is one number for a whole channel, so that overall brightness is "
        "learned too; 0.05 to 0.1 is usual, 0 is off.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    min_timestep: int = param(0, doc="Smallest time step that is drawn.", minimum=0, maximum=999, step=1, advanced=True)
    max_timestep: int = param(
        1000, doc="One more than the largest time step that is drawn.", minimum=1, maximum=1000, step=1, advanced=True
    )

    def __post_init__(self) -> None:
        """Checks that the range of time steps is not empty."""
        super().__post_init__()
        if self.min_timestep >= self.max_timestep:
            raise InputError(
                f"min_timestep is {self.min_timestep} and max_timestep is {self.max_timestep}: min_timestep must be "
                "smaller, so that at least one time step can be drawn."
            )


def draw_noise(shape: torch.Size, *, noise_offset: float, generator: torch.Generator) -> torch.Tensor:
    """Returns noise N(0, 1) of a shape [b, c, h, w], plus ``noise_offset`` x N(0, 1) of [b, c, 1, 1].

    Source: https://www.crosslabs.org/blog/diffusion-with-offset-noise (N. Guttenberg, 2023).
    """
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if noise_offset > 0.0:
        offset = torch.randn((shape[0], shape[1], 1, 1), generator=generator, device=generator.device)
        noise = noise + noise_offset * offset
    return noise


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Returns x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, all [b, c, h, w].

    Source: Ho, Jain and Abbeel 2020 (DDPM), equation 4.
    """
    abar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    signal, sigma = abar.sqrt().to(latents.dtype), (1.0 - abar).sqrt().to(latents.dtype)
    return signal * latents + sigma * noise


def ask(
    latents: torch.Tensor, *, alphas_cumprod: torch.Tensor, params: EpsilonParams, generator: torch.Generator
) -> Question:
    """Draws noise and uniform time steps; the target is the noise."""
    noise = draw_noise(latents.shape, noise_offset=params.noise_offset, generator=generator)
    timesteps = torch.randint(
        params.min_timestep, params.max_timestep, (latents.shape[0],), generator=generator, device=generator.device
    )
    noise, timesteps = noise.to(latents.device), timesteps.to(latents.device)
    noisy = add_noise(latents, noise, timesteps, alphas_cumprod=alphas_cumprod)
    return Question(noisy_latents=noisy, timesteps=timesteps, target=noise)


def loss(
    prediction: torch.Tensor, question: Question, *, alphas_cumprod: torch.Tensor, params: EpsilonParams
) -> torch.Tensor:
    """Returns the mean squared error of every sample, [b] fp32.

    Source: Ho, Jain and Abbeel 2020 (DDPM), equation 14.
    """
    return (prediction.float() - question.target.float()).pow(2).flatten(1).mean(dim=1)


OBJECTIVE = Objective(
    name="epsilon",
    summary="Mean squared error on the predicted noise, for models that predict noise (SD1.x).",
    source="Ho, Jain and Abbeel 2020 (DDPM), equations 4 and 14",
    prediction_type="epsilon",
    params=EpsilonParams,
    ask=ask,
    loss=loss,
)
