"""A merge that was never written draws what the saved one draws, on the local host."""

import pytest
import torch

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.nodes.base import BaseToModel, OpenBase
from lora_atelier.nodes.host import set_host
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.merge_recipe import MergeRecipe
from lora_atelier.nodes.merge_save import MergeToModel, SaveMerge

OUTPUT = {"dtype": "fp16", "stochastic_rounding": False, "seed": 0}


@pytest.fixture
def host(tmp_path):
    made = LocalHost(tmp_path)
    set_host(made)
    yield made
    set_host(None)


def draw(host, model, clip, vae):
    positive, negative = host.encode_prompt(clip, "red"), host.encode_prompt(clip, "")
    latent = host.sample(
        model, positive, negative, width_px=64, height_px=64, seed=1, steps=2, cfg=3.0, sampler="euler",
        scheduler="normal",
    )  # fmt: skip
    return host.decode(vae, latent)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_live_is_saved(host, family):
    for seed, name in enumerate("ab"):
        write_tiny_checkpoint(host.checkpoints_dir() / f"{name}.safetensors", seed=seed, family=family)
    merge, _ = MergeRecipe().read("x = a + b, 0.4")["result"]
    live = MergeToModel().load(merge, **OUTPUT)[:3]
    base, name, _ = SaveMerge().save(merge, "", **OUTPUT)["result"]
    assert name == "x.safetensors"
    assert name in host.checkpoint_names()
    saved = BaseToModel().load(base)
    picture = draw(host, *live)
    assert torch.equal(picture, draw(host, *saved))
    (first,) = OpenBase().open("a.safetensors", "fp32")
    assert not torch.equal(picture, draw(host, *BaseToModel().load(first)))
    assert host.fingerprint(live[0]) != host.fingerprint(saved[0])
