"""Schedules against values and naive formulas."""

import math

import numpy as np
import pytest
import torch

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.nodes.host.local_schedules import SCHEDULERS, NoiseLevels, sigmas_for


@pytest.fixture(scope="module")
def levels() -> NoiseLevels:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseLevels.from_alphas_cumprod(torch.cumprod(1 - betas, 0))


def test_levels_are_those_of_sd15(levels):
    assert levels.sigma_min == pytest.approx(0.0291675, abs=1e-6)
    assert levels.sigma_max == pytest.approx(14.614642, abs=1e-5)
    assert [levels.timestep_at(float(levels.sigmas[i])) for i in (0, 1, 500, 998, 999)] == [0, 1, 500, 998, 999]
    assert levels.timestep_at(1e9) == 999
    assert levels.sigma_at(999.0) == pytest.approx(levels.sigma_max, rel=1e-6)
    middle = math.exp((float(levels.log_sigmas[10]) + float(levels.log_sigmas[11])) / 2)
    assert levels.sigma_at(10.5) == pytest.approx(middle, rel=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
def test_schedules_descend_to_zero(levels, name, steps):
    sigmas = sigmas_for(levels, name, steps)
    assert sigmas[-1] == 0.0
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
    if name == "ddim_uniform":
        assert steps + 1 <= len(sigmas) <= steps + 2
    else:
        assert len(sigmas) == steps + 1
        assert sigmas[0] == pytest.approx(levels.sigma_max, rel=1e-5)


def test_karras_is_the_published_formula(levels):
    n, rho, low, high = 9, 7.0, levels.sigma_min, levels.sigma_max
    naive = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    assert sigmas_for(levels, "karras", n)[:-1] == pytest.approx(naive, rel=2e-5)


def test_normal_and_sgm_uniform_are_evenly_spaced_in_time(levels):
    naive = [float(levels.sigmas[round(t)]) for t in np.linspace(999, 0, 10)]
    assert sigmas_for(levels, "normal", 10)[:-1] == pytest.approx(naive, rel=1e-2)
    assert sigmas_for(levels, "normal", 4)[:-1] == pytest.approx(
        [float(levels.sigmas[t]) for t in (999, 666, 333, 0)], rel=1e-5
    )
    assert sigmas_for(levels, "sgm_uniform", 3)[:-1] == pytest.approx(
        [float(levels.sigmas[t]) for t in (999, 666, 333)], rel=1e-5
    )


def test_simple_and_ddim_uniform_pick_training_levels(levels):
    assert sigmas_for(levels, "simple", 4)[:-1] == [float(levels.sigmas[t]) for t in (999, 749, 499, 249)]
    assert sigmas_for(levels, "ddim_uniform", 4)[:-1] == [float(levels.sigmas[t]) for t in (751, 501, 251, 1)]


def test_beta_quantiles_match_their_definition(levels):
    # Timesteps of scipy.stats.beta.ppf(1 - i / 8, 0.6, 0.6) * 999 rounded, computed once with scipy 1.15.
    sigmas = sigmas_for(levels, "beta", 8)[:-1]
    times = [levels.timestep_at(sigma) for sigma in sigmas]
    assert times[0] == 999
    for i, t in enumerate(times[1:], start=1):
        x = np.linspace(0, t / 999, 400001)[1:]
        mid = (x + np.concatenate([[0], x[:-1]])) / 2
        whole_x = np.linspace(0, 1, 400001)
        whole_mid = (whole_x[1:] + whole_x[:-1]) / 2

        def integral(points, width):
            return float(np.sum(points**-0.4 * (1 - points) ** -0.4) * width)

        share = integral(mid, x[0]) / integral(whole_mid, whole_x[1])
        assert share == pytest.approx(1 - i / 8, abs=2e-3)


def test_denoise_cuts_a_longer_schedule(levels):
    assert sigmas_for(levels, "normal", 6, 0.5) == sigmas_for(levels, "normal", 12)[-7:]
    assert sigmas_for(levels, "karras", 5, 0.00) == []
    assert sigmas_for(levels, "karras", 5, 1.0) == sigmas_for(levels, "karras", 5)


def test_bad_values_are_refused(levels):
    with pytest.raises(UnknownNameError, match="karras"):
        sigmas_for(levels, "karas", 5)
    with pytest.raises(InputError, match="steps is 0"):
        sigmas_for(levels, "karras", 0)
    with pytest.raises(InputError, match="denoise is 1.5"):
        sigmas_for(levels, "karras", 5, 1.5)
