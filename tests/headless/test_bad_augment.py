"""Bad augmentation, caches and latents through the graph runner: one clear sentence each, or a said detour."""

import json
import math
import os

import numpy as np
import pytest
from PIL import Image

from atelier_tests.headless.test_bad_input import check_message, contents, run, tiny_base, world
from atelier_tests.helpers import bad_world as bad
from atelier_tests.helpers.api_graphs import node, train
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.files import free_bytes

__all__ = ["tiny_base", "world"]


def with_augment(changes=None, /, **settings):
    """A training graph with augmentation; ``changes`` are those of ``train``."""
    return train(aug=node("AtelierTrainAugment", **settings), train__augment=["aug", 0], **(changes or {}))


def full_for_caches(world):
    """There is room for the run, and not for its caches."""
    world.patch.setattr("lora_atelier.trainer.latents.ensure_space", full)


def full(folder, needed_bytes):
    from lora_atelier.core.errors import StorageError

    raise StorageError(f"{folder} needs {needed_bytes / 2**20:,.0f} MiB of disk space and 0 MiB are free; free some")


def full_in_the_middle(world):
    """The second shard finds no room."""
    from lora_atelier.core import shards

    world.patch.setattr(shards, "SHARD_BYTES", 1)
    real, written = shards.write_tensors, []

    def write(path, *given):
        written.append(path)
        if len(written) > 1:
            raise OSError(28, "No space left on device", str(path))
        real(path, *given)

    world.patch.setattr(shards, "write_tensors", write)


def cache_is_a_file(world):
    folder = world.host.cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latent-shards").write_bytes(b"in the way")


def cache_blocked(world):
    folder = world.host.cache_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        folder.rmdir()
    folder.write_bytes(b"in the way")


CASES = [
    # id, preparation, graph, what the message must say
    ("no variants", None, with_augment(variants=0), ["variants is 0", "from 1 to 64"]),
    ("far too many variants", None, with_augment(variants=5000), ["variants is 5000", "from 1 to 64"]),
    ("half a variant", None, with_augment(variants=1.5), ["variants is 1.5", "whole number"]),
    ("variants that are all the same", None, with_augment(variants=4, random_crop=False), ["all be the same"]),
    ("colours of one variant", None, with_augment(colour_jitter=True), ["colour_jitter", "variants is 1"]),
    ("zoom of one variant", None, with_augment(crop_zoom=1.5), ["crop_zoom", "variants is 1"]),
    ("zoom outwards", None, with_augment(variants=2, crop_zoom=0.5), ["crop_zoom is 0.5", "from 1.0 to 3.0"]),
    (
        "zoom without crops",
        None,
        with_augment(variants=2, crop_zoom=1.5, random_crop=False, colour_jitter=True),
        ["crop_zoom is 1.5", "random_crop is off"],
    ),
    (
        "brightness the wrong way round",
        None,
        with_augment(variants=2, brightness_min=1.3, brightness_max=0.7),
        ["brightness_min is 1.3", "0.7", "exchange"],
    ),
    (
        "contrast the wrong way round",
        None,
        with_augment(variants=2, contrast_min=2.0),
        ["contrast_min is 2", "exchange"],
    ),
    ("saturation below nothing", None, with_augment(saturation_min=-1.0), ["saturation_min is -1", "from 0.0 to 3.0"]),
    ("hues the wrong way round", None, with_augment(hue_min_degrees=20.0), ["hue_min_degrees is 20", "exchange"]),
    ("hues without end", None, with_augment(hue_max_degrees=math.inf), ["hue_max_degrees is inf"]),
    ("brightness that is no number", None, with_augment(brightness_max=math.nan), ["brightness_max is nan"]),
    ("forms below zero", None, with_augment(caption_variants=-2), ["caption_variants is -2", "from 0 to 64"]),
    ("resolution in words", None, with_augment(resolutions_px="hd"), ["'hd'", "768, 1024"]),
    ("resolution twice", None, with_augment(resolutions_px="64, 64"), ["64 twice"]),
    ("resolution of no step", None, with_augment(resolutions_px="65"), ["65", "multiples of 8"]),
    ("resolution beyond the buckets", None, with_augment(resolutions_px="512"), ["512 x 512 px", "64 to 64 px"]),
    ("too many resolutions", None, with_augment(resolutions_px="32 40 48 56 64 72 80 88 96"), ["9 resolutions"]),
    ("use of resolutions", None, with_augment(resolution_use="al"), ["resolution_use", "'al'"]),
    ("small batches dropped", None, with_augment(small_batches="drop"), ["small_batches", "'drop'"]),
    ("something else for the socket", None, train(train__augment=["opt", 0]), ["ATELIER_AUGMENT", "ATELIER_OPTIMIZER"]),
    ("no room for the cache", full_for_caches, with_augment(variants=8), ["MiB of disk space"]),
    ("disk full while the cache is filled", full_in_the_middle, with_augment(variants=2), ["the disk is full"]),
    ("a file where the cache belongs", cache_is_a_file, train(), ["latent-shards", "in the way|not a folder"]),
    ("no cache folder", cache_blocked, train(), ["cache", "in the way|not a folder|cannot be"]),
    (
        "nothing left by a filter",
        None,
        train(few=node("AtelierFilterDataset", dataset=["data", 0], query="width > 9000"), train__dataset=["few", 0]),
        ["keeps no training picture"],
    ),
    (
        "nothing but broken pictures",
        bad.broken_pictures,
        with_augment({"data__folder": "broken"}, variants=2),
        ["a.png", "picture"],
    ),
]


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_augment(world, monkeypatch, prepare, graph, said):  # noqa: F811 -- the fixture of the other file
    world.patch = monkeypatch
    if prepare is not None:
        prepare(world)
    before = contents(world.base_dir)
    with pytest.raises(AtelierError) as caught:
        run(world, graph)
    check_message(str(caught.value), said)
    after = contents(world.base_dir)
    kept = {name for name in before if "index.sqlite" not in name}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert not [name for name in set(after) - set(before) if name.endswith(".tmp")]


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 20
    assert free_bytes(os.getcwd()) > 0


def test_a_picture_of_no_numbers_is_trained_as_black(world):  # noqa: F811
    """A floating-point TIFF with NaN and infinities: they count as 0 and white, not as a broken run."""
    values = np.full((64, 64), np.nan, dtype=np.float32)
    values[:8], values[8:16] = np.inf, 0.5
    Image.fromarray(values).save(world.input / "good" / "9.tiff")
    run(world, with_augment(variants=2, colour_jitter=True, crop_zoom=1.2))
    assert list((world.loras / "atelier").rglob("try*.safetensors"))


def test_a_damaged_shard_is_made_again_by_the_next_run(world):  # noqa: F811
    run(world, with_augment(variants=2))
    shards = list((world.host.cache_dir() / "latent-shards").rglob("*.safetensors"))
    assert shards
    for path in shards:
        path.write_bytes(path.read_bytes()[:100])
    run(world, with_augment({"train__seed": 5}, variants=2))
    assert all(path.stat().st_size > 1000 for path in shards if path.exists())
    assert len(list((world.loras / "atelier").rglob("try*.safetensors"))) >= 1
    assert json.dumps(sorted(contents(world.base_dir))).count(".tmp") == 0
