"""Every formula of the objectives against numbers worked out from the papers in plain Python, at t = 0, 200 and 999."""

import math
from typing import Any

import pytest
import torch

from lora_atelier.core.errors import InputError
from lora_atelier.families._spec import get_family
from lora_atelier.trainer.objectives import epsilon, v_prediction
from lora_atelier.trainer.objectives._distance import LOSSES, element_loss, huber, huber_c, smooth_l1
from lora_atelier.trainer.objectives._noise import draw_noise, multires_noise, perturbed
from lora_atelier.trainer.objectives._spec import Question
from lora_atelier.trainer.objectives._tables import snr, velocity, zero_terminal_snr
from lora_atelier.trainer.objectives._timesteps import DISTRIBUTIONS, draw_timesteps, shifted
from lora_atelier.trainer.objectives._weights import WEIGHTINGS, sample_weights
from lora_atelier.trainer.objectives.epsilon import EpsilonParams
from lora_atelier.trainer.objectives.v_prediction import VPredictionParams

STEPS = (0, 200, 999)


def naive_schedule() -> list[float]:
    """The product of 1 - beta over the scaled-linear betas 0.00085 .. 0.012 of 1000 steps."""
    low, high, product, found = math.sqrt(0.00085), math.sqrt(0.012), 1.0, []
    for step in range(1000):
        product *= 1.0 - (low + (high - low) * step / 999) ** 2
        found.append(product)
    return found


def naive_zero_terminal(abar: list[float]) -> list[float]:
    """Algorithm 1 of Lin et al. 2024, by its own lines."""
    roots = [math.sqrt(value) for value in abar]
    first, last = roots[0], roots[-1]
    roots = [root - last for root in roots]
    roots = [root * first / (first - last) for root in roots]
    return [root**2 for root in roots]


ABAR = naive_schedule()
FIXED = naive_zero_terminal(ABAR)
TABLE = get_family("sd15").alphas_cumprod().float()
GAMMA = 5.0


def naive_weight(kind: str, prediction: str, abar: float) -> float:
    ratio = abar / (1.0 - abar)
    if kind == "min_snr":
        return min(ratio, GAMMA) / (ratio if prediction == "epsilon" else ratio + 1.0)
    if kind == "debiased":
        capped = min(ratio, 1000.0)
        return 1.0 / math.sqrt(capped) if prediction == "epsilon" else 1.0 / (capped + 1.0)
    if kind == "p2":
        return (1.0 + ratio) ** -GAMMA if prediction == "epsilon" else (2.0 + ratio) ** -GAMMA
    return 1.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("step", STEPS)
def test_snr(step: int) -> None:
    assert float(snr(TABLE)[step]) == pytest.approx(ABAR[step] / (1 - ABAR[step]), rel=1e-3)


def test_hand_numbers_of_the_snr() -> None:
    """The three numbers that every weight below is made from."""
    assert [float(f"{ABAR[step] / (1 - ABAR[step]):.6g}") for step in STEPS] == [1175.47, 3.05996, 0.00468192]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_weights(kind: str, prediction: str, step: int) -> None:
    got = sample_weights(
        torch.tensor([step]), alphas_cumprod=TABLE, prediction_type=prediction, weighting=kind, gamma=GAMMA
    )
    if got is None:
        assert kind == "none"
        return
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(naive_weight(kind, prediction, ABAR[step]), rel=2e-3)


def test_min_snr_by_numbers() -> None:
    """gamma 5: 5/1175.47, 1, 1 for noise; 5/1176.47, 3.06/4.06, 0.004682/1.004682 for velocity."""

    def weights(prediction: str) -> list[float]:
        got = sample_weights(
            torch.tensor(STEPS), alphas_cumprod=TABLE, prediction_type=prediction, weighting="min_snr", gamma=5.0
        )
        assert got is not None
        return got.tolist()

    assert weights("epsilon") == pytest.approx([0.0042536, 1.0, 1.0], rel=1e-3)
    assert weights("v_prediction") == pytest.approx([0.00425, 0.753697, 0.0046602], rel=1e-3)


@pytest.mark.parametrize("step", STEPS)
def test_zero_terminal_snr(step: int) -> None:
    fixed = zero_terminal_snr(TABLE)
    assert fixed.dtype == TABLE.dtype
    assert float(fixed[step]) == pytest.approx(FIXED[step], rel=1e-5, abs=1e-12)
    assert float(fixed[0]) == pytest.approx(ABAR[0], rel=1e-6)
    assert float(fixed[-1]) == 0.0
    assert bool((fixed.diff() < 0).all())


def test_the_family_s_own_correction_is_the_same() -> None:
    family = get_family("sdxl")
    torch.testing.assert_close(
        zero_terminal_snr(family.alphas_cumprod()), family.alphas_cumprod(zero_terminal_snr=True)
    )


@pytest.mark.parametrize("step", STEPS)
def test_weights_are_made_after_the_fix(step: int) -> None:
    """kohya's issue 1263: tables made before the fix disagree with the noise that is added."""
    fixed = v_prediction.schedule(TABLE, params=VPredictionParams(zero_terminal_snr="on"), terminal_snr_is_zero=False)
    params = VPredictionParams(weighting="min_snr")
    target = torch.zeros(1, 1, 1, 1)
    question = Question(noisy_latents=target, timesteps=torch.tensor([step]), target=target)
    loss = v_prediction.loss(torch.ones_like(target), question, alphas_cumprod=fixed, params=params)
    assert loss.item() == pytest.approx(naive_weight("min_snr", "v_prediction", FIXED[step]), rel=2e-3, abs=1e-9)


def test_no_weight_or_loss_is_infinite_at_a_terminal_snr_of_zero() -> None:
    fixed = zero_terminal_snr(TABLE)
    target = torch.zeros(1, 1, 1, 1)
    question = Question(noisy_latents=target, timesteps=torch.tensor([999]), target=target)
    for kind in WEIGHTINGS:
        for loss_type in LOSSES:
            given: dict[str, Any] = {"weighting": kind, "loss_type": loss_type}
            for module, params in (
                (epsilon, EpsilonParams(v_pred_like_loss=1.0, **given)),
                (v_prediction, VPredictionParams(scale_like_noise=True, **given)),
            ):
                loss = module.loss(torch.ones_like(target), question, alphas_cumprod=fixed, params=params)
                assert bool(torch.isfinite(loss).all()), (kind, loss_type, module.__name__)


def test_the_model_decides_on_its_terminal_snr() -> None:
    def last(choice: str, model: bool) -> float:
        params = VPredictionParams(zero_terminal_snr=choice)
        return float(v_prediction.schedule(TABLE, params=params, terminal_snr_is_zero=model)[-1])

    plain = float(TABLE[-1])
    assert [last("from_model", False), last("from_model", True)] == [plain, 0.0]
    assert [last("on", False), last("off", True)] == [0.0, plain]
    params = EpsilonParams()
    assert epsilon.OBJECTIVE.schedule(TABLE, params=params, terminal_snr_is_zero=True) is TABLE


@pytest.mark.parametrize("step", STEPS)
def test_velocity(step: int) -> None:
    latents = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    noise = torch.tensor([0.5, 1.0, -1.0]).view(1, 3, 1, 1)
    got = velocity(latents, noise, torch.tensor([step]), alphas_cumprod=TABLE)
    signal, sigma = math.sqrt(ABAR[step]), math.sqrt(1 - ABAR[step])
    expected = [signal * e - sigma * x for x, e in zip((1.0, -2.0, 0.5), (0.5, 1.0, -1.0), strict=True)]
    assert got.flatten().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_velocity_and_noisy_latents_give_back_latents_and_noise() -> None:
    """x_0 = signal x_t - sigma v and eps = sigma x_t + signal v."""
    latents = torch.randn(5, 4, 3, 3, generator=generator())
    params = VPredictionParams()
    question = v_prediction.ask(latents, alphas_cumprod=TABLE, params=params, generator=generator(1))
    abar = TABLE[question.timesteps].view(-1, 1, 1, 1)
    signal, sigma = abar.sqrt(), (1 - abar).sqrt()
    torch.testing.assert_close(signal * question.noisy_latents - sigma * question.target, latents, rtol=1e-4, atol=1e-5)
    noise = epsilon.ask(latents, alphas_cumprod=TABLE, params=EpsilonParams(), generator=generator(1)).target
    torch.testing.assert_close(sigma * question.noisy_latents + signal * question.target, noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_scaling_factors_of_the_loss(step: int) -> None:
    target = torch.zeros(1, 1, 2, 2)
    question = Question(noisy_latents=target, timesteps=torch.tensor([step]), target=target)
    answer = torch.full_like(target, 2.0)
    ratio = ABAR[step] / (1 - ABAR[step])
    scaled = v_prediction.loss(answer, question, alphas_cumprod=TABLE, params=VPredictionParams(scale_like_noise=True))
    assert scaled.item() == pytest.approx(4.0 * ratio / (ratio + 1), rel=1e-3)
    added = epsilon.loss(answer, question, alphas_cumprod=TABLE, params=EpsilonParams(v_pred_like_loss=0.5))
    assert added.item() == pytest.approx(4.0 + 0.5 * 4.0 / (ratio / (ratio + 1)), rel=1e-3)


@pytest.mark.parametrize("difference", [0.0, 1e-4, 0.1, -3.0])
@pytest.mark.parametrize("c", [0.05, 1.0])
def test_huber_and_smooth_l1(difference: float, c: float) -> None:
    beyond = math.sqrt(difference**2 + c**2) - c
    one, place = torch.tensor([[[[difference]]]]), torch.tensor([c])
    assert huber(one, place).item() == pytest.approx(2 * c * beyond, rel=1e-4, abs=1e-12)
    assert smooth_l1(one, place).item() == pytest.approx(2 * beyond, rel=1e-4, abs=1e-12)
    assert element_loss("l1", one, place).item() == pytest.approx(abs(difference))
    assert element_loss("mse", one, place).item() == pytest.approx(difference**2)


def test_huber_is_squared_when_small_and_straight_when_large() -> None:
    c = torch.tensor(0.1)
    assert huber(torch.tensor(1e-3), c).item() == pytest.approx(1e-6, rel=1e-3)
    assert huber(torch.tensor(100.0), c).item() == pytest.approx(2 * 0.1 * 100, rel=2e-3)
    assert smooth_l1(torch.tensor(1e-3), c).item() == pytest.approx(1e-6 / 0.1, rel=1e-3)
    assert smooth_l1(torch.tensor(100.0), c).item() == pytest.approx(200, rel=2e-3)


@pytest.mark.parametrize("step", STEPS)
def test_schedules_of_c(step: int) -> None:
    def got(schedule: str) -> float:
        return huber_c(torch.tensor([step]), alphas_cumprod=TABLE, c=0.1, schedule=schedule, scale=1.75).item()

    sigma = math.sqrt((1 - ABAR[step]) / ABAR[step])
    assert got("constant") == pytest.approx(0.1 * 1.75)
    assert got("exponential") == pytest.approx(math.exp(math.log(0.1) * step / 1000) * 1.75, rel=1e-5)
    assert got("snr") == pytest.approx((1 - 0.1) / (1 + sigma) ** 2 + 0.1, rel=1e-3)


def test_noise_offset_with_a_strength_of_its_own() -> None:
    shape = torch.Size((64, 4, 8, 8))
    plain = draw_noise(shape, generator=generator(3))
    random = draw_noise(shape, generator=generator(3), noise_offset=0.1, noise_offset_random=True)
    fixed = draw_noise(shape, generator=generator(3), noise_offset=0.1)
    shares = ((random - plain) / (fixed - plain)).flatten(1)
    assert torch.allclose(shares, shares[:, :1].expand_as(shares), atol=1e-2)
    strengths = shares.mean(dim=1)
    assert 0.0 <= float(strengths.min()) < 0.2
    assert 0.8 < float(strengths.max()) <= 1.0001


def test_adaptive_noise_offset() -> None:
    """o + k |mean of the channel|, but not below 0."""
    shape, means = torch.Size((1, 2, 4, 4)), torch.tensor([2.0, 0.5]).view(1, 2, 1, 1)
    plain = draw_noise(shape, generator=generator(4))
    unit = draw_noise(shape, generator=generator(4), noise_offset=1.0) - plain
    more = draw_noise(shape, generator=generator(4), noise_offset=0.1, adaptive_scale=0.2, channel_means=means)
    torch.testing.assert_close(more - plain, unit * (0.1 + 0.2 * means), rtol=1e-4, atol=1e-5)
    less = draw_noise(shape, generator=generator(4), noise_offset=0.1, adaptive_scale=-0.1, channel_means=means)
    torch.testing.assert_close((less - plain)[:, 0], torch.zeros(1, 4, 4))
    torch.testing.assert_close((less - plain)[:, 1], 0.05 * unit[:, 1], rtol=1e-4, atol=1e-5)


def test_multires_noise() -> None:
    noise = torch.randn(3, 4, 32, 24, generator=generator(5))
    mixed = multires_noise(noise, generator=generator(6), iterations=6, discount=0.5)
    assert mixed.flatten(1).std(dim=1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)
    coarse = torch.nn.functional.avg_pool2d

    def power(x: torch.Tensor) -> float:
        return float(coarse(x, 8).square().mean())

    assert power(mixed) > 4 * power(noise)
    torch.testing.assert_close(
        multires_noise(noise, generator=generator(6), iterations=1, discount=0.0),
        noise / noise.flatten(1).std(dim=1).view(-1, 1, 1, 1),
    )


def test_multires_noise_by_its_levels() -> None:
    """Two levels put together by hand."""
    noise = torch.randn(1, 1, 16, 16, generator=generator(5))
    got = multires_noise(noise, generator=generator(6), iterations=2, discount=0.3)
    draws = generator(6)
    ratios = [2 + 2 * value for value in torch.rand(2, generator=draws).tolist()]
    total = noise.clone()
    for level, ratio in enumerate(ratios, start=1):
        side = max(1, int(16 / ratio**level))
        small = torch.randn(1, 1, side, side, generator=draws)
        total += 0.3**level * torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear")
        if side == 1:
            break
    torch.testing.assert_close(got, total / total.std())


def test_input_perturbation_leaves_the_answer_alone() -> None:
    latents = torch.randn(2, 4, 4, 4, generator=generator())
    plain = epsilon.ask(latents, alphas_cumprod=TABLE, params=EpsilonParams(), generator=generator(1))
    moved = epsilon.ask(latents, alphas_cumprod=TABLE, params=EpsilonParams(ip_noise_gamma=0.1), generator=generator(1))
    assert torch.equal(plain.target, moved.target)
    assert torch.equal(plain.timesteps, moved.timesteps)
    sigma = (1 - TABLE[plain.timesteps]).sqrt().view(-1, 1, 1, 1)
    extra = (moved.noisy_latents - plain.noisy_latents) / sigma
    assert float(extra.std()) == pytest.approx(0.1, rel=0.3)
    noise = torch.zeros(500, 1, 2, 2)
    strengths = perturbed(noise, generator=generator(2), gamma=0.1, random_strength=True).flatten(1).std(dim=1)
    assert float(strengths.max()) < 0.3
    assert float(strengths.min()) < 0.01


def test_the_mask_weighs_elements_before_their_mean() -> None:
    target = torch.zeros(1, 2, 2, 2)
    question = Question(noisy_latents=target, timesteps=torch.tensor([200]), target=target)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    for module, params in ((epsilon, EpsilonParams()), (v_prediction, VPredictionParams())):
        loss = module.loss(torch.full_like(target, 2.0), question, alphas_cumprod=TABLE, params=params, mask=mask)
        assert loss.item() == pytest.approx(4.0 * 1.5 / 4)


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_time_steps_stay_in_their_range(name: str, shift: float) -> None:
    drawn = draw_timesteps(5000, generator=generator(), first=100, end=900, distribution=name, shift=shift)
    assert drawn.dtype == torch.int64
    assert 100 <= int(drawn.min()) < 200
    assert 800 < int(drawn.max()) <= 899


def test_where_the_distributions_lie() -> None:
    def drawn(**given: Any) -> torch.Tensor:
        return draw_timesteps(20000, generator=generator(), first=0, end=1000, **given).float()

    assert float(drawn(distribution="logit_normal").median()) == pytest.approx(500, abs=10)
    assert float(drawn(distribution="logit_normal", bias=1.0).median()) == pytest.approx(731, abs=10)  # sigmoid(1)
    spread = [float(drawn(distribution="heavy_tail", scale=scale).std()) for scale in (-1.0, 0.0, 1.0)]
    assert spread[0] > spread[1] > spread[2]
    parabola = drawn(distribution="inverted_parabola")
    assert float(parabola.mean()) == pytest.approx(500, abs=10)
    assert float(parabola.std()) == pytest.approx(1000 * math.sqrt(1 / 20), rel=0.03)  # variance of 6u(1-u)
    assert float(drawn(distribution="cosine_map").median()) == pytest.approx(500, abs=10)
    assert float(drawn(shift=3.0).median()) == pytest.approx(750, abs=15)  # 3 x 0.5 / (1 + 2 x 0.5)
    assert shifted(torch.tensor(0.25), 2.0).item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"noise_offset_random": True}, "noise_offset_random is on, but noise_offset is 0"),
        ({"ip_noise_random": True}, "ip_noise_random is on, but ip_noise_gamma is 0"),
        ({"multires_iterations": 6, "noise_offset": 0.1}, "use one of them"),
        ({"timestep_distribution": "logit_normal", "timestep_scale": 0.0}, "needs a width above 0"),
        ({"timestep_distribution": "heavy_tail", "timestep_scale": 2.0}, "heavy_tail allows -1 to 1.75"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma is 0"),
        ({"weighting": "min-snr"}, "'min_snr'"),
        ({"loss_type": "hubert"}, "'huber'"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        EpsilonParams(**given)


def test_settings_of_old_runs_are_still_read() -> None:
    old = {"noise_offset": 0.05, "min_timestep": 10, "max_timestep": 990}
    params = EpsilonParams.from_json(old)
    assert {name: value for name, value in params.to_json().items() if name in old} == old
    assert list(params.to_json())[:3] == list(old)


def test_old_numbers_are_the_same() -> None:
    """Draws come in the order they always came in: noise, offset, time steps."""
    latents = torch.randn(2, 4, 4, 4, generator=generator(1))
    question = epsilon.ask(
        latents, alphas_cumprod=TABLE, params=EpsilonParams(noise_offset=0.1), generator=generator(2)
    )
    draws = generator(2)
    noise = torch.randn(2, 4, 4, 4, generator=draws)
    noise = noise + 0.1 * torch.randn(2, 4, 1, 1, generator=draws)
    assert torch.equal(question.target, noise)
    assert torch.equal(question.timesteps, torch.randint(0, 1000, (2,), generator=draws))
