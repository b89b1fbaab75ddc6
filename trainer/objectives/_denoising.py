"""What the objectives of denoising models share: settings, the question and the loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...core.errors import InputError
from ...core.params import Params, param
from ...core.transfer import to_device
from ._distance import HUBER_SCHEDULES, LOSSES, element_loss, huber_c
from ._noise import draw_noise, perturbed
from ._spec import Question
from ._tables import add_noise
from ._timesteps import DISTRIBUTIONS, draw_timesteps
from ._weights import WEIGHTINGS, sample_weights

Target = Callable[..., torch.Tensor]
"""(latents, noise, timesteps, alphas_cumprod=) -> the right answer [b, c, h, w]."""


@dataclass(frozen=True, kw_only=True)
class DenoisingParams(Params):
    """Noise, time steps, loss and weighting."""

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
    weighting: str = param(
        "none",
        doc="How a picture's loss is weighted by its time step. min_snr: steps with little noise count less (faster, "
        "steadier). debiased: steps with much noise count more. p2: steps with little noise count less and less.",
        choices=WEIGHTINGS,
    )
    min_snr_gamma: float = param(
        5.0, doc="SNR above which min_snr weighs less; 5 is the paper's.", minimum=0.01, maximum=100.0, step=0.5
    )
    p2_gamma: float = param(
        1.0, doc="How fast p2 falls with the SNR.", minimum=0.0, maximum=10.0, step=0.1, advanced=True
    )
    loss_type: str = param(
        "mse",
        doc="How a difference counts. mse: squared. huber and smooth_l1: squared where small, in proportion where "
        "large, so that odd pictures pull less. l1: in proportion.",
        choices=LOSSES,
    )
    huber_c: float = param(
        0.1, doc="Where huber and smooth_l1 turn from squared to in proportion.", minimum=1e-6, maximum=10.0, step=0.05
    )
    huber_schedule: str = param(
        "snr",
        doc="How that point moves with the time step: snr from 1 (no noise) to huber_c, exponential likewise, or "
        "constant.",
        choices=HUBER_SCHEDULES,
        advanced=True,
    )
    huber_scale: float = param(
        1.0,
        doc="Factor on huber_c for the schedules constant and exponential.",
        minimum=1e-3,
        maximum=1000.0,
        step=0.05,
        advanced=True,
    )
    timestep_distribution: str = param(
        "uniform",
        doc="How often each time step is drawn. logit_normal and inverted_parabola: the middle more often. heavy_tail: "
        "the middle for a scale above 0, both ends below. cosine_map: the middle a little more often.",
        choices=tuple(DISTRIBUTIONS),
        advanced=True,
    )
    timestep_bias: float = param(
        0.0,
        doc="Middle of logit_normal; above 0 is noisier.",
        minimum=-10.0,
        maximum=10.0,
        step=0.1,
        advanced=True,
    )
    timestep_scale: float = param(
        1.0, doc="Width of logit_normal, or s of heavy_tail.", minimum=-1.0, maximum=10.0, step=0.1, advanced=True
    )
    timestep_shift: float = param(
        1.0,
        doc="Above 1, noisy time steps are drawn more often; below 1, those with little noise.",
        minimum=0.01,
        maximum=100.0,
        step=0.1,
        advanced=True,
    )
    noise_offset_random: bool = param(
        False, doc="Draw the strength of the offset anew for every picture, from 0 to noise_offset.", advanced=True
    )
    noise_offset_adaptive: float = param(
        0.0,
        doc="Offset strength added per unit of the mean of a channel: bright and dark pictures get more.",
        minimum=-10.0,
        maximum=10.0,
        step=0.001,
        advanced=True,
    )
    multires_iterations: int = param(
        0,
        doc="Levels of coarser noise added to the noise (6 to 10 are usual); helps dark and bright pictures. 0 is off.",
        minimum=0,
        maximum=32,
        step=1,
        advanced=True,
    )
    multires_discount: float = param(
        0.3,
        doc="Weight of each level against the one before: 0.3 for few pictures, up to 0.8.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        advanced=True,
    )
    ip_noise_gamma: float = param(
        0.0,
        doc="Noise put on what the network sees but not on what it should answer (input perturbation); 0.05 to 0.1, "
        "0 is off.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    ip_noise_random: bool = param(
        False, doc="Draw that strength anew for every picture, from 0 to ip_noise_gamma.", advanced=True
    )

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        if self.min_timestep >= self.max_timestep:
            raise InputError(
                f"min_timestep is {self.min_timestep} and max_timestep is {self.max_timestep}: min_timestep must be "
                "smaller, so that at least one time step can be drawn."
            )
        self._refuse_lonely_switches()
        if self.timestep_distribution == "logit_normal" and self.timestep_scale <= 0.0:
            raise InputError(
                f"timestep_scale is {self.timestep_scale:g}, but logit_normal needs a width above 0, such as 1."
            )
        if self.timestep_distribution == "heavy_tail" and self.timestep_scale > 1.75:
            raise InputError(
                f"timestep_scale is {self.timestep_scale:g}, but heavy_tail allows -1 to 1.75: beyond, it is no "
                "distribution."
            )

    def _refuse_lonely_switches(self) -> None:
        if self.noise_offset_random and self.noise_offset == 0.0:
            raise InputError("noise_offset_random is on, but noise_offset is 0: give it a strength, or switch it off.")
        if self.ip_noise_random and self.ip_noise_gamma == 0.0:
            raise InputError("ip_noise_random is on, but ip_noise_gamma is 0: give it a strength, or switch it off.")
        offset = self.noise_offset > 0.0 or self.noise_offset_adaptive != 0.0
        if self.multires_iterations > 0 and offset:
            raise InputError(
                f"multires_iterations is {self.multires_iterations} and noise_offset is {self.noise_offset:g}: both "
                "add coarse noise for the same purpose; use one of them."
            )


def ask_about(
    latents: torch.Tensor,
    *,
    alphas_cumprod: torch.Tensor,
    params: DenoisingParams,
    generator: torch.Generator,
    target: Target,
) -> Question:
    """Draws noise and time steps and makes the question; ``target`` gives the right answer."""
    noise = draw_noise(
        latents.shape,
        generator=generator,
        noise_offset=params.noise_offset,
        noise_offset_random=params.noise_offset_random,
        adaptive_scale=params.noise_offset_adaptive,
        channel_means=latents.mean(dim=(2, 3), keepdim=True).abs() if params.noise_offset_adaptive != 0.0 else None,
        multires_iterations=params.multires_iterations,
        multires_discount=params.multires_discount,
    )
    timesteps = draw_timesteps(
        latents.shape[0],
        generator=generator,
        first=params.min_timestep,
        end=params.max_timestep,
        distribution=params.timestep_distribution,
        bias=params.timestep_bias,
        scale=params.timestep_scale,
        shift=params.timestep_shift,
    )
    seen = noise
    if params.ip_noise_gamma > 0.0:
        seen = perturbed(
            noise, generator=generator, gamma=params.ip_noise_gamma, random_strength=params.ip_noise_random
        )
    device = latents.device
    given = to_device(noise, device)
    shown = given if seen is noise else to_device(seen, device)
    timesteps = to_device(timesteps, device)
    return Question(
        noisy_latents=add_noise(latents, shown, timesteps, alphas_cumprod=alphas_cumprod),
        timesteps=timesteps,
        target=target(latents, given, timesteps, alphas_cumprod=alphas_cumprod),
    )


def loss_of(
    prediction: torch.Tensor,
    question: Question,
    *,
    alphas_cumprod: torch.Tensor,
    params: DenoisingParams,
    prediction_type: str,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Returns the loss of every sample, [b] fp32: by element, times the mask, the mean, times the weight.

    Source: kohya's order of these steps.
    """
    difference = prediction.float() - question.target.float()
    c = torch.ones((), device=difference.device)
    if params.loss_type in ("huber", "smooth_l1"):
        c = huber_c(
            question.timesteps,
            alphas_cumprod=alphas_cumprod,
            c=params.huber_c,
            schedule=params.huber_schedule,
            scale=params.huber_scale,
        )
    elements = element_loss(params.loss_type, difference, c)
    if mask is not None:
        elements = elements * mask
    losses = elements.flatten(1).mean(dim=1)
    weights = sample_weights(
        question.timesteps,
        alphas_cumprod=alphas_cumprod,
        prediction_type=prediction_type,
        weighting=params.weighting,
        gamma=params.p2_gamma if params.weighting == "p2" else params.min_snr_gamma,
    )
    return losses if weights is None else losses * weights
