"""Samplers against naive references written from the papers' formulas."""

import math

import pytest
import torch

from lora_atelier.nodes.host.local_samplers import SAMPLERS, ancestral_levels

SIGMAS = [14.6, 8.0, 3.0, 1.1, 0.4, 0.1, 0.0]


def denoise(x, sigma):
    """A smooth stand-in for a model: pulls towards a picture, more strongly at low noise."""
    target = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
    return (x + sigma * torch.tanh(target + 0.1 * x)) / (1 + sigma**2)


def run(name, noises=None):
    x = torch.linspace(-20, 20, 32, dtype=torch.float64).reshape(1, 2, 4, 4)
    source = iter(noises or [])
    seen = []
    out = SAMPLERS[name](denoise, x, SIGMAS, lambda: next(source), lambda i, clean: seen.append(i))
    assert seen == list(range(len(SIGMAS) - 1))
    return x, out


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_euler_follows_the_probability_flow(name):
    x, out = run(name)
    for s, t in zip(SIGMAS, SIGMAS[1:], strict=False):
        x = x + (x - denoise(x, s)) / s * (t - s)
    torch.testing.assert_close(out, x, rtol=1e-12, atol=1e-12)


def test_deterministic_ddim_in_its_own_variables_gives_the_same():
    x, out = run("ddim")

    def alpha(s):
        return 1 / (1 + s**2)

    y = x * math.sqrt(alpha(SIGMAS[0]))
    for s, t in zip(SIGMAS, SIGMAS[1:], strict=False):
        clean = denoise(y / math.sqrt(alpha(s)), s)
        noise = (y - math.sqrt(alpha(s)) * clean) / math.sqrt(1 - alpha(s))
        y = math.sqrt(alpha(t)) * clean + math.sqrt(1 - alpha(t)) * noise
    torch.testing.assert_close(out, y, rtol=1e-9, atol=1e-9)


def test_euler_ancestral_adds_the_noise_back():
    generator = torch.Generator().manual_seed(3)
    noises = [torch.randn((1, 2, 4, 4), generator=generator, dtype=torch.float64) for _ in range(5)]
    x, out = run("euler_ancestral", noises)
    for i, (s, t) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        clean = denoise(x, s)
        up = min(t, math.sqrt(t**2 * (s**2 - t**2) / s**2))
        down = math.sqrt(t**2 - up**2)
        x = x + (x - clean) / s * (down - s)
        if t > 0:
            x = x + noises[i] * up
    torch.testing.assert_close(out, x, rtol=1e-12, atol=1e-12)


def test_dpmpp_2m_is_the_papers_multistep_rule():
    x, out = run("dpmpp_2m")
    previous = None
    for i, (s, t) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        clean = denoise(x, s)
        if t == 0:
            x = clean
            continue
        h = -math.log(t) + math.log(s)
        estimate = clean
        if previous is not None:
            r = (-math.log(s) + math.log(SIGMAS[i - 1])) / h
            estimate = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * previous
        x = t / s * x - math.expm1(-h) * estimate
        previous = clean
    torch.testing.assert_close(out, x, rtol=1e-12, atol=1e-12)


def test_ancestral_levels_keep_the_variance():
    for s, t in ((14.6, 8.0), (1.0, 0.99), (0.5, 0.0)):
        down, up = ancestral_levels(s, t)
        assert down**2 + up**2 == pytest.approx(t**2)
        assert 0 <= down <= t


def test_every_sampler_converges_to_the_same_picture():
    fine = torch.logspace(math.log10(14.6), -2.5, 400, dtype=torch.float64).tolist() + [0.0]
    x = torch.linspace(-20, 20, 32, dtype=torch.float64).reshape(1, 2, 4, 4)
    results = [SAMPLERS[n](denoise, x, fine, lambda: None, lambda i, c: None) for n in ("euler", "dpmpp_2m")]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-2)
