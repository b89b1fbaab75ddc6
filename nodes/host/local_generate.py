"""Generation on the local host: prompts to CONDITIONING, KSampler, VAE, in ComfyUI's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ...core.errors import InputError, unknown_name
from ...families._clip import encode_ids
from ...families._spec import V_PREDICTION, Conditioning, TextEncoderSpec, TextState
from ...families._tokenizer import plain_ids, special_tokens
from .local_models import LocalClip, LocalModel, LocalVae, Patch
from .local_prompt import encode_windows, parse_weights, prompt_windows
from .local_samplers import SAMPLERS, Denoiser
from .local_schedules import sigmas_for
from .shared import step_of

LATENT_CHANNELS = 4
LATENT_FACTOR_PX = 8
_MAX_SEED = 2**64 - 1


def encode_prompt(clip: LocalClip, text: str) -> list[list[Any]]:
    """CONDITIONING of a prompt: [[hidden [1, tokens, channels] float32, {"pooled_output": ...}]]."""
    base, segments = clip.base, parse_weights(text)
    states: list[torch.Tensor] = []
    end_state: torch.Tensor | None = None
    parts = zip(base.family.text_encoders, clip.text_encoders(), base.components.tokenizers, strict=True)
    with torch.inference_mode():
        for spec, encoder, tokenizer in parts:
            hidden, pooled = _encode_with(spec, encoder, tokenizer, segments, clip)
            states.append(hidden)
            if spec.pooled or len(base.family.text_encoders) == 1:
                end_state = pooled
        tokens = min(state.shape[1] for state in states)
        hidden = torch.cat([state[:, :tokens] for state in states], dim=-1)
    told: dict[str, Any] = {"pooled_output": None if end_state is None else end_state.cpu()}
    if clip.step_patches:
        told["step_patches"] = clip.step_patches
    return [[hidden.cpu(), told]]


def _encode_with(
    spec: TextEncoderSpec, encoder: Any, tokenizer: Any, segments: list[tuple[str, float]], clip: LocalClip
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden [1, tokens, channels] and pooled [1, channels], fp32, of weighted segments by one encoder."""
    special = special_tokens(tokenizer, pads_with_zero=spec.pads_with_zero)

    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, pooled = encode_ids(encoder, ids, spec, layer=clip.layer or spec.own_layer)
        return hidden.float(), pooled.float()

    return encode_windows(prompt_windows(segments, partial(plain_ids, tokenizer), special), encode, special)


def empty_latent(width_px: int, height_px: int, batch_size: int = 1) -> dict[str, torch.Tensor]:
    """LATENT of zeros for pictures of this size; the size is cut down to multiples of 8 px."""
    shape = (batch_size, LATENT_CHANNELS, height_px // LATENT_FACTOR_PX, width_px // LATENT_FACTOR_PX)
    return {"samples": torch.zeros(shape)}


def start_noise(samples: torch.Tensor, seed: int, batch_index: Sequence[int] | None = None) -> torch.Tensor:
    """The noise of a latent batch, always drawn on the CPU in float32.

    Without ``batch_index`` one draw fills the whole batch. With it, picture k of the batch gets the k-th of as many
    single draws as the largest index needs, so that a picture taken out of a batch keeps its noise.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(samples.shape, generator=generator)
    draws = [torch.randn((1, *samples.shape[1:]), generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[i] for i in batch_index])


def sample(
    model: LocalModel,
    positive: list[list[Any]],
    negative: list[list[Any]],
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """KSampler.

    Args:
        model: the UNet to use.
        positive: CONDITIONING that is asked for.
        negative: CONDITIONING that is steered away from; not used when cfg is 1.
        latent: "samples" float [b, 4, h, w] unscaled, optionally "batch_index".
        seed: of the noise, 0 to 2**64 - 1.
        steps: sampler steps.
        cfg: guidance scale.
        sampler: name in SAMPLERS.
        scheduler: name in SCHEDULERS.
        denoise: share of the process to run.
        on_step: called with (step from 0, steps in all) at each step; may raise to cancel.

    Returns:
        A copy of ``latent`` with new "samples".

    Raises:
        UnknownNameError: no such sampler or scheduler.
        InputError: another value out of range.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    if not 0 <= seed <= _MAX_SEED:
        raise InputError(f"seed is {seed}; it must lie between 0 and {_MAX_SEED}.")
    if not math.isfinite(cfg):
        raise InputError(f"cfg is {cfg}; it must be a finite number.")
    base = model.base
    sigmas = sigmas_for(base.levels, scheduler, steps, denoise)
    samples = latent["samples"].float()
    if not sigmas:
        return dict(latent)
    with torch.inference_mode():
        start = samples * base.family.latent_scale if torch.count_nonzero(samples) else samples
        noise = start_noise(samples, seed, latent.get("batch_index")).to(base.device)
        x = start.to(base.device) + noise * _first_noise_scale(sigmas[0], base.levels.sigma_max)
        denoiser = _guided(model, positive, negative, cfg, samples, sigmas)
        generator = torch.Generator(device=base.device).manual_seed(seed)

        def fresh_noise() -> torch.Tensor:
            return torch.randn(x.shape, generator=generator, device=base.device)

        def step_done(step: int, clean: torch.Tensor) -> None:
            on_step(step, len(sigmas) - 1)

        result = SAMPLERS[sampler](denoiser, x, sigmas, fresh_noise, step_done)
    return {**latent, "samples": (result.float() / base.family.latent_scale).cpu()}


def _first_noise_scale(sigma: float, sigma_max: float) -> float:
    """Noise is scaled to the level, and at the highest level so that latent and noise together have its variance."""
    full = sigma > sigma_max or math.isclose(sigma, sigma_max, rel_tol=1e-5)
    return math.sqrt(1.0 + sigma**2) if full else sigma


def _guided(
    model: LocalModel,
    positive: list[list[Any]],
    negative: list[list[Any]],
    cfg: float,
    latents: torch.Tensor,
    sigmas: Sequence[float],
) -> Denoiser:
    """D(x, sigma) of the UNet under classifier-free guidance, both prompts in one batch.

    Prompts whose LoRAs differ at a step (`StepPatch`) go through the UNet one after the other, as in ComfyUI.
    """
    base, batch_size = model.base, len(latents)
    dtype = next(base.unet.module.parameters()).dtype
    guided = not math.isclose(cfg, 1.0)
    prompts = [(positive, "positive"), (negative, "negative")][: 2 if guided else 1]
    contexts = _same_length([_context(conditioning, name) for conditioning, name in prompts])
    hidden = [context.expand(batch_size, -1, -1).to(base.device, dtype) for context in contexts]
    ends = [conditioning[0][1].get("pooled_output") for conditioning, _ in prompts]
    pooled = None if ends[0] is None else [end.expand(batch_size, -1).to(base.device, dtype) for end in ends]
    sizes = [_sizes(conditioning[0][1], latents) for conditioning, _ in prompts]
    at_steps = [conditioning[0][1].get("step_patches", ()) for conditioning, _ in prompts]

    def answer_of(x: torch.Tensor, sigma: float, chosen: Sequence[int], patches: tuple[Patch, ...]) -> torch.Tensor:
        scaled = (x / math.sqrt(sigma**2 + 1.0)).to(dtype)
        timesteps = torch.full((len(chosen) * batch_size,), base.levels.timestep_at(sigma), device=base.device)
        text = TextState(
            hidden=torch.cat([hidden[index] for index in chosen]),
            pooled=None if pooled is None else torch.cat([pooled[index] for index in chosen]),
        )
        told = Conditioning(
            original_size=torch.cat([sizes[index].original_size for index in chosen]),
            crop=torch.cat([sizes[index].crop for index in chosen]),
            target_size=torch.cat([sizes[index].target_size for index in chosen]),
        )
        noisy = torch.cat([scaled] * len(chosen))
        return base.family.predict(model.unet(patches), noisy, timesteps, text, conditioning=told).float()

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        step = step_of(sigma, sigmas)
        on = [tuple(at.patch for at in patches if at.is_on(step)) for patches in at_steps]
        if len({tuple(patch.key for patch in patches) for patches in on}) == 1:
            answers = answer_of(x, sigma, range(len(prompts)), on[0]).chunk(len(prompts))
        else:
            answers = tuple(answer_of(x, sigma, [index], patches) for index, patches in enumerate(on))
        answer = torch.lerp(answers[1], answers[0], cfg) if guided else answers[0]
        if base.variant.prediction_type == V_PREDICTION:
            # x0 = sqrt(abar) x_t - sqrt(1 - abar) v (Salimans and Ho 2022, appendix D) with x = x_t / sqrt(abar)
            return x / (sigma**2 + 1.0) - answer * (sigma / math.sqrt(sigma**2 + 1.0))
        return x.sub(answer, alpha=sigma)

    return denoise


def _sizes(said: dict[str, Any], latents: torch.Tensor) -> Conditioning:
    """The sizes a conditioning says, as ComfyUI's CLIPTextEncodeSDXL does; where it says none, the picture's own."""
    height = int(said.get("height", latents.shape[-2] * LATENT_FACTOR_PX))
    width = int(said.get("width", latents.shape[-1] * LATENT_FACTOR_PX))

    def pair(first: Any, second: Any) -> torch.Tensor:
        return torch.tensor([[int(first), int(second)]]).expand(len(latents), 2)

    return Conditioning(
        original_size=pair(height, width),
        crop=pair(said.get("crop_h", 0), said.get("crop_w", 0)),
        target_size=pair(said.get("target_height", height), said.get("target_width", width)),
    )


def _context(conditioning: list[list[Any]], name: str) -> torch.Tensor:
    if len(conditioning) != 1:
        raise InputError(
            f"the {name} conditioning holds {len(conditioning)} parts; the local runner samples one prompt at a time, "
            "run workflows that combine conditionings on a ComfyUI server (--server URL)."
        )
    hidden: torch.Tensor = conditioning[0][0]
    return hidden


def _same_length(contexts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Repeat whole prompts up to a common number of tokens, which attention does not notice."""
    tokens = math.lcm(*(context.shape[1] for context in contexts))
    return [context.repeat(1, tokens // context.shape[1], 1) for context in contexts]


def decode(vae: LocalVae, latent: dict[str, Any]) -> torch.Tensor:
    """IMAGE float32 [b, height, width, 3] in 0..1 on the CPU."""
    base = vae.base
    with torch.inference_mode():
        scaled = latent["samples"].to(base.device, torch.float32) * base.family.latent_scale
        return base.family.decode_image(base.components.vae, scaled).float().clamp(0.0, 1.0).cpu()


def encode(vae: LocalVae, pixels: torch.Tensor) -> dict[str, Any]:
    """LATENT (the mean, unscaled) of IMAGE [b, height, width, 3 or 4]; sizes are cropped around the centre to 8 px."""
    base = vae.base
    pixels = pixels[..., :3]
    for axis in (1, 2):
        size = pixels.shape[axis] // LATENT_FACTOR_PX * LATENT_FACTOR_PX
        if size == 0:
            raise InputError(
                f"the picture of {pixels.shape[2]}x{pixels.shape[1]} px is too small to encode; use at least "
                f"{LATENT_FACTOR_PX} px each way."
            )
        pixels = pixels.narrow(axis, (pixels.shape[axis] % LATENT_FACTOR_PX) // 2, size)
    with torch.inference_mode():
        mean, _ = base.family.encode_image(base.components.vae, pixels.movedim(-1, 1).to(base.device) * 2.0 - 1.0)
    return {"samples": mean.float().cpu()}
