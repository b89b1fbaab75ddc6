"""Bad stages through the graph runner: each ends in one clear sentence that names the stage, before any work."""

import json
import shutil

import pytest

from atelier_tests.headless.test_bad_input import check_training_refused, tiny_base, world
from atelier_tests.helpers import bad_world as bad
from atelier_tests.helpers.api_graphs import node, train

__all__ = ["tiny_base", "world"]


def staged(first=None, second=None, **changes):
    """A training graph of 4 steps in two stages."""
    return train(
        s1=node("AtelierTrainStage", **{"steps": 2, **(first or {})}),
        s2=node("AtelierTrainStage", before=["s1", 0], **(second or {})),
        **{"train__steps": 4, "train__stages": ["s2", 0], **changes},
    )


def unet_only(first=None, second=None, **changes):
    return staged(first, second, train__train_text_encoder=False, **changes)


def prodigy(**second):
    return staged(None, second, opt=node("AtelierOptimizerProdigy", lr_unet=1.0, lr_text_encoder=1.0))


def only_reg(world):
    shutil.copytree(world.input / "good", world.input / "reg")


def with_data(folder, **given):
    """The second stage has a data set of its own."""
    return staged(
        None, {"dataset": ["d2", 0]}, d2=node("AtelierOpenDataset", **{"folder": folder, "reg_folder": "", **given})
    )


CASES = [
    # id, preparation, graph, what the message must say
    ("steps too few", None, staged({"steps": 1}, {"steps": 2}), ["1 \\+ 2 = 3 steps", "run has 4", "set the run's"]),
    ("steps that are too many", None, staged({"steps": 3}, {"steps": 2}), ["3 \\+ 2 = 5", "run has 4", "to 5"]),
    ("two stages that take the rest", None, staged({"steps": 0}), ["1 and 2 both have steps 0", "only one"]),
    ("no steps left", None, staged({"steps": 4}), ["take 4 of the run's 4 steps", "none for stage 2"]),
    ("negative steps", None, staged({"steps": -1}), ["steps is -1", "from 0"]),
    ("half a step", None, staged({"steps": 1.5}), ["steps is 1.5", "whole number"]),
    ("a size between the steps", None, staged(None, {"resolution_px": 100}), ["Stage 2", "resolution_px is 100", "64"]),
    ("a size beyond the buckets", None, staged(None, {"resolution_px": 128}), ["Stage 2", "128 x 128", "64"]),
    ("a size too small", None, staged(None, {"resolution_px": 8}), ["Stage 2", "resolution_px is 8", "32 to 4096"]),
    ("a batch beyond all bounds", None, staged(None, {"batch_size": 5000}), ["batch_size is 5000", "1024"]),
    (
        "a batch larger than an update",
        None,
        staged(None, {"batch_size": 4}, train__accumulation_images=2),
        ["Stage 2", "accumulation_images is 2", "batch_size is 4"],
    ),
    (
        "nothing trained in a stage",
        None,
        staged(None, {"unet_lr_factor": 0.0, "text_encoder_lr_factor": 0.0}),
        ["Stage 2", "both 0", "nothing would be trained"],
    ),
    (
        "the only part rests",
        None,
        unet_only(None, {"unet_lr_factor": 0.0}),
        ["Stage 2", "unet_lr_factor is 0", "nothing would be trained"],
    ),
    (
        "a factor on what is not trained",
        None,
        unet_only({"text_encoder_lr_factor": 0.5}),
        ["Stage 1", "text_encoder_lr_factor is 0.5", "not trained"],
    ),
    ("a negative factor", None, staged(None, {"unet_lr_factor": -0.5}), ["unet_lr_factor is -0.5", "from 0"]),
    (
        "two factors for one step size",
        None,
        prodigy(unet_lr_factor=0.5),
        ["Stage 2", "unet_lr_factor is 0.5", "one step size", "one value"],
    ),
    (
        "a warm-up longer than its stage",
        None,
        staged(None, {"schedule_over": "this stage"}, opt__warmup_steps=3),
        ["Stage 2", "warmup_steps is 3", "2 steps"],
    ),
    (
        "a fall longer than its stage",
        None,
        staged(
            None, {"schedule_over": "this stage"}, opt__schedule="warmup_stable_decay", opt__decay_steps=3
        ),
        ["Stage 2", "decay_steps is 3", "2 steps"],
    ),
    ("an unknown beginning", None, staged(None, {"optimizer_state": "fresh"}), ["optimizer_state", "begin anew"]),
    ("an unknown reach", None, staged(None, {"schedule_over": "stage"}), ["schedule_over", "this stage"]),
    ("an empty folder", bad.empty_folder, with_data("empty"), ["empty", "picture"]),
    (
        "nothing but regularisation",
        only_reg,
        staged(
            None, {"dataset": ["m2", 0]}, d2=node("AtelierOpenDataset", folder="reg", reg_folder=""),
            m2=node("AtelierMarkRegularisation", dataset=["d2", 0]),
        ),
        ["Stage 2", "no picture to train on"],
    ),
    (
        "a LoRA of another architecture to begin with",
        bad.foreign_lora,
        train(lora=node("AtelierOpenLora", lora_name="sdxl.safetensors"), train__start_from=["lora", 0]),
        ["sdxl.safetensors", "sdxl", "sd15|tiny"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_stages(world, prepare, graph, said):  # noqa: F811 -- the fixture of the other file
    if prepare is not None:
        prepare(world)
    check_training_refused(world, graph, said)


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 20
    assert len({json.dumps(case[2], sort_keys=True) for case in CASES}) == len(CASES)
