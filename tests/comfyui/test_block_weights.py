"""Block weights in a real ComfyUI: ALL is the core loader, a baked file is the live LoRA, steps are its hooks."""

from typing import Any

import numpy as np
import pytest
import torch

from atelier_tests.comfyui.graphs import Graph, core_drawing, lora_names, node, picture
from atelier_tests.helpers.comfy_server import Comfy
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_tensors
from lora_atelier.families._base import open_base
from lora_atelier.families._targets import every_target
from lora_atelier.merger.lora.handle import explain_strengths, open_lora
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network
from lora_atelier.networks._targeting import parse_targeting
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.local_generate import encode_prompt
from lora_atelier.nodes.host.protocol import PICO_NAME, PICO_XL_NAME
from lora_atelier.trainer.export import save_lora

BASES = {"sd15": PICO_NAME, "sdxl": PICO_XL_NAME}
VARIANTS = {
    "lora": {"rank": 4},
    "lora locon": {"rank": 4, "conv_rank": 2},
    "loha": {"rank": 3, "conv_rank": 2},
    "lokr": {"rank": 2, "factor": 4, "conv_rank": 2},
    "full": {},
}
PROMPT, SEED, SIZE_PX, STEPS = "red circle, white background", 3, 64, 6
WEIGHTS = "OUTALL MID=0.4 IN=-0.3:lbwe=OUT:attn2:0.5"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalHost:
    return LocalHost(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def files(comfy: Comfy, local: LocalHost) -> dict[tuple[str, str], str]:
    """A LoRA of every variant for both bases in the server's loras folder, by its name there."""
    found = {}
    for family, base in BASES.items():
        model, _, _ = local.load_base(open_base(local.checkpoint_path(base), name=base))
        own, components = model.base.family, model.base.components
        for variant, settings in VARIANTS.items():
            network = get_network(variant.partition(" ")[0])
            params = network.params(**settings)
            text = "groups: full" if network.name == "full" else ""
            targets = parse_targeting(text, own.blocks).choose(every_target(own, components), network, params)
            chosen = Choice(kind="network", name=network.name, params=params)
            adapter = AdapterSet.attach([target for target, _ in targets], chosen, seed=0)
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for stem in adapter.stems:
                    for value in adapter.parts_of(stem).values():
                        value.add_(torch.randn(value.shape, generator=generator) * 0.05)
            name = f"{family}-{variant.replace(' ', '-')}.safetensors"
            told = {"ss_base_model_version": own.base_model_version}
            save_lora(
                comfy.base / "models/loras" / name, adapter, metadata=told, dtype="fp16",
                accepted_stems=own.accepted_stems(components),
            )  # fmt: skip
            adapter.detach_from_model()
            found[family, variant] = name
    return found


def base_of(family: str) -> Graph:
    return {
        "1": node("AtelierOpenBase", base_name=BASES[family], dtype="fp32"),
        "2": node("AtelierBaseToModel", base=["1", 0]),
    }


def drawn(comfy: Comfy, family: str, nodes: Graph, model: list[Any], clip: list[Any]) -> np.ndarray:
    graph = {**base_of(family), **nodes}
    graph |= core_drawing(model, clip, ["2", 2], prompt=PROMPT, seed=SEED, size_px=SIZE_PX, steps=STEPS)
    return picture(comfy, comfy.run(graph, timeout_s=600), "c6")


def plain(comfy: Comfy, family: str) -> np.ndarray:
    return drawn(comfy, family, {}, ["2", 0], ["2", 1])


def core_loader(comfy: Comfy, family: str, name: str, unet: float, text: float) -> np.ndarray:
    loader = node("LoraLoader", model=["2", 0], clip=["2", 1], lora_name=name, strength_model=unet, strength_clip=text)
    return drawn(comfy, family, {"3": loader}, ["3", 0], ["3", 1])


def applied(comfy: Comfy, family: str, name: str, unet: float, text: float, weights: str) -> np.ndarray:
    nodes = {
        "3": node("AtelierOpenLora", lora_name=name, strength_model=unet, strength_clip=text, block_weights=weights),
        "4": node(
            "AtelierApplyLora", model=["2", 0], clip=["2", 1], lora=["3", 0], strength_model=1.0, strength_clip=1.0,
            block_weights="",
        ),
    }  # fmt: skip
    return drawn(comfy, family, nodes, ["4", 0], ["4", 1])


def from_prompt(comfy: Comfy, family: str, tags: str) -> np.ndarray:
    nodes = {"3": node("AtelierLoraPrompt", model=["2", 0], clip=["2", 1], prompt=f"{tags} {PROMPT}")}
    graph = {**base_of(family), **nodes}
    graph |= core_drawing(["3", 0], ["3", 1], ["2", 2], prompt="", seed=SEED, size_px=SIZE_PX, steps=STEPS)
    graph["c1"]["inputs"]["text"] = ["3", 2]
    return picture(comfy, comfy.run(graph, timeout_s=600), "c6")


@pytest.mark.parametrize("family", BASES)
def test_all_is_the_core_loader(comfy: Comfy, files: dict[tuple[str, str], str], family: str) -> None:
    name = files[family, "lora locon"]
    core = core_loader(comfy, family, name, 0.8, 0.6)
    assert (core != plain(comfy, family)).any()
    np.testing.assert_array_equal(applied(comfy, family, name, 0.8, 0.6, "ALL"), core)
    np.testing.assert_array_equal(from_prompt(comfy, family, f"<lora:{name}:0.6:0.8>"), core)
    np.testing.assert_array_equal(from_prompt(comfy, family, f"<lora:{name[:-12]}:0.6:0.8:ALL>"), core)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", BASES)
def test_a_baked_file_is_the_live_lora(
    comfy: Comfy, files: dict[tuple[str, str], str], family: str, variant: str
) -> None:
    name = files[family, variant]
    live = applied(comfy, family, name, 0.9, 0.4, WEIGHTS)
    graph = {
        "3": node("AtelierOpenLora", lora_name=name, strength_model=0.9, strength_clip=0.4, block_weights=WEIGHTS),
        "4": node("AtelierBakeLora", lora=["3", 0], file_name=f"baked/{name}", if_exists="refuse"),
    }
    comfy.run(graph)
    assert f"baked/{name}" in [known.replace("\\", "/") for known in lora_names(comfy)]
    np.testing.assert_array_equal(core_loader(comfy, family, f"baked/{name}", 1.0, 1.0), live)
    assert (live != core_loader(comfy, family, name, 0.9, 0.4)).any()


def hooked(comfy: Comfy, family: str, name: str, frames: list[tuple[float, float]]) -> np.ndarray:
    """The same with core nodes: hooks on the CLIP, the UNet's strength by keyframes at percentages."""
    nodes: Graph = {
        "3": node("CreateHookLora", lora_name=name, strength_model=0.8, strength_clip=0.0),
        "4": node("LoraLoader", model=["2", 0], clip=["2", 1], lora_name=name, strength_model=0.0, strength_clip=0.6),
    }
    last: dict[str, Any] = {}
    for number, (percent, strength) in enumerate(frames):
        nodes[f"k{number}"] = node("CreateHookKeyframe", strength_mult=strength, start_percent=percent, **last)
        last = {"prev_hook_kf": [f"k{number}", 0]}
    nodes["5"] = node("SetHookKeyframes", hooks=["3", 0], hook_kf=[f"k{len(frames) - 1}", 0])
    nodes["6"] = node("SetClipHooks", clip=["4", 1], apply_to_conds=True, schedule_clip=False, hooks=["5", 0])
    return drawn(comfy, family, nodes, ["2", 0], ["6", 0])


@pytest.mark.parametrize("family", BASES)
def test_steps_are_comfyuis_hooks(
    comfy: Comfy, files: dict[tuple[str, str], str], local: LocalHost, family: str
) -> None:
    name = files[family, "lora"]
    core = core_loader(comfy, family, name, 0.8, 0.6)
    everywhere = applied(comfy, family, name, 0.8, 0.6, f"start=1:stop={STEPS + 1}")
    np.testing.assert_array_equal(everywhere, core)

    part = applied(comfy, family, name, 0.8, 0.6, "step=3-5")
    assert (part != core).any()
    np.testing.assert_array_equal(from_prompt(comfy, family, f"<lora:{name}:0.6:0.8:step=3-5>"), part)
    # The normal schedule is even in time, first and last step at its ends: a keyframe lies half a step before its step.
    frames = [(0.0, 0.0), (1.5 / (STEPS - 1), 1.0), (3.5 / (STEPS - 1), 0.0)]
    np.testing.assert_array_equal(hooked(comfy, family, name, frames), part)

    np.testing.assert_allclose(
        locally(local, family, comfy.base / "models/loras" / name, "step=3-5").astype(float), part.astype(float), atol=3
    )


def locally(host: LocalHost, family: str, path: Any, weights: str) -> np.ndarray:
    model, clip, vae = host.load_base(open_base(host.checkpoint_path(BASES[family]), name=BASES[family]))
    lora = open_lora(path, path.name, block_weights=weights)
    found = explain_strengths(lora)
    model, clip = host.schedule_lora(
        model, clip, read_tensors(path), strength_model=0.8, strength_clip=0.6, stem_strengths=found.factors,
        start=found.start, stop=found.stop,
    )  # fmt: skip
    texts = [encode_prompt(clip, text) for text in (PROMPT, "blurry")]
    latent = host.sample(
        model, *texts, width_px=SIZE_PX, height_px=SIZE_PX, seed=SEED, steps=STEPS, cfg=6.0, sampler="euler",
        scheduler="normal",
    )  # fmt: skip
    return (host.decode(vae, latent)[0] * 255.0).clamp(0, 255).byte().numpy()


def test_the_map_is_drawn(comfy: Comfy, files: dict[tuple[str, str], str]) -> None:
    graph = {
        "3": node(
            "AtelierOpenLora", lora_name=files["sdxl", "lora locon"], strength_model=1.0, strength_clip=1.0,
            block_weights="INALL",
        ),
        "4": node("AtelierLoraBlockMap", lora=["3", 0], theme="dark"),
    }  # fmt: skip
    entry = comfy.run(graph)
    assert picture(comfy, entry, "4").shape[2] == 3
    assert "Preset INALL" in entry["outputs"]["4"]["text"][0]
