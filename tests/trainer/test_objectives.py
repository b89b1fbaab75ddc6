"""The epsilon objective against numbers worked out by hand and a naive reference."""

import math

import pytest
import torch

from lora_atelier.core.errors import InputError
from lora_atelier.families._spec import get_family
from lora_atelier.trainer.objectives._noise import draw_noise
from lora_atelier.trainer.objectives._spec import Question, objectives
from lora_atelier.trainer.objectives._tables import add_noise
from lora_atelier.trainer.objectives.epsilon import OBJECTIVE, EpsilonParams, ask, loss

# Worked out in plain Python from the scaled-linear schedule 0.00085 .. 0.012 over 1000 steps.
BY_HAND = {
    0: (0.9995749096491, 0.0291547594742),
    200: (0.8681543901639, 0.4962942220489),
    999: (0.0682649142172, 0.9976672298351),
}


def naive_alphas_cumprod() -> list[float]:
    low, high, product, found = math.sqrt(0.00085), math.sqrt(0.012), 1.0, []
    for step in range(1000):
        product *= 1.0 - (low + (high - low) * step / 999) ** 2
        found.append(product)
    return found


def test_hand_numbers_follow_from_the_schedule() -> None:
    alphas = naive_alphas_cumprod()
    for step, (signal, sigma) in BY_HAND.items():
        assert math.sqrt(alphas[step]) == pytest.approx(signal, rel=1e-9)
        assert math.sqrt(1 - alphas[step]) == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("step", sorted(BY_HAND))
def test_noisy_latents_by_hand(step: int) -> None:
    signal, sigma = BY_HAND[step]
    latents = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 4, 1, 1)
    noise = torch.tensor([0.5, 1.0, -1.0, 0.25]).view(1, 4, 1, 1)
    alphas = get_family("sd15").alphas_cumprod().float()
    noisy = add_noise(latents, noise, torch.tensor([step]), alphas_cumprod=alphas)
    expected = [signal * x + sigma * n for x, n in zip((1.0, -2.0, 0.5, 3.0), (0.5, 1.0, -1.0, 0.25), strict=True)]
    assert noisy.flatten().tolist() == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_loss_by_hand_is_a_mean_over_each_sample() -> None:
    target = torch.zeros(2, 1, 2, 2)
    prediction = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[2.0, 0.0], [0.0, 0.0]]]])
    question = Question(noisy_latents=target, timesteps=torch.zeros(2, dtype=torch.long), target=target)
    losses = loss(prediction, question, alphas_cumprod=torch.ones(1000), params=EpsilonParams())
    assert losses.tolist() == [1.0, 1.0]


def test_loss_of_half_precision_is_fp32() -> None:
    question = Question(noisy_latents=torch.zeros(1), timesteps=torch.zeros(1), target=torch.zeros(1, 1, 1, 2))
    losses = loss(
        torch.full((1, 1, 1, 2), 300.0, dtype=torch.float16),
        question,
        alphas_cumprod=torch.ones(1000),
        params=EpsilonParams(),
    )
    assert losses.dtype == torch.float32
    assert losses.item() == 90000.0


def test_target_is_the_noise_and_steps_stay_in_range() -> None:
    params = EpsilonParams(min_timestep=10, max_timestep=12)
    alphas = get_family("sd15").alphas_cumprod().float()
    latents = torch.zeros(64, 4, 2, 2)
    question = ask(latents, alphas_cumprod=alphas, params=params, generator=torch.Generator().manual_seed(1))
    assert set(question.timesteps.tolist()) == {10, 11}
    sigma = (1 - alphas[question.timesteps]).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(question.noisy_latents, sigma * question.target)


def test_noise_offset_adds_one_number_to_a_channel() -> None:
    shape = torch.Size((2, 4, 8, 8))
    plain = draw_noise(shape, noise_offset=0.0, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    offset = draw_noise(shape, noise_offset=0.1, generator=generator)
    reference = torch.Generator().manual_seed(5)
    torch.randn(shape, generator=reference)
    expected = plain + 0.1 * torch.randn(2, 4, 1, 1, generator=reference)
    torch.testing.assert_close(offset, expected)


def test_empty_range_of_time_steps_is_refused() -> None:
    with pytest.raises(InputError, match="min_timestep is 500 and max_timestep is 500"):
        EpsilonParams(min_timestep=500, max_timestep=500)


@pytest.mark.parametrize("name", sorted(objectives()))
def test_objective_contract(name: str) -> None:
    objective = objectives()[name]
    assert objective.name == name
    assert objective.summary
    assert objective.source
    alphas = get_family("sd15").alphas_cumprod().float()
    latents = torch.randn(3, 4, 2, 2)
    first, again = (
        objective.ask(
            latents, alphas_cumprod=alphas, params=objective.params(), generator=torch.Generator().manual_seed(2)
        )
        for _ in range(2)
    )
    assert torch.equal(first.noisy_latents, again.noisy_latents)
    losses = objective.loss(first.target, first, alphas_cumprod=alphas, params=objective.params())
    assert losses.shape == (3,)
    torch.testing.assert_close(losses, torch.zeros(3))


def test_epsilon_is_the_family_s_objective() -> None:
    assert OBJECTIVE.prediction_type == get_family("sd15").prediction_type
