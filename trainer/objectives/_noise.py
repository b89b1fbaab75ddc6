"""The noise that is added: plain, with an offset, of several resolutions, and perturbed at the input."""

import torch
import torch.nn.functional as F

from ...core.transfer import to_device


def draw_noise(
    shape: torch.Size,
    *,
    generator: torch.Generator,
    noise_offset: float = 0.0,
    noise_offset_random: bool = False,
    adaptive_scale: float = 0.0,
    channel_means: torch.Tensor | None = None,
    multires_iterations: int = 0,
    multires_discount: float = 0.3,
) -> torch.Tensor:
    """Returns the noise of a shape [b, c, h, w], on the generator's device or on that of ``channel_means``.

    Args:
        shape: of the latents.
        generator: everything is drawn from it.
        noise_offset: see ``offset_noise``.
        noise_offset_random: see ``offset_noise``.
        adaptive_scale: see ``offset_noise``.
        channel_means: |mean| of every channel of the latents, [b, c, 1, 1]; needed for ``adaptive_scale`` alone.
        multires_iterations: see ``multires_noise``; 0 is off.
        multires_discount: see there.
    """
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if noise_offset > 0.0 or adaptive_scale != 0.0:
        offset = offset_noise(
            shape,
            generator=generator,
            strength=noise_offset,
            random_strength=noise_offset_random,
            adaptive_scale=adaptive_scale,
            channel_means=channel_means,
        )
        noise = to_device(noise, offset.device) + offset
    if multires_iterations > 0:
        noise = multires_noise(noise, generator=generator, iterations=multires_iterations, discount=multires_discount)
    return noise


def offset_noise(
    shape: torch.Size,
    *,
    generator: torch.Generator,
    strength: float,
    random_strength: bool = False,
    adaptive_scale: float = 0.0,
    channel_means: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns o x N(0, 1) of [b, c, 1, 1]: one number for a whole channel.

    o is ``strength``, or U(0, strength) for each picture if ``random_strength``; it grows by ``adaptive_scale`` x |mean
    of the channel| of the latents, but not below 0.

    Source: https://www.crosslabs.org/blog/diffusion-with-offset-noise (N. Guttenberg, 2023); random and adaptive
    strength as in kohya's scripts.
    """
    device = generator.device
    drawn = torch.randn((shape[0], shape[1], 1, 1), generator=generator, device=device)
    if not random_strength and adaptive_scale == 0.0:
        return strength * drawn
    strengths = torch.full((shape[0], 1, 1, 1), strength, device=device)
    if random_strength:
        strengths = strengths * torch.rand((shape[0], 1, 1, 1), generator=generator, device=device)
    if adaptive_scale != 0.0 and channel_means is not None:
        # the means stay where they are: bringing them to the host would wait for the device
        strengths = to_device(strengths, channel_means.device)
        strengths = (strengths + adaptive_scale * channel_means).clamp(min=0.0)
        drawn = to_device(drawn, channel_means.device)
    return strengths * drawn


def multires_noise(
    noise: torch.Tensor, *, generator: torch.Generator, iterations: int, discount: float
) -> torch.Tensor:
    """Adds coarser and coarser noise and scales every picture's noise back to unit variance.

    Level i = 1 .. ``iterations`` has the size divided by r^i, with r ~ U(2, 4), is enlarged bilinearly and weighs
    ``discount`` to the i-th power; the last level is the one that is 1 high or wide.

    Source: https://wandb.ai/johnowhitaker/multires_noise (J. Whitaker, 2023), as in kohya's scripts, but scaled per
    picture, so that a picture's noise does not depend on its batch.
    """
    b, c, h, w = noise.shape
    # Sizes are decided by the host, which must not wait for the device to draw them.
    host = generator if generator.device.type == "cpu" else torch.Generator().manual_seed(generator.initial_seed())
    total = noise
    for level, drawn in enumerate(torch.rand(iterations, generator=host).tolist(), start=1):
        shrink = (2.0 + 2.0 * drawn) ** level
        size = (max(1, int(h / shrink)), max(1, int(w / shrink)))
        coarse = torch.randn((b, c, *size), generator=generator, device=generator.device)
        total = total + F.interpolate(coarse, size=(h, w), mode="bilinear") * discount**level
        if 1 in size:
            break
    return total / total.flatten(1).std(dim=1).view(-1, 1, 1, 1)


def perturbed(
    noise: torch.Tensor, *, generator: torch.Generator, gamma: float, random_strength: bool = False
) -> torch.Tensor:
    """Returns eps + gamma x N(0, 1): what the network sees; what it should answer stays eps.

    With ``random_strength`` gamma is drawn from U(0, gamma) for each picture.

    Source: Ning et al. 2023 (Input Perturbation Reduces Exposure Bias in Diffusion Models), algorithm 1.
    """
    drawn = torch.randn(noise.shape, generator=generator, device=generator.device)
    if random_strength:
        drawn = drawn * torch.rand((noise.shape[0], 1, 1, 1), generator=generator, device=generator.device)
    return noise + gamma * to_device(drawn, noise.device)
