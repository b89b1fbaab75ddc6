"""Merging LoRAs: the sum of the dense changes, whatever the files' algorithms, ranks, alphas and namings."""

import json

import pytest
import torch

from atelier_tests.helpers.lora_files import random_parts, write_lora
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.families._spec import Place
from lora_atelier.merger.lora.combine import CombineParams, combine
from lora_atelier.merger.lora.elementwise import dropped, elected_mean, together, trimmed
from lora_atelier.merger.lora.ingredients import Ingredient
from lora_atelier.merger.lora.modules import LoraFile
from lora_atelier.merger.lora.ranks import RankParams
from lora_atelier.merger.lora.saving import write_draft
from lora_atelier.networks._apply import lora_delta

BLOCK = "down_blocks.1.attentions.0"
LINEAR = Place(part="unet", path=f"{BLOCK}.transformer_blocks.0.attn1.to_q")
OTHER = Place(part="unet", path="up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
CONV = Place(part="unet", path="down_blocks.0.resnets.0.conv1")
TEXT = Place(part="text_encoder", path="text_model.encoder.layers.0.mlp.fc1")
NORM = Place(part="unet", path="down_blocks.0.resnets.0.norm1")
SHAPES = {LINEAR: (64, 56), CONV: (48, 40, 3, 3), TEXT: (60, 40), OTHER: (64, 56)}


def lora(tmp_path, name, algorithm="lora", *, rank=4, alpha=2.0, places=tuple(SHAPES), seed=0, naming="kohya", **extra):
    modules = {
        place: random_parts(algorithm, SHAPES[place], rank=rank, alpha=alpha, seed=seed + number)
        for number, place in enumerate(places)
    }
    return write_lora(tmp_path / f"{name}.safetensors", {**modules, **extra.pop("modules", {})}, naming=naming, **extra)


def deltas(path):
    with LoraFile(path, path.name) as file:
        return {
            module.place: lora_delta(file.parts(module), stem=module.stem).double().reshape(SHAPES[module.place])
            for module in file.modules
            if module.is_matrix
        }


def merged(tmp_path, paths, strengths=None, *, dtype="fp32", rank=64, rule="fixed", **params):
    strengths = strengths or [(1.0, 1.0, {})] * len(paths)
    ingredients = [
        Ingredient(file=LoraFile(path, path.name), strength_model=model, strength_clip=clip, factors=factors)
        for path, (model, clip, factors) in zip(paths, strengths, strict=True)
    ]
    draft = combine(ingredients, CombineParams(**params), RankParams(rule=rule, rank=rank))
    return draft, write_draft(tmp_path / "out.safetensors", draft, made_by={}, dtype=dtype)


def total(paths, strengths):
    found = {}
    for path, (model, clip, factors) in zip(paths, strengths, strict=True):
        with LoraFile(path, path.name) as file:
            stems = {module.place: module.stem for module in file.modules}
        for place, change in deltas(path).items():
            strength = (clip if place == TEXT else model) * factors.get(stems[place], 1.0)
            found[place] = found.get(place, 0.0) + strength * change
    return found


def assert_same(after, wanted, allowed=1e-6):
    assert set(after) == set(wanted)
    for place, change in wanted.items():
        error = torch.linalg.vector_norm(after[place] - change) / torch.linalg.vector_norm(change)
        assert error <= allowed, (place, float(error))


KINDS = [("lora", 4, 2.0), ("lora", 2, None), ("loha", 3, 1.0), ("lokr", 3, 4.0), ("full", 1, None)]


@pytest.mark.parametrize("method", ["concat", "svd"])
@pytest.mark.parametrize("second", KINDS, ids=lambda kind: f"{kind[0]}-{kind[2]}")
def test_the_merged_lora_is_both_applied(tmp_path, method, second):
    algorithm, rank, alpha = second
    one = lora(tmp_path, "one")
    two = lora(
        tmp_path, "two", algorithm, rank=rank, alpha=alpha, seed=10, naming="comfyui", places=(LINEAR, TEXT, CONV)
    )
    strengths = [(0.5, -0.7, {}), (2.0, 1.0, {})]
    draft, saved = merged(tmp_path, [one, two], strengths, method=method)
    assert_same(deltas(saved.path), total([one, two], strengths), 1e-6 if method == "concat" else 3e-6)
    assert draft.error <= 1e-5


def test_strengths_count_once_and_nothing_crosses(tmp_path):
    one = lora(tmp_path, "one", places=(LINEAR,))
    _, saved = merged(tmp_path, [one, one], [(0.3, 1.0, {}), (-0.3, 1.0, {})], method="svd", rule="fixed", rank=8)
    assert torch.linalg.vector_norm(deltas(saved.path).get(LINEAR, torch.zeros(1))) <= 1e-5
    _, saved = merged(tmp_path, [one, one], [(0.5, 1.0, {}), (0.25, 1.0, {})])
    assert_same(deltas(saved.path), {LINEAR: 0.75 * deltas(one)[LINEAR]})


def test_block_weights_of_each_input(tmp_path):
    one, two = lora(tmp_path, "one"), lora(tmp_path, "two", seed=10)
    with LoraFile(one, "one") as file:
        stems = {module.place: module.stem for module in file.modules}
    strengths = [(1.0, 1.0, {stems[OTHER]: 0.0}), (1.0, 1.0, {stems[LINEAR]: 0.0, stems[OTHER]: 0.5})]
    _, saved = merged(tmp_path, [one, two], strengths)
    wanted = total([one, two], strengths)
    assert_same(deltas(saved.path), wanted)
    with LoraFile(saved.path, "out") as file:
        ranks = {module.place: module.rank for module in file.modules}
    assert (ranks[LINEAR], ranks[OTHER], ranks[TEXT]) == (4, 4, 8)


def test_svd_cuts_the_sum_as_a_full_svd_does(tmp_path):
    paths = [lora(tmp_path, "one"), lora(tmp_path, "two", seed=10)]
    strengths = [(1.0, 1.0, {}), (0.8, 0.8, {})]
    draft, saved = merged(tmp_path, paths, strengths, method="svd", rank=3)
    wanted = {}
    for place, change in total(paths, strengths).items():
        left, values, right = torch.linalg.svd(change.reshape(change.shape[0], -1), full_matrices=False)
        wanted[place] = ((left[:, :3] * values[:3]) @ right[:3]).reshape(change.shape)
    assert_same(deltas(saved.path), wanted, 2e-5)
    assert all(made.rank == 3 for made in draft.modules)


def test_norms_and_biases_are_added(tmp_path):
    extra = [
        {
            NORM: random_parts("norm", (16,), seed=1),
            LINEAR: {**random_parts("lora", (64, 56)), "diff_b": torch.ones(64)},
        },
        {NORM: random_parts("norm", (16,), seed=2)},
    ]
    paths = [lora(tmp_path, name, places=(TEXT,), modules=more) for name, more in zip("ab", extra, strict=True)]
    _, saved = merged(tmp_path, paths, [(0.5, 1.0, {}), (2.0, 1.0, {})])
    with LoraFile(saved.path, "out") as file:
        parts = {module.place: file.parts(module) for module in file.modules}
    assert torch.allclose(parts[NORM]["w_norm"], 0.5 * extra[0][NORM]["w_norm"] + 2.0 * extra[1][NORM]["w_norm"])
    assert torch.allclose(parts[LINEAR]["diff_b"], torch.full((64,), 0.5))


def test_what_does_not_fit_is_refused(tmp_path):
    one = lora(tmp_path, "one", places=(LINEAR,))
    wide = write_lora(tmp_path / "wide.safetensors", {LINEAR: random_parts("lora", (32, 56))})
    with pytest.raises(FormatError, match=r"shape \[64, 56\].*\[32, 56\].*different sizes"):
        merged(tmp_path, [one, wide])
    other = write_lora(tmp_path / "xl.safetensors", {LINEAR: random_parts("lora", (64, 56))}, family="sdxl")
    with pytest.raises(InputError, match="only LoRAs of one kind"):
        merged(tmp_path, [one, other])
    dora = lora(tmp_path, "dora", "dora", places=(LINEAR,))
    with pytest.raises(InputError, match="DoRA"):
        merged(tmp_path, [one, dora])
    with pytest.raises(FormatError, match="change nothing"):
        merged(tmp_path, [one, one], [(0.0, 0.0, {})] * 2)


def test_metadata_adds_tags_up_and_names_the_sources(tmp_path):
    told = [
        {
            "ss_tag_frequency": json.dumps({"1_a": {"red": 2, "hat": 1}}),
            "modelspec.trigger_phrase": "lumo",
            "ss_clip_skip": "2",
        },
        {"ss_tag_frequency": json.dumps({"1_a": {"red": 3}, "2_b": {"sea": 1}}), "ss_clip_skip": "1"},
    ]
    paths = [lora(tmp_path, name, places=(LINEAR,), metadata={"ss_base_model_version": "sd_v1", **more})
             for name, more in zip("ab", told, strict=True)]  # fmt: skip
    _, saved = merged(tmp_path, paths)
    with LoraFile(saved.path, "out") as file:
        metadata = file.metadata
    assert json.loads(metadata["ss_tag_frequency"]) == {"1_a": {"red": 5, "hat": 1}, "2_b": {"sea": 1}}
    assert metadata["modelspec.trigger_phrase"] == "lumo"
    assert metadata["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_network_dim"] == "8"
    assert "ss_clip_skip" not in metadata


class TestElementwise:
    def test_trimmed_keeps_the_largest(self):
        values = torch.tensor([[3.0, -1.0, 0.5], [-4.0, 2.0, 0.1]])
        assert torch.equal(trimmed(values, 0.5), torch.tensor([[3.0, 0.0, 0.0], [-4.0, 2.0, 0.0]]))
        assert torch.equal(trimmed(values, 1.0), values)

    def test_elected_mean_is_the_mean_of_those_that_agree(self):
        torch.manual_seed(0)
        changes = [torch.randn(5, 4) for _ in range(3)]
        changes[0][0, 0] = 0.0
        got = elected_mean(changes)
        for row in range(5):
            for column in range(4):
                values = [float(change[row, column]) for change in changes]
                sign = 1 if sum(values) > 0 else -1
                agreeing = [value for value in values if value * sign > 0]
                assert float(got[row, column]) == pytest.approx(sum(agreeing) / len(agreeing), rel=1e-5)

    def test_dropped_is_unbiased_seeded_and_its_own_for_every_layer(self):
        ones = torch.ones(300, 300)
        thin = dropped(ones, 0.25, seed=1, parts=("a", 0))
        assert set(thin.unique().tolist()) == {0.0, 4.0}
        assert float(thin.mean()) == pytest.approx(1.0, abs=0.05)
        assert torch.equal(thin, dropped(ones, 0.25, seed=1, parts=("a", 0)))
        assert not torch.equal(thin, dropped(ones, 0.25, seed=1, parts=("b", 0)))

    @pytest.mark.parametrize("method", ["ties", "dare", "dare_ties"])
    def test_a_merge_by_elements_is_the_cut_of_the_formula(self, tmp_path, method):
        paths = [lora(tmp_path, "one", places=(LINEAR, TEXT)), lora(tmp_path, "two", seed=10, places=(LINEAR, TEXT))]
        _, saved = merged(tmp_path, paths, method=method, density=0.4, seed=7, rule="exact", rank=0)
        changes = [deltas(path) for path in paths]
        with LoraFile(paths[0], "one") as file:
            names = {module.place: module.name for module in file.modules}
        wanted = {
            place: together([c[place].float() for c in changes], method, 0.4, seed=7, name=names[place]).double()
            for place in (LINEAR, TEXT)
        }
        assert_same(deltas(saved.path), wanted, 1e-5)

    def test_without_thinning_dare_is_the_sum(self, tmp_path):
        paths = [lora(tmp_path, "one", places=(LINEAR,)), lora(tmp_path, "two", seed=10, places=(LINEAR,))]
        _, saved = merged(tmp_path, paths, method="dare", density=1.0, rank=8)
        assert_same(deltas(saved.path), total(paths, [(1.0, 1.0, {})] * 2), 1e-5)
