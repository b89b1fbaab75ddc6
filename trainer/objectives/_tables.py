"""The noise schedule as tables: SNR, and the correction to zero terminal SNR."""

import torch


def snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns abar / (1 - abar), the signal-to-noise ratio of each entry.

    Source: Kingma et al. 2021 (Variational Diffusion Models), equation 2, for a variance-preserving process.
    """
    return alphas_cumprod / (1.0 - alphas_cumprod)


def zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns the schedule [T] shifted and scaled so that the last entry is 0 and the first keeps its value.

    Every table that depends on the schedule (SNR weights, Huber's c) is to be made from what this returns.

    Source: Lin et al. 2024 (Common Diffusion Noise Schedules and Sample Steps are Flawed), algorithm 1.
    """
    roots = alphas_cumprod.double().sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    fixed = ((roots - last) * (first / (first - last))).square()
    return fixed.to(alphas_cumprod.dtype)


def at(table: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Returns the entries [b, 1, 1, 1] fp32 of a table [T]."""
    return table[timesteps].float().view(-1, 1, 1, 1)


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Returns x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, all [b, c, h, w].

    Source: Ho, Jain and Abbeel 2020 (DDPM), equation 4.
    """
    abar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    signal, sigma = abar.sqrt().to(latents.dtype), (1.0 - abar).sqrt().to(latents.dtype)
    return signal * latents + sigma * noise


def velocity(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, *, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """Returns v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, all [b, c, h, w].

    Source: Salimans and Ho 2022 (Progressive Distillation), section 4 and appendix D.
    """
    abar = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    signal, sigma = abar.sqrt().to(latents.dtype), (1.0 - abar).sqrt().to(latents.dtype)
    return signal * noise - sigma * latents
