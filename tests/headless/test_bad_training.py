"""Bad settings of optimizer, objective and precision, through the graph runner: each ends in one clear sentence."""

import importlib.util
import json

import pytest

from atelier_tests.headless.test_bad_input import check_message, check_training_refused, run, tiny_base, world
from atelier_tests.helpers.api_graphs import node, train
from lora_atelier.core.errors import AtelierError

__all__ = ["tiny_base", "world"]


def with_optimizer(kind, **settings):
    """A training graph with another optimizer."""
    return train(opt=node(f"AtelierOptimizer{kind}", **settings))


def with_objective(kind="Epsilon", **settings):
    """A training graph with an objective of its own."""
    return train(obj=node(f"AtelierObjective{kind}", **settings), train__objective=["obj", 0])


CASES = [
    # id, graph, what the message must say
    ("lr 0", train(opt__lr_unet=0.0), ["lr_unet is 0", "train_unet", "above 0"]),
    ("lr 0 of the text encoder", train(opt__lr_text_encoder=0.0), ["lr_text_encoder is 0", "switch"]),
    (
        "two rates for one step size",
        with_optimizer("Prodigy", lr_unet=1.0, lr_text_encoder=0.5),
        ["lr_text_encoder is 0.5", "Prodigy", "set both to 1"],
    ),
    (
        "AdamW's rate for Prodigy",
        with_optimizer("Prodigy", lr_unet=1e-4, lr_text_encoder=1e-4),
        ["lr_unet is 0.0001", "finds the step size itself", "set it to 1"],
    ),
    (
        "step list for D-Adaptation",
        with_optimizer("DadaptLion", schedule="step_list", rates="1:100"),
        ["step_list", "D-Adaptation Lion", "constant or cosine"],
    ),
    ("growth below 1", with_optimizer("DadaptAdam", growth_rate=0.5), ["growth_rate is 0.5", "at least 1"]),
    ("unknown optimizer class", with_optimizer("Other", class_name="Adopt2"), ["optimizer class", "Adopt2", "ADOPT"]),
    ("arguments without a name", with_optimizer("Other", arguments="0.1"), ["arguments has '0.1'", "name=value"]),
    ("rate among the arguments", with_optimizer("Other", arguments="lr=0.1"), ["lr=0.1", "inputs of their own"]),
    (
        "an argument the class does not know",
        with_optimizer("Other", class_name="RMSprop", arguments="warmth=3"),
        ["RMSprop does not take", "warmth"],
    ),
    (
        "a class that needs another optimizer",
        with_optimizer("Other", class_name="Lookahead"),
        ["Lookahead", "does not take|cannot train"],
    ),
    ("a class that needs a closure", with_optimizer("Other", class_name="LBFGS"), ["LBFGS", "does not take|cannot"]),
    ("empty step list", train(opt__schedule="step_list"), ["rates is empty", "0.005:100"]),
    (
        "step list backwards",
        train(opt__schedule="step_list", opt__rates="0.01:100, 0.001:50"),
        ["0.001:50", "after step 100", "must rise"],
    ),
    (
        "step list of words",
        train(opt__schedule="step_list", opt__rates="fast:100"),
        ["'fast' is no learning rate", "0.005:100"],
    ),
    ("rates of another schedule", train(opt__rates="0.01:100"), ["rates is '0.01:100'", "constant", "step_list"]),
    ("a fall of no length", train(opt__schedule="warmup_stable_decay"), ["decay_steps is 0", "length of the fall"]),
    (
        "a fall longer than the run",
        train(opt__schedule="warmup_stable_decay", opt__decay_steps=50),
        ["decay_steps is 50", "2 steps of the run"],
    ),
    (
        "two schedules at once",
        with_optimizer("Adafactor", relative_step=True, schedule="cosine"),
        ["relative_step is on", "cosine", "constant"],
    ),
    (
        "a warm-up of nothing",
        with_optimizer("Adafactor", warmup_init=True),
        ["warmup_init is on", "relative_step is off"],
    ),
    (
        "a schedule for the schedule-free",
        with_optimizer("ScheduleFreeAdamw", schedule="cosine"),
        ["The schedule is cosine", "averages the weights", "constant"],
    ),
    (
        "two averages",
        train(opt=node("AtelierOptimizerScheduleFreeAdamw"), train__ema_decay=0.99),
        ["ema_decay is 0.99", "averages the weights itself"],
    ),
    ("an average that never moves", train(train__ema_decay=1.0), ["ema_decay is 1", "0.99999"]),
    (
        "accumulation counted twice",
        train(train__accumulation_images=4, train__gradient_accumulation_steps=2),
        ["accumulation_images is 4", "gradient_accumulation_steps is 2"],
    ),
    (
        "an update smaller than a batch",
        train(train__accumulation_images=2, train__batch_size=4),
        ["accumulation_images is 2", "batch_size is 4"],
    ),
    (
        "weights finer than the computation",
        train(train__trained_dtype="bf16"),
        ["trained_dtype is bf16", "precision is fp32", "set precision to bf16"],
    ),
    ("rounding of fp32", train(train__stochastic_rounding=True), ["stochastic_rounding is on", "bf16"]),
    ("unknown weighting", with_objective(weighting="minsnr"), ["weighting", "did you mean 'min_snr'"]),
    (
        "two kinds of coarse noise",
        with_objective(noise_offset=0.1, multires_iterations=6),
        ["multires_iterations is 6", "noise_offset is 0.1", "one of them"],
    ),
    (
        "a random strength of nothing",
        with_objective(noise_offset_random=True),
        ["noise_offset_random is on", "noise_offset is 0"],
    ),
    ("a perturbation of nothing", with_objective(ip_noise_random=True), ["ip_noise_random is on", "gamma is 0"]),
    (
        "a distribution of no width",
        with_objective(timestep_distribution="logit_normal", timestep_scale=0.0),
        ["timestep_scale is 0", "logit_normal"],
    ),
    (
        "velocity of a noise model",
        with_objective("VPrediction"),
        ["v_prediction", "tiny.safetensors", "predicts epsilon"],
    ),
]


@pytest.mark.parametrize(("graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_training(world, graph, said):  # noqa: F811 -- the fixture of the other file
    check_training_refused(world, graph, said)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_a_missing_library_names_its_command(world):  # noqa: F811
    with pytest.raises(AtelierError) as caught:
        run(world, with_optimizer("Adamw8bit"))
    check_message(str(caught.value), ["bitsandbytes", "pip install bitsandbytes"])


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 30
    assert len({json.dumps(case[1], sort_keys=True) for case in CASES}) == len(CASES)
