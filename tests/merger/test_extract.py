"""A LoRA out of two checkpoints, and LoRAs into one: each against the dense tensors, and each undoing the other."""

import pytest
import torch

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.lora_files import linear_places, random_parts, write_lora
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.stream import TensorReader
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.families._spec import Place, get_family
from lora_atelier.merger.lora.base_weights import BaseWeights
from lora_atelier.merger.lora.extract import ALL, CONVOLUTIONS, LINEAR, NEVER, CheckpointPair, ExtractParams, extract
from lora_atelier.merger.lora.ingredients import Ingredient
from lora_atelier.merger.lora.into_checkpoint import merge_into, plan_merge
from lora_atelier.merger.lora.modules import LoraFile
from lora_atelier.merger.lora.ranks import RankParams
from lora_atelier.merger.lora.renaming import ConvertParams, convert, edited
from lora_atelier.merger.lora.saving import write_draft
from lora_atelier.networks._apply import bias_change_of, lora_delta

UNET = "model.diffusion_model."
EXACT = RankParams(rule="exact", rank=0)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def base(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "base.safetensors"
    return write_tiny_checkpoint(path, family=request.param), request.param


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base.safetensors")


def tuned_of(base, folder, family, *, norms=False, texts=True, size=0.05):
    """A copy whose layers moved, most of them; with the moves by key."""
    tensors, moved = read_tensors(base), {}
    generator = torch.Generator().manual_seed(4)
    for key, value in tensors.items():
        is_text = key.startswith(("cond_stage_model", "conditioner"))
        wanted = key.startswith(UNET) or (is_text and texts)
        matrix = value.ndim >= 2 and "embedding" not in key
        if not wanted or not (matrix or norms) or not value.is_floating_point():
            continue
        moved[key] = torch.randn(value.shape, generator=generator) * size
        tensors[key] = (value.float() + moved[key]).to(torch.float32)
    path = folder / "tuned.safetensors"
    write_tensors(path, tensors, read_header(base).metadata)
    return path, moved


def extracted(tmp_path, base, tuned, family, ranks=EXACT, **params):
    with CheckpointPair(base, tuned, get_family(family)) as pair:
        draft = extract(pair, ExtractParams(**params), ranks)
    saved = write_draft(tmp_path / "out.safetensors", draft, made_by={}, dtype="fp32")
    return draft, saved.path


def applied(base, lora, target, family, *, dtype="fp32", strength=1.0):
    with TensorReader(base) as reader, LoraFile(lora, lora.name) as file:
        ingredients = [Ingredient(file=file, strength_model=strength, strength_clip=strength)]
        plan = plan_merge(reader, get_family(family), ingredients, dtype=dtype)
        merge_into(reader, plan, target, metadata=reader.metadata)
    return read_tensors(target), plan


def test_what_is_extracted_in_full_gives_the_tuned_model_back(base, tmp_path):
    path, family = base
    tuned, moved = tuned_of(path, tmp_path, family, norms=True)
    draft, lora = extracted(tmp_path, path, tuned, family, layers=ALL, norms_and_biases=True, exact=True)
    got, _ = applied(path, lora, tmp_path / "merged.safetensors", family)
    wanted, original = read_tensors(tuned), read_tensors(path)
    for key, value in wanted.items():
        if key in moved and key.startswith(UNET):
            assert torch.allclose(got[key].float(), value.float(), atol=2e-5), key
        elif key not in moved:
            assert torch.equal(got[key].float(), original[key].float()), key
    texts = [key for key in moved if not key.startswith(UNET) and value.ndim >= 2]
    attention = [key for key in texts if "attn" in key and key.endswith("weight")]
    assert attention
    for key in attention:
        assert torch.allclose(got[key].float(), wanted[key].float(), atol=2e-5), key
    assert draft.error <= 1e-6


@pytest.mark.parametrize("exact", [True, False])
def test_every_layer_is_cut_as_a_full_svd_cuts_its_difference(sd15, tmp_path, exact):
    tuned, moved = tuned_of(sd15, tmp_path, "sd15")
    draft, lora = extracted(tmp_path, sd15, tuned, "sd15", RankParams(rank=6), exact=exact)
    family = get_family("sd15")
    with LoraFile(lora, "out") as file, TensorReader(sd15) as reader:
        for module in file.modules[::9]:
            part = family.place_in_file(module.place, reader.header)
            change = part.of(moved[part.key]).reshape(module.shapes["lora_up.weight"][0], -1).double()
            left, values, right = torch.linalg.svd(change, full_matrices=False)
            got = lora_delta(file.parts(module)).reshape(change.shape).double()
            error = float(torch.linalg.vector_norm(change - got) / torch.linalg.vector_norm(change))
            least = float(values[6:].norm() / values.norm())
            made = next(one for one in draft.modules if one.place == module.place)
            assert made.error == pytest.approx(error, abs=1e-4)
            assert least - 1e-5 <= error <= (least + 1e-4 if exact else 1.01 * least)


def test_layers_text_encoders_and_norms_are_chosen(sd15, tmp_path):
    tuned, _ = tuned_of(sd15, tmp_path, "sd15", norms=True)

    def made(**params):
        draft, _ = extracted(tmp_path, sd15, tuned, "sd15", RankParams(rank=2), **params)
        return {one.place for one in draft.modules}

    linear, convolutions, everything = made(layers=LINEAR), made(layers=CONVOLUTIONS), made(layers=ALL)
    assert linear == set(linear_places(sd15))
    assert linear < convolutions < everything
    assert {place.path for place in everything - convolutions} == {
        "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2",
    }  # fmt: skip
    assert all(place.part == "unet" for place in made(layers=LINEAR, text_encoders=NEVER))
    with_norms = made(layers=LINEAR, norms_and_biases=True)
    assert Place(part="unet", path="down_blocks.0.resnets.0.norm1") in with_norms


def test_what_did_not_change_is_left_out_whatever_the_number_format(sd15, tmp_path):
    tensors = read_tensors(sd15)
    key = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    halves[key] = halves[key] + 1.0
    write_tensors(tmp_path / "tuned.safetensors", halves, read_header(sd15).metadata)
    draft, _ = extracted(tmp_path, sd15, tmp_path / "tuned.safetensors", "sd15", RankParams(rank=2))
    assert [one.place.path for one in draft.modules] == ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert "The text encoders are the same in both." in draft.notes


def test_pairs_that_do_not_fit(sd15, tmp_path):
    with pytest.raises(InputError, match="both checkpoints are base"):
        CheckpointPair(sd15, sd15, get_family("sd15"))
    same = tmp_path / "same.safetensors"
    same.write_bytes(sd15.read_bytes())
    with pytest.raises(FormatError, match="do not differ"):
        extracted(tmp_path, sd15, same, "sd15")
    tensors = read_tensors(sd15)
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(64, 9, 3, 3)
    write_tensors(tmp_path / "paint.safetensors", tensors, {})
    with pytest.raises(FormatError, match="unlike kinds"):
        extracted(tmp_path, sd15, tmp_path / "paint.safetensors", "sd15", layers=ALL)
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(64, 4, 3, 3)
    tensors[f"{UNET}input_blocks.1.1.proj_in.weight"][:] = torch.nan
    write_tensors(tmp_path / "nan.safetensors", tensors, {})
    with pytest.raises(FormatError, match="not finite"):
        extracted(tmp_path, sd15, tmp_path / "nan.safetensors", "sd15")


ALGORITHMS = ["lora", "loha", "lokr", "full", "dora"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_merged_checkpoint_is_the_weight_and_the_change(base, tmp_path, algorithm):
    path, family = base
    places = linear_places(path, family, every=7)
    modules = {place: random_parts(algorithm, shape, seed=n) for n, (place, shape) in enumerate(places.items())}
    lora = write_lora(tmp_path / "lora.safetensors", modules, family=family)
    before = read_tensors(path)
    content = path.read_bytes()
    got, plan = applied(path, lora, tmp_path / "merged.safetensors", family, strength=0.5)
    wanted = {key: value.float() if value.is_floating_point() else value for key, value in before.items()}
    spec = get_family(family)
    with TensorReader(path) as reader, LoraFile(lora, "lora") as file:
        for module in file.modules:
            for parameter in ("weight", "bias"):
                part = spec.place_in_file(module.place, reader.header, parameter)
                parts = file.parts(module)
                if part is None or (parameter == "bias" and bias_change_of(parts) is None):
                    continue
                weight = part.of(before[part.key].float())
                change = lora_delta(parts, weight=weight) if parameter == "weight" else bias_change_of(parts)
                rows = slice(*part.rows) if part.rows else slice(None)
                wanted[part.key][rows] += 0.5 * change.reshape(wanted[part.key][rows].shape)
    for key, value in wanted.items():
        assert torch.allclose(got[key], value, atol=1e-6, rtol=1e-5), key
    assert path.read_bytes() == content
    assert plan.hits


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_number_formats(sd15, tmp_path, dtype, kind):
    modules = {place: random_parts("lora", shape) for place, shape in linear_places(sd15, every=20).items()}
    lora = write_lora(tmp_path / "l.safetensors", modules)
    got, plan = applied(sd15, lora, tmp_path / "m.safetensors", "sd15", dtype=dtype)
    assert {value.dtype for value in got.values() if value.is_floating_point()} == {kind}
    assert plan.size_bytes == sum(value.numel() * value.element_size() for value in got.values())
    before = read_tensors(sd15)
    assert all(torch.equal(got[key], value) for key, value in before.items() if not value.is_floating_point())


def test_several_loras_are_added_one_after_another(sd15, tmp_path):
    places = linear_places(sd15, every=15)
    loras = [
        write_lora(tmp_path / f"{seed}.safetensors", {p: random_parts("lora", s, seed=seed) for p, s in places.items()})
        for seed in (1, 2)
    ]
    first, _ = applied(sd15, loras[0], tmp_path / "one.safetensors", "sd15")
    twice, _ = applied(tmp_path / "one.safetensors", loras[1], tmp_path / "two.safetensors", "sd15")
    with TensorReader(sd15) as reader:
        ingredients = [Ingredient(file=LoraFile(lora, lora.name)) for lora in loras]
        plan = plan_merge(reader, get_family("sd15"), ingredients, dtype="fp32")
        merge_into(reader, plan, tmp_path / "both.safetensors", metadata=reader.metadata)
    both = read_tensors(tmp_path / "both.safetensors")
    assert all(torch.allclose(both[key].float(), value.float(), atol=1e-6) for key, value in twice.items())
    assert any(not torch.equal(first[key], value) for key, value in both.items())


def test_merges_that_do_not_fit(sd15, tmp_path):
    place = Place(part="unet", path="mid_block.attentions.0.proj_in")
    shape = linear_places(sd15)[place]

    def plan(parts, family="sd15"):
        lora = write_lora(tmp_path / "l.safetensors", {place: parts}, family=family)
        return applied(sd15, lora, tmp_path / "m.safetensors", "sd15", dtype="fp16")

    with pytest.raises(InputError, match="is a LoRA for Stable Diffusion XL"):
        plan(random_parts("lora", shape), family="sdxl")
    with pytest.raises(FormatError, match="another architecture"):
        plan(random_parts("lora", (shape[0], shape[1] + 1)))
    strong = random_parts("lora", shape)
    strong["lora_up.weight"] *= 1e9
    with pytest.raises(FormatError, match="too strong"):
        plan(strong)
    assert not (tmp_path / "m.safetensors").exists()
    assert not list(tmp_path.glob(".*.tmp"))


class TestConvert:
    @pytest.mark.parametrize("naming", ["kohya", "diffusers", "comfyui"])
    @pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full"])
    def test_names_change_and_the_change_does_not(self, sd15, tmp_path, naming, algorithm):
        places = linear_places(sd15, every=20)
        path = write_lora(tmp_path / "in.safetensors", {p: random_parts(algorithm, s) for p, s in places.items()})
        with LoraFile(path, "in") as file:
            draft = convert(file, ConvertParams(naming=naming))
            saved = write_draft(tmp_path / "out.safetensors", draft, made_by={}, dtype="fp32", naming=naming)
            with LoraFile(saved.path, "out") as other:
                after = {module.place: (module.stem, lora_delta(other.parts(module))) for module in other.modules}
            assert set(after) == set(places)
            for module in file.modules:
                stem, change = after[module.place]
                assert stem == file.family.stem_of_place(module.place, naming)
                assert torch.allclose(change, lora_delta(file.parts(module)), atol=1e-6)

    def test_dora_becomes_plain_on_its_base(self, sd15, tmp_path):
        places = linear_places(sd15, every=20)
        path = write_lora(tmp_path / "in.safetensors", {p: random_parts("dora", s) for p, s in places.items()})
        with LoraFile(path, "in") as file, BaseWeights(sd15, file.family) as weights:
            with pytest.raises(InputError, match="wire the base model"):
                convert(file, ConvertParams(algorithm="LoRA"))
            draft = convert(file, ConvertParams(algorithm="LoRA"), base_weight=weights)
            write_draft(tmp_path / "out.safetensors", draft, made_by={}, dtype="fp32")
        one, _ = applied(sd15, path, tmp_path / "a.safetensors", "sd15")
        two, _ = applied(sd15, tmp_path / "out.safetensors", tmp_path / "b.safetensors", "sd15")
        assert all(torch.allclose(two[key].float(), value.float(), atol=1e-5) for key, value in one.items())

    def test_words_are_edited_and_tensors_are_not(self, sd15, tmp_path):
        place, shape = next(iter(linear_places(sd15).items()))
        metadata = {"ss_base_model_version": "sd_v1", "ss_secret": "x", "modelspec.author": "me"}
        path = write_lora(tmp_path / "in.safetensors", {place: random_parts("loha", shape)}, metadata=metadata)
        with LoraFile(path, "in") as file:
            texts = {"trigger_phrase": " lumo ", "author": ""}
            draft = edited(file, texts, thumbnail="data:image/jpeg;base64,xx", remove=True)
            write_draft(tmp_path / "out.safetensors", draft, made_by={}, dtype="fp32")
            with pytest.raises(InputError, match="no 'mood'"):
                edited(file, {"mood": "x"})
        before, after = read_tensors(path), read_tensors(tmp_path / "out.safetensors")
        assert set(before) == set(after)
        assert all(torch.equal(after[key], value) for key, value in before.items())
        with LoraFile(tmp_path / "out.safetensors", "out") as file:
            said = file.metadata
        assert said["modelspec.trigger_phrase"] == "lumo"
        assert said["modelspec.author"] == "me"
        assert said["modelspec.thumbnail"].startswith("data:")
        assert "ss_secret" not in said
