"""Bad settings of captions, masks and regularisation through the graph runner: each ends in one clear sentence."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from atelier_tests.headless.test_bad_input import check_training_refused, run, tiny_base, world
from atelier_tests.helpers.api_graphs import node, train
from atelier_tests.helpers.bad_world import lora_tensors
from atelier_tests.helpers.full_size import TINY, write_tiny_checkpoint
from lora_atelier.core.tensors import write_tensors

__all__ = ["tiny_base", "world"]


def captions(**settings):
    """A training graph with settings of captions."""
    return train(caps=node("AtelierTrainCaptions", **settings), train__captions=["caps", 0])


def subset(**options):
    """A training graph with options of folders."""
    return train(sub=node("AtelierSubsetOptions", dataset=["data", 0], **options), train__dataset=["sub", 0])


def masks(source="files", mask_folder="", **changes):
    """A training graph with masks."""
    found = node("AtelierSetMasks", dataset=["data", 0], source=source, mask_folder=mask_folder)
    return train(masks=found, **{"train__dataset": ["masks", 0], **changes})


def with_mask(size=(64, 64), grey=255):
    """Puts a mask beside each picture."""

    def prepare(world):
        for path in sorted((world.input / "good").glob("?.png")):
            Image.new("L", size, grey).save(path.with_name(f"{path.stem}-masklabel.png"))

    return prepare


def cut_mask(world):
    """A mask whose header is good and whose pixels are not there."""
    with_mask()(world)
    path = world.input / "good" / "1-masklabel.png"
    # Few grey values, so that they are packed: bytes that are merely stored may hold anything.
    noise = np.random.default_rng(0).integers(0, 8, (64, 64)).astype(np.uint8) * 32
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    third = len(data) // 3
    path.write_bytes(data[:third] + bytes(third) + data[2 * third :])


def reg_folder(world):
    shutil.copytree(world.input / "good", world.input / "reg")


def empty_reg(world):
    (world.input / "reg").mkdir()


def sdxl_lora(world):
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    write_tensors(world.loras / "xl.safetensors", lora_tensors(stem), {"ss_base_model_version": "sdxl_base_v1-0"})


def captioned(text):
    """Gives one picture another caption."""
    return lambda world: (world.input / "good" / "1.txt").write_text(text, encoding="utf-8")


def few_positions(world):
    sizes = {**TINY, "text_encoder": {**TINY["text_encoder"], "max_position_embeddings": 40}}
    write_tiny_checkpoint(world.checkpoints / "short.safetensors", sizes=sizes)


CASES = [
    # id, preparation, graph, what the message must say
    (
        "stop at the end",
        None,
        train(train__text_encoder_stop=2),
        ["text_encoder_stop is step 2", "has 2 steps", "0 to"],
    ),
    ("stop beyond the end", None, train(train__text_encoder_stop=500), ["step 500", "2 steps", "earlier"]),
    (
        "stop of what is not trained",
        None,
        train(train__text_encoder_stop=1, train__train_text_encoder=False),
        ["text_encoder_stop is step 1", "not trained", "train the text encoder"],
    ),
    (
        "stop of all there is",
        None,
        train(train__text_encoder_stop=1, train__train_unet=False),
        ["only the text encoder is trained", "train the UNet"],
    ),
    ("stop at half a step", None, train(train__text_encoder_stop=1.5), ["text_encoder_stop is 1.5", "whole steps"]),
    ("stop before the start", None, train(train__text_encoder_stop=-1), ["text_encoder_stop is -1", "from 0"]),
    ("stop at no number", None, train(train__text_encoder_stop=math.nan), ["text_encoder_stop is nan", "finite"]),
    ("a second encoder that is not there", None, train(train__clip_skip_2=2), ["clip_skip_2 is 2", "one text encoder"]),
    ("a second clip skip beyond all", None, train(train__clip_skip_2=99), ["clip_skip_2 is 99", "0 to 32"]),
    (
        "nothing to preserve",
        None,
        train(train__prior_preservation=True),
        ["prior_preservation is on", "no regularisation picture", "reg_folder"],
    ),
    (
        "answers that do not count",
        reg_folder,
        train(train__prior_preservation=True, train__prior_loss_weight=0.0, data__reg_folder="reg"),
        ["prior_preservation is on", "prior_loss_weight is 0", "raise"],
    ),
    ("a prior that is a text", None, train(train__prior_preservation="yes"), ["prior_preservation is 'yes'", "true"]),
    (
        "regularisation only",
        None,
        train(
            mark=node("AtelierMarkRegularisation", dataset=["data", 0], query="red", weight=1.0),
            train__dataset=["mark", 0],
        ),
        ["picture", "train|regularisation"],
    ),
    (
        "black that counts without masks",
        None,
        train(train__unmasked_weight=0.5),
        ["unmasked_weight is 0.5", "Set Masks"],
    ),
    ("areas without masks", None, train(train__normalize_masks=True), ["normalize_masks is True", "no masks"]),
    (
        "black that counts more than white",
        None,
        train(train__unmasked_weight=1.5),
        ["unmasked_weight is 1.5", "0 to 1"],
    ),
    ("black that counts nan", None, train(train__unmasked_weight=math.nan), ["unmasked_weight is nan", "finite"]),
    ("black masks", with_mask(grey=0), masks(), ["all 3 training pictures", "black all over", "invert"]),
    ("masks of another shape", with_mask(size=(64, 20)), masks(), ["64 x 20 px", "64 x 64 px"]),
    ("a mask cut short", cut_mask, masks(), ["1 mask cannot be used", "1.png", "repair"]),
    ("masks that are not there", None, masks(), ["no picture has a mask file", "0-masklabel.png"]),
    ("transparency that is not there", None, masks(source="alpha"), ["no picture is transparent", "another source"]),
    ("a mask folder that is not there", None, masks(mask_folder="goood"), ["goood", "mask folder"]),
    ("a mask folder outside", None, masks(mask_folder="../../outside"), [r"'\.\.'", "without"]),
    ("masks of an unknown kind", None, masks(source="file"), ["source", "did you mean 'files'"]),
    ("a length between the parts", None, captions(max_tokens=100), ["max_tokens", "100", "75.*150.*225"]),
    ("a length in words", None, captions(max_tokens="long"), ["max_tokens", "long", "75.*150.*225"]),
    ("an unknown way to join", None, captions(long_captions="a1111"), ["long_captions", "a1111", "comfyui"]),
    ("a base with few places", few_positions, train(base__base_name="short.safetensors"), ["40 tokens|position", "77"]),
    ("a warm-up longer than the run", None, captions(token_warmup=50), ["token_warmup is 50", "run has 2", "share"]),
    ("a warm-up of two and a half steps", None, captions(token_warmup=2.5), ["token_warmup is 2.5", "whole steps"]),
    ("a start without a warm-up", None, captions(token_warmup_min=3), ["token_warmup_min is 3", "token_warmup is 0"]),
    ("a warm-up backwards", None, captions(token_warmup=-1), ["token_warmup is -1", "from 0"]),
    (
        "a weight that is no number",
        captioned("red, (circle:nan)"),
        captions(weighted_captions=True),
        [r"\(circle:nan\)", "weight nan", "-10 to 10"],
    ),
    (
        "a weight beyond all bounds",
        captioned("red, ((circle:50))"),
        captions(weighted_captions=True),
        ["weight 50", "-10 to 10", r"\\\("],
    ),
    (
        "a separator with a comma",
        None,
        subset(keep_tokens_separator="a, b"),
        ["keep_tokens_separator", "comma", "another"],
    ),
    (
        "separators that hold each other",
        None,
        subset(keep_tokens_separator="||", secondary_separator="|||"),
        [r"'\|\|'", "one holds the other", "different"],
    ),
    ("a negative loss weight", None, subset(loss_weight=-0.5), ["loss_weight is -0.5", "0 to 100"]),
    ("an infinite loss weight", None, subset(loss_weight=math.inf), ["loss_weight is inf", "finite"]),
    (
        "a loss that counts nothing",
        None,
        subset(loss_weight=0.0),
        ["loss weights of all training pictures are 0", "raise"],
    ),
    ("captions that are a text", None, train(train__captions="long"), ["takes a wire of type ATELIER_CAPTIONS"]),
    ("captions of another kind", None, train(train__captions=["opt", 0]), ["ATELIER_CAPTIONS", "ATELIER_OPTIMIZER"]),
]


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_captions(world, prepare, graph, said):  # noqa: F811 -- the fixture of the other file
    if prepare is not None:
        prepare(world)
    check_training_refused(world, graph, said)


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 40
    assert len({json.dumps(case[2], sort_keys=True) + str(case[1]) for case in CASES}) == len(CASES)


def test_a_good_graph_with_all_of_it_runs(world):  # noqa: F811
    with_mask()(world)
    reg_folder(world)
    graph = train(
        masks=node("AtelierSetMasks", dataset=["sub", 0], source="files", mask_folder=""),
        sub=node("AtelierSubsetOptions", dataset=["data", 0], keep_tokens_separator="|||", loss_weight=0.5),
        caps=node("AtelierTrainCaptions", max_tokens=150, weighted_captions=True, token_warmup=0.5),
        data__reg_folder="reg",
        train__dataset=["masks", 0],
        train__captions=["caps", 0],
        train__prior_preservation=True,
        train__unmasked_weight=0.1,
        train__text_encoder_stop=1,
    )
    run(world, graph)
    (manifest,) = (world.output / "atelier" / "runs").glob("try-*/manifest.json")
    config = json.loads(manifest.read_text(encoding="utf-8"))["config"]
    assert config["captions"]["max_tokens"] == 150
    assert config["train"]["text_encoder_stop"] == 1.0
