"""Resizing a LoRA: what every algorithm's change becomes, against the dense change and a full SVD."""

import json

import pytest
import torch

from atelier_tests.helpers.lora_files import random_parts, write_lora
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.families._spec import NAMINGS, Place
from lora_atelier.merger.lora.factors import Factors, change_of
from lora_atelier.merger.lora.modules import LoraFile
from lora_atelier.merger.lora.ranks import RankParams
from lora_atelier.merger.lora.resize import resize
from lora_atelier.merger.lora.saving import save, write_draft
from lora_atelier.networks._apply import lora_delta

BLOCK = "down_blocks.1.attentions.0"
LINEAR = Place(part="unet", path=f"{BLOCK}.transformer_blocks.0.attn1.to_q")
PROJECTION = Place(part="unet", path=f"{BLOCK}.proj_in")
CONV = Place(part="unet", path="down_blocks.0.resnets.0.conv1")
TEXT = Place(part="text_encoder", path="text_model.encoder.layers.0.mlp.fc1")
NORM = Place(part="unet", path="down_blocks.0.resnets.0.norm1")
SHAPES = {LINEAR: (24, 20), PROJECTION: (24, 20, 1, 1), CONV: (16, 12, 3, 3), TEXT: (28, 20)}


def file_of(tmp_path, algorithm, *, rank=4, alpha=2.0, places=SHAPES, naming="kohya", name="x", **options):
    modules = {
        place: random_parts(algorithm, shape, rank=rank, alpha=alpha, seed=seed)
        for seed, (place, shape) in enumerate(places.items())
    }
    return write_lora(tmp_path / f"{name}.safetensors", modules, naming=naming, **options)


def deltas(path):
    """The change of every module as every loader builds it."""
    with LoraFile(path, path.name) as file:
        return {
            module.place: lora_delta(file.parts(module), stem=module.stem).reshape(SHAPES[module.place]).double()
            for module in file.modules
        }


def best(change, rank):
    rows = change.reshape(change.shape[0], -1)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    return ((left[:, :rank] * values[:rank]) @ right[:rank]).reshape(change.shape)


def resized(tmp_path, path, *, dtype="fp32", naming="kohya", **params):
    with LoraFile(path, path.name) as file:
        draft = resize(file, RankParams(**params))
        saved = write_draft(tmp_path / "out.safetensors", draft, made_by={}, dtype=dtype, naming=naming)
    return draft, saved


ALGORITHMS = ["lora", "loha", "lokr", "lokr_whole", "lokr_both", "full"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("alpha", [2.0, None])
def test_every_algorithm_is_cut_as_a_full_svd_cuts_it(tmp_path, algorithm, alpha):
    path = file_of(tmp_path, algorithm, alpha=alpha)
    draft, saved = resized(tmp_path, path, rank=3)
    before, after = deltas(path), deltas(saved.path)
    assert set(before) == set(after)
    for place, change in before.items():
        wanted = best(change, 3)
        assert torch.linalg.vector_norm(after[place] - wanted) <= 2e-5 * torch.linalg.vector_norm(wanted), place
    for made in draft.modules:
        change = before[made.place]
        lost = torch.linalg.vector_norm(change - best(change, 3)) / torch.linalg.vector_norm(change)
        assert made.error == pytest.approx(float(lost), abs=1e-5)
    with LoraFile(saved.path, "out") as file:
        assert {module.algorithm for module in file.modules} == {"lora"}
        shapes = {module.place: module.shapes["lora_down.weight"] for module in file.modules}
    assert shapes[CONV] == (3, 12, 3, 3)
    assert shapes[PROJECTION] == (3, 20, 1, 1)
    assert shapes[LINEAR] == (3, 20)


@pytest.mark.parametrize("algorithm", ["tucker", "loha_tucker", "lokr_tucker"])
def test_tucker_convolutions(tmp_path, algorithm):
    path = file_of(tmp_path, algorithm, rank=3, places={CONV: SHAPES[CONV]})
    _, saved = resized(tmp_path, path, rule="exact", rank=0)
    (before,), (after,) = deltas(path).values(), deltas(saved.path).values()
    assert torch.linalg.vector_norm(before - after) <= 1e-5 * torch.linalg.vector_norm(before)


@pytest.mark.parametrize(("algorithm", "rank"), [("lora", 4), ("loha", 9), ("lokr", 8), ("lokr_both", 6)])
def test_thin_products_have_the_rank_of_the_algorithm(tmp_path, algorithm, rank):
    own = {"loha": 3, "lokr_both": 3}.get(algorithm, 4)
    path = file_of(tmp_path, algorithm, rank=own, places={LINEAR: SHAPES[LINEAR]})
    with LoraFile(path, "x") as file:
        (module,) = file.modules
        change = change_of(module, file.parts(module))
    assert isinstance(change, Factors)
    assert change.rank == rank
    wanted = next(iter(deltas(path).values()))
    assert torch.allclose(change.matrix().double(), wanted.reshape(24, -1), atol=1e-5)
    draft, _ = resized(tmp_path, path, rule="exact", rank=0)
    assert draft.modules[0].rank <= rank
    assert draft.error <= 1e-6


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_all_namings_and_formats_hold_the_same_change(tmp_path, naming, dtype):
    path = file_of(tmp_path, "lora", naming=naming)
    _, saved = resized(tmp_path, path, rank=4, dtype=dtype, naming=naming)
    before, after = deltas(path), deltas(saved.path)
    allowed = {"fp16": 1e-3, "bf16": 8e-3, "fp32": 1e-5}[dtype]
    errors = [
        float(torch.linalg.vector_norm(after[p] - before[p]) / torch.linalg.vector_norm(before[p])) for p in before
    ]
    assert max(errors) <= allowed
    assert saved.dtype == dtype
    assert saved.rounding_error == pytest.approx(max(errors), abs=2e-5)


def test_the_scale_of_the_source_is_kept(tmp_path):
    path = file_of(tmp_path, "lora", rank=8, alpha=4.0)
    _, saved = resized(tmp_path, path, rank=2)
    with LoraFile(saved.path, "out") as file:
        assert all(module.rank == 2 and module.alpha == 1.0 for module in file.modules)


@pytest.mark.parametrize("size", [1e-9, 1e7])
def test_fp16_holds_the_smallest_and_the_largest_changes(tmp_path, size):
    parts = random_parts("lora", SHAPES[LINEAR])
    parts["lora_up.weight"] *= size
    path = write_lora(tmp_path / "x.safetensors", {LINEAR: parts})
    _, saved = resized(tmp_path, path, rank=4, dtype="fp16")
    (before,), (after,) = deltas(path).values(), deltas(saved.path).values()
    assert saved.dtype == "fp16"
    assert torch.linalg.vector_norm(before - after) <= 1e-3 * torch.linalg.vector_norm(before)


def test_norms_biases_and_embeddings_are_carried_along(tmp_path):
    parts = {
        LINEAR: {**random_parts("lora", SHAPES[LINEAR]), "diff_b": torch.randn(24)},
        NORM: random_parts("norm", (16,)),
    }
    path = write_lora(tmp_path / "x.safetensors", parts)
    draft, saved = resized(tmp_path, path, rank=2)
    with LoraFile(saved.path, "out") as file:
        modules = {module.place: file.parts(module) for module in file.modules}
    assert torch.equal(modules[LINEAR]["diff_b"], parts[LINEAR]["diff_b"])
    assert torch.equal(modules[NORM]["w_norm"], parts[NORM]["w_norm"])
    assert {made.place: made.rank for made in draft.modules} == {LINEAR: 2, NORM: None}


def test_dead_modules_are_left_out_and_said(tmp_path):
    dead = random_parts("lora", SHAPES[LINEAR])
    dead["lora_up.weight"].zero_()
    path = write_lora(tmp_path / "x.safetensors", {LINEAR: dead, TEXT: random_parts("lora", SHAPES[TEXT])})
    draft, _ = resized(tmp_path, path, rank=2)
    assert [made.place for made in draft.modules] == [TEXT]
    assert "1 modules change nothing" in draft.notes[0]
    dead_file = write_lora(tmp_path / "dead.safetensors", {LINEAR: dead})
    with pytest.raises(FormatError, match="changes nothing"):
        resized(tmp_path, dead_file, rank=2)


def test_what_needs_the_base_is_refused(tmp_path):
    with pytest.raises(InputError, match="4 modules of DoRA.*Convert LoRA"):
        resized(tmp_path, file_of(tmp_path, "dora"), rank=2)


def test_metadata_says_the_new_sizes(tmp_path):
    told = {"ss_network_dim": "4", "ss_network_args": '{"algo": "loha"}', "ss_x": "1", "sshs_model_hash": "old"}
    path = file_of(tmp_path, "loha", metadata={**told, "ss_base_model_version": "sd_v1"})
    _, saved = resized(tmp_path, path, rank=3, conv_rank=2)
    with LoraFile(saved.path, "out") as file:
        metadata = file.metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_x"]) == ("3", "3", "1")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert metadata["modelspec.title"] == "out"
    assert len(metadata["sshs_model_hash"]) == 64


class TestSaving:
    def save(self, tmp_path, path, recipe, if_exists="keep both", name="out"):
        def make():
            with LoraFile(path, path.name) as file:
                return resize(file, RankParams(rank=2))

        wanted = tmp_path / f"{name}.safetensors"
        return save(wanted, make, made_by=recipe, dtype="fp16", if_exists=if_exists, inputs=[path])[0]

    def test_the_same_recipe_is_not_made_twice(self, tmp_path):
        path = file_of(tmp_path, "lora")
        first = self.save(tmp_path, path, {"rank": 2})
        again = self.save(tmp_path, path, {"rank": 2})
        assert not first.is_old
        assert again.is_old
        assert again.path == first.path

    def test_another_recipe_keeps_both_replaces_or_refuses(self, tmp_path):
        path = file_of(tmp_path, "lora")
        first = self.save(tmp_path, path, {"rank": 2})
        second = self.save(tmp_path, path, {"rank": 3})
        assert second.path.name == "out-2.safetensors"
        assert self.save(tmp_path, path, {"rank": 3}).is_old
        with pytest.raises(InputError, match="there already"):
            self.save(tmp_path, path, {"rank": 4}, if_exists="refuse")
        assert self.save(tmp_path, path, {"rank": 5}, if_exists="replace").path == first.path

    def test_an_input_is_never_the_output(self, tmp_path):
        path = file_of(tmp_path, "lora")
        content = path.read_bytes()
        for if_exists in ("keep both", "replace"):
            with pytest.raises(InputError, match="one of the inputs"):
                self.save(tmp_path, path, {}, if_exists=if_exists, name="x")
        assert path.read_bytes() == content
