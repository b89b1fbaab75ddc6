"""Baked files change what the live block weights change, for every algorithm, and the energies are exact."""

import json
import math

import pytest
import torch

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.core.errors import InputError
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.families._base import open_base
from lora_atelier.families._targets import every_target
from lora_atelier.merger.lora.bake import WEIGHTS_KEY, bake, save_baked
from lora_atelier.merger.lora.block_map import map_blocks, report_of, table_of
from lora_atelier.merger.lora.energy import squared_norm
from lora_atelier.merger.lora.handle import explain_strengths, open_lora
from lora_atelier.merger.lora.modules import LoraFile
from lora_atelier.networks._apply import effective_strength, module_change, split_file
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network
from lora_atelier.networks._targeting import parse_targeting
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.trainer.export import save_lora

VARIANTS = {
    "lora": {"rank": 3},
    "lora locon": {"rank": 4, "conv_rank": 2},
    "lora tucker": {"rank": 4, "conv_rank": 2, "tucker": True},
    "lora dora": {"rank": 4, "dora": "input"},
    "loha": {"rank": 3, "conv_rank": 2},
    "loha tucker": {"rank": 3, "conv_rank": 2, "tucker": True},
    "lokr": {"rank": 2, "factor": 4, "conv_rank": 2},
    "lokr full": {"factor": 4, "full_matrix": True, "conv_rank": 2},
    "lokr both": {"rank": 1, "factor": 4, "decompose_both": True},
    "full": {},
    "norm": {},
    "diag_oft": {"rank": 4},
    "ia3": {},
}
EXACT = [name for name in VARIANTS if name not in ("lora dora", "diag_oft", "ia3")]
WEIGHTS = "NIN MID=0.3 IN04-05=-0.7:lbwe=OUT:attn2:0.45"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One LoRA file of every kind, and the weights they belong to."""
    folder = tmp_path_factory.mktemp("bake")
    host = LocalHost(folder / "base")
    path = host.folders.models("checkpoints")[0] / "tiny.safetensors"
    write_tiny_checkpoint(path, dtype=torch.float32)
    model, _, _ = host.load_base(open_base(path, name="tiny.safetensors"))
    family, components = model.base.family, model.base.components
    accepted = family.accepted_stems(components)
    for name, settings in VARIANTS.items():
        network = get_network(name.partition(" ")[0])
        params = network.params(**settings)
        text = "groups: full" if network.name == "full" else ""
        targets = parse_targeting(text, family.blocks).choose(every_target(family, components), network, params)
        chosen = Choice(kind="network", name=network.name, params=params)
        adapter = AdapterSet.attach([target for target, _ in targets], chosen, seed=0)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for stem in adapter.stems:
                for value in adapter.parts_of(stem).values():
                    value.add_(torch.randn(value.shape, generator=generator) * 0.1)
        told = {"ss_base_model_version": "sd_v1", "ss_network_alpha": "8.0", "ss_tag_frequency": '{"a": {"b": 3}}'}
        save_lora(folder / f"{name}.safetensors", adapter, metadata=told, dtype="fp16", accepted_stems=accepted)
        adapter.detach_from_model()
    layers = family.modules_by_stem(components)
    return folder, layers


def opened(world, name, **given):
    return open_lora(world[0] / f"{name}.safetensors", name, **given)


def changes(world, tensors, factors=None):
    """Change of weight and bias of every layer, in fp64 where it matters, times the factor it is applied with."""
    found = {}
    for stem, parts in split_file(tensors).items():
        layer = world[1][stem]
        factor = 1.0 if factors is None else factors.get(stem, 1.0)
        weight, bias = module_change(parts, weight=layer.weight.detach(), stem=stem)
        times = effective_strength(parts, factor, stem=stem)
        found[stem] = (weight * times, None if bias is None else bias * times)
    return found


def assert_same_effect(world, lora, baked):
    weights = explain_strengths(lora)
    factors = {
        stem: factor * (lora.strength_clip if "lora_te" in stem else lora.strength_model)
        for stem, factor in weights.factors.items()
    }
    live, file = changes(world, read_tensors(lora.path), factors), changes(world, baked)
    for stem, (weight, bias) in live.items():
        if stem not in file:
            assert factors[stem] == 0.0
            continue
        for wanted, got in ((weight, file[stem][0]), (bias, file[stem][1])):
            assert (wanted is None) == (got is None)
            if wanted is not None:
                torch.testing.assert_close(got, wanted, rtol=2e-6, atol=5e-8)


@pytest.mark.parametrize("name", EXACT)
def test_a_baked_file_changes_what_live_block_weights_change(world, tmp_path, name):
    lora = opened(world, name, strength_model=0.8, strength_clip=0.35, block_weights=WEIGHTS)
    saved, made = save_baked(lora, explain_strengths(lora), tmp_path / "baked.safetensors")
    assert made.scaled > 0
    assert made.dropped > 0
    assert_same_effect(world, lora, read_tensors(saved.path))
    again = open_lora(saved.path, "baked")
    assert set(explain_strengths(again).factors.values()) == {1.0}


@pytest.mark.parametrize("name", VARIANTS)
def test_factors_of_0_and_1_are_exact_for_every_algorithm(world, name):
    lora = opened(world, name, block_weights="ALL MID=0")
    baked = bake(lora, explain_strengths(lora)).tensors
    before = read_tensors(lora.path)
    assert set(baked) < set(before)
    assert all(torch.equal(baked[key], before[key]) and baked[key].dtype == before[key].dtype for key in baked)
    assert not any("mid_block" in key for key in baked)


@pytest.mark.parametrize("name", ["lora", "lora locon", "loha", "lokr", "lora tucker"])
def test_trained_factors_stay_as_they_are(world, name):
    lora = opened(world, name, strength_model=0.3, strength_clip=0.3)
    baked = bake(lora, explain_strengths(lora))
    before = read_tensors(lora.path)
    assert baked.kept == 0
    assert baked.widened == 0
    for key, value in baked.tensors.items():
        if key.endswith(".alpha"):
            assert value.dtype == torch.float32
            assert float(value) == pytest.approx(0.3 * float(before[key]), rel=1e-6)
        else:
            assert torch.equal(value, before[key])


def test_numbers_that_have_no_alpha_are_widened_where_they_would_round(world):
    for weights, widened in ((",".join(["0.5"] * 26), False), ("IN=0.3 OUT=0.3 MID=0.3 TE=0.3", True)):
        lora = opened(world, "full", block_weights=weights)
        baked = bake(lora, explain_strengths(lora))
        assert (baked.widened > 0) == widened
        assert_same_effect(world, lora, baked.tensors)


def test_a_file_without_alphas_gets_them(tmp_path, world):
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    path = tmp_path / "plain.safetensors"
    rank, width = 2, world[1][stem].weight.shape[0]
    tensors = {
        f"{stem}.lora_down.weight": torch.randn(rank, width, 1, 1),
        f"{stem}.lora_up.weight": torch.randn(width, rank, 1, 1),
    }
    write_tensors(path, tensors, {})
    lora = open_lora(path, "plain", strength_model=0.25)
    baked = bake(lora, explain_strengths(lora)).tensors
    assert float(baked[f"{stem}.alpha"]) == 0.5
    assert_same_effect(world, lora, baked)


@pytest.mark.parametrize("name", ["lora dora", "diag_oft"])
def test_what_cannot_be_baked_says_why(world, name):
    lora = opened(world, name, strength_model=0.5)
    with pytest.raises(InputError, match="Give them 0 or 1") as caught:
        bake(lora, explain_strengths(lora))
    assert "no DoRA" in str(caught.value) or "square of the strength" in str(caught.value)
    assert "lora_unet" in str(caught.value)


def test_steps_and_nothing_cannot_be_baked(world):
    lora = opened(world, "lora", block_weights="NIN:step=2-4")
    with pytest.raises(InputError, match="knows no steps"):
        bake(lora, explain_strengths(lora))
    lora = opened(world, "lora", block_weights="NONE")
    with pytest.raises(InputError, match="would hold nothing"):
        bake(lora, explain_strengths(lora))


def test_metadata_is_kept_and_says_what_was_done(world, tmp_path):
    lora = opened(world, "lora", strength_model=0.8, block_weights="NIN")
    path = tmp_path / "new.safetensors"
    saved, _ = save_baked(lora, explain_strengths(lora), path)
    told, before = read_header(saved.path).metadata, read_header(lora.path).metadata
    for key in ("ss_tag_frequency", "ss_base_model_version", "ss_network_module"):
        assert told.get(key) == before.get(key)
    assert told[WEIGHTS_KEY] == "NIN"
    assert told["ss_network_alpha"] == "Dynamic"
    recipe = json.loads(told["atelier.lora_recipe"])
    assert recipe["inputs"][0]["strength_model"] == 0.8
    assert told["modelspec.hash_sha256"] != before.get("modelspec.hash_sha256")
    second, made = save_baked(lora, explain_strengths(lora), path)
    assert (second.is_old, made) == (True, None)
    other, _ = save_baked(opened(world, "lora", block_weights="NIN"), explain_strengths(lora), path)
    assert other.path.name == "new-2.safetensors"


def test_the_input_is_never_replaced(world):
    lora = opened(world, "lora", block_weights="NIN")
    with pytest.raises(InputError, match="never replaced"):
        save_baked(lora, explain_strengths(lora), lora.path, if_exists="replace")


def squares(value):
    return float(value.double().square().sum())


# --- energies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_energies_are_those_of_the_full_changes(world, name):
    lora = opened(world, name)
    with LoraFile.of(lora) as file:
        for module in file.modules:
            parts = file.parts(module)
            weight, bias = module_change(parts, weight=world[1][module.stem].weight.detach(), stem=module.stem)
            whole = float(weight.double().square().sum()) + (
                0.0 if bias is None else float(bias.double().square().sum())
            )
            assert squared_norm(module, parts) == pytest.approx(whole, rel=2e-5), module.stem


def test_a_relative_change_is_not_measured_without_its_base(world):
    lora = opened(world, "lora dora")
    with LoraFile.of(lora) as file:
        module = file.modules[0]
        parts = file.parts(module)
        assert squared_norm(module, parts) is None
        weight = world[1][module.stem].weight.detach()
        change, _ = module_change(parts, weight=weight, stem=module.stem)
        assert squared_norm(module, parts, weight=weight) == pytest.approx(
            float(change.double().square().sum()), rel=1e-4
        )


def test_the_map_counts_every_key_and_adds_up(world):
    lora = opened(world, "lora locon", strength_model=0.5, block_weights="NIN")
    found = map_blocks(lora, explain_strengths(lora))
    assert sum(row.num_keys for row in found.rows) == len(read_header(lora.path).shapes)
    assert sum(found.share(row) for row in found.rows) == pytest.approx(1.0)
    rows = {row.block: row for row in found.rows}
    assert rows["IN04"].weighted == 0.0
    assert rows["IN04"].energy > 0.0
    assert rows["OUT05"].weighted == pytest.approx(0.5 * rows["OUT05"].energy)
    assert rows["TE"].weighted == rows["TE"].energy
    whole = sum(squares(change) for change, _ in changes(world, read_tensors(lora.path)).values())
    assert found.energy == pytest.approx(math.sqrt(whole), rel=1e-5)
    assert "IN00" in report_of(found)
    assert table_of(found)[0][0] == "block"


def test_the_map_says_what_it_cannot_know(world):
    lora = opened(world, "lora dora")
    found = map_blocks(lora, explain_strengths(lora))
    assert found.energy == 0.0
    assert any("relative to the base" in note for note in found.notes)
    assert any("?" in row for row in table_of(found))
