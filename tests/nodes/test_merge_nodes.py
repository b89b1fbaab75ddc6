"""The merge nodes on tiny files with the fake host, and on the local host with the built-in base."""

import json

import pytest
import torch

from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.core.tensors import read_header, read_tensors
from lora_atelier.families._base import MergedLora, open_base
from lora_atelier.merger.methods._spec import methods
from lora_atelier.nodes.host import OWN_VAE, set_host
from lora_atelier.nodes.merge import NODES, places_of
from lora_atelier.nodes.merge_blocks import MergeBlocks
from lora_atelier.nodes.merge_recipe import MergeRecipe, ReadMergeRecipe
from lora_atelier.nodes.merge_save import CheckMerge, MergeToModel, RepairMerge, SaveMerge

BY_ID = {node.ID: node for node in NODES}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate("abc"):
        write_tiny_checkpoint(folder / f"{name}.safetensors", seed=number)
    return folder


@pytest.fixture
def host(tmp_path, files):
    made = FakeHost(tmp_path)
    for path in files.iterdir():
        (made.base / "checkpoints" / path.name).hardlink_to(path)
    set_host(made)
    yield made
    set_host(None)


def base(host, name):
    return open_base(host.checkpoint_path(f"{name}.safetensors"), name=f"{name}.safetensors")


def merge(name, **values):
    return getattr(BY_ID[name](), BY_ID[name].FUNCTION)(**values)


def save(handle, name="out", **values):
    given = {"dtype": "as the first model", "stochastic_rounding": False, "seed": 0, **values}
    return SaveMerge().save(handle, name, **given)["result"]


def test_one_node_per_method(host):
    assert len(NODES) == len(methods())
    for node, (name, method) in zip(NODES, methods().items(), strict=True):
        types = node.INPUT_TYPES()
        names = [*types["required"], *types["optional"]]
        assert [key for key, _, needed in places_of(method) if needed] == list(types["required"]), name
        assert {parameter.name for parameter in method.params.parameters()} <= set(names)
        assert ("weights" in names) == bool(method.blocks)


def test_a_chain_of_nodes_is_one_file(host):
    a, b, c = (base(host, name) for name in "abc")
    weights, _ = MergeBlocks().write("GRAD_A VAE=1", "", "sd15")["result"]
    first, shares = merge("AtelierMergeWeightedSum", a=a, b=b, alpha=0.25)
    assert "a.safetensors: +0.750" in shares
    handle, _ = merge("AtelierMergeAddDifference", a=first, b=c, c=a, alpha=1.0, weights=weights)
    (repaired,) = RepairMerge().repair(handle, OWN_VAE, "drop")
    report = CheckMerge().check(repaired, dtype="fp16", stochastic_rounding=False, seed=0)["result"][0]
    assert "nothing is written" in report
    made, name, report = save(repaired, "sub/merged", title="Mine", dtype="bf16")
    assert name == "sub/merged.safetensors"
    assert made.path == host.base / "checkpoints" / "sub" / "merged.safetensors"
    assert "MiB in" in report
    header = read_header(made.path)
    assert header.metadata["modelspec.title"] == "Mine"
    before = made.path.stat().st_mtime_ns
    _, _, report = save(repaired, "sub/merged", title="Mine", dtype="bf16")
    assert "made by this recipe" in report
    assert made.path.stat().st_mtime_ns == before
    assert {path.name for path in (host.base / "checkpoints").rglob("*")} == {
        "a.safetensors", "b.safetensors", "c.safetensors", "sub", "merged.safetensors",
    }  # fmt: skip


def test_recipe_lanes_and_the_recipe_of_a_file(host):
    text = "first = a + b, 0.5\nlast = first + __C__, 0.25, fp16, ckpt\n"
    handle, report = MergeRecipe().read(text, "C = c", "")["result"]
    assert "c.safetensors: +0.250" in report
    assert "last.safetensors is written instead" in report
    made, name, _ = save(handle, "", lanes="all")
    assert name == "last.safetensors"
    assert (host.base / "checkpoints" / "first.safetensors").is_file()
    dtypes = set(read_header(made.path).dtypes.values())
    assert dtypes == {"F16", "I64"}
    host.checkpoint_names()
    (recipe,) = ReadMergeRecipe().read("last.safetensors")["result"]
    again, _ = MergeRecipe().read(recipe)["result"]
    other, _, _ = save(again, "again")
    one, two = read_tensors(made.path), read_tensors(other.path)
    assert all(torch.equal(one[key], two[key]) for key in one)
    first, _ = MergeRecipe().read(text, "C = c", "first")["result"]
    assert first.name == "first"
    with pytest.raises(UnknownNameError, match="did you mean 'first'"):
        MergeRecipe().read(text, "C = c", "firsst")
    with pytest.raises(UnknownNameError, match="result of the recipe"):
        save(handle, "", lanes="second")


def test_state_of_a_recipe_follows_its_models(host):
    before = MergeRecipe.IS_CHANGED(recipe="x = a + b, 0.5")
    assert before != MergeRecipe.IS_CHANGED(recipe="x = a + c, 0.5")
    assert "recipe" in MergeRecipe.IS_CHANGED(recipe="x = a")


def test_vae_is_baked_in(host):
    (host.base / "vae").mkdir()
    tensors = read_tensors(host.checkpoint_path("c.safetensors"))
    from lora_atelier.core.tensors import write_tensors

    vae = {key[len("first_stage_model.") :]: value for key, value in tensors.items() if key.startswith("first_stage")}
    write_tensors(host.base / "vae" / "mine.safetensors", vae, {})
    handle, _ = merge("AtelierMergeWeightedSum", a=base(host, "a"), b=base(host, "b"), alpha=0.5)
    (baked,) = RepairMerge().repair(handle, "mine.safetensors", "drop")
    made, _, report = save(baked)
    got = read_tensors(made.path)
    assert all(torch.equal(got[f"first_stage_model.{key}"], value) for key, value in vae.items())
    assert "the VAE is that of mine.safetensors" in report
    recipe = json.loads(read_header(made.path).metadata["atelier.merge_recipe"])
    assert recipe["nodes"][0] == {"model": "a.safetensors", "vae": "mine.safetensors"}


def test_live_goes_through_the_host(host):
    handle, _ = merge("AtelierMergeNAverage", model_1=base(host, "a"), model_2=base(host, "b"), model_3=base(host, "c"))
    model, clip, vae, report = MergeToModel().load(handle, dtype="fp16", stochastic_rounding=False, seed=0)
    assert model.startswith("model of ")
    assert "+0.333" in report
    assert host.calls == ["load_tensors"]


def test_refusals(host, tmp_path):
    a, b = base(host, "a"), base(host, "b")
    delta, _ = merge("AtelierMergeDifference", a=a, b=b)
    with pytest.raises(InputError, match="is a difference"):
        save(delta)
    with pytest.raises(InputError, match="cannot be mixed"):
        merge("AtelierMergeWeightedSum", a=a, b=delta)
    with pytest.raises(InputError, match="asks for a .ckpt file"):
        save(a, "x.ckpt")
    with pytest.raises(InputError, match="is the file of a.safetensors"):
        save(a, "a")
    with pytest.raises(InputError, match="was not made by this recipe"):
        save(a, "b")
    with pytest.raises(InputError, match="LoRA"):
        save(a.with_lora(MergedLora(path=tmp_path / "x", name="x", strength_model=1.0, strength_clip=1.0)))
    with pytest.raises(InputError, match="connect 'Open Base Model'"):
        save("a")
    with pytest.raises(InputError, match="must be NAME = name"):
        MergeRecipe().read("x = a + b, 0.5", "C c")


def test_own_vectors(host):
    (host.user_dir()).mkdir()
    (host.user_dir() / "merge_presets.txt").write_text("MINE:" + ",".join(["0.125"] * 25), encoding="utf-8")
    weights, table = MergeBlocks().write("mine MID=1", "", "sd15")["result"]
    assert weights.vectors[0][0] == "MINE"
    assert "IN03   0.125" in table
    assert "TE     own" in table
    with pytest.raises(InputError, match="25 numbers; a merge of these models takes 19"):
        MergeBlocks().write("mine", "", "sdxl")
