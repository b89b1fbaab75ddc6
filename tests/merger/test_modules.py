"""A LoRA file as modules: names of every tool become one, sizes are read from the header, odd files are refused."""

import json
from pathlib import Path

import pytest
import torch

from atelier_tests.helpers.lora_files import random_parts, write_lora
from lora_atelier.core.errors import FormatError
from lora_atelier.core.tensors import write_tensors
from lora_atelier.families._spec import NAMINGS, Place
from lora_atelier.merger.lora.modules import LoraFile, iter_parts

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
LINEAR = Place(part="unet", path="down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
CONV = Place(part="unet", path="down_blocks.0.resnets.0.conv1")
TEXT = Place(part="text_encoder", path="text_model.encoder.layers.0.mlp.fc1")


@pytest.mark.parametrize(
    ("fixture", "family", "number", "conv"),
    [("kohya_sd15_locon_rank4_conv4", "sd15", 278, 0), ("kohya_sdxl_lora_rank4", "sdxl", 986, 0)],
)
def test_a_kohya_file(tmp_path, fixture, family, number, conv):
    shapes = json.loads((FIXTURES / f"{fixture}.json").read_text(encoding="utf-8"))
    path = tmp_path / "x.safetensors"
    write_tensors(path, {key: torch.ones(shape, dtype=torch.float16) for key, shape in shapes.items()}, {})
    with LoraFile(path, "x") as file:
        assert file.family.name == family
        assert all(module.name == module.stem and module.algorithm == "lora" for module in file.modules)
        assert all(module.rank == 4 and module.alpha == 1.0 and module.scale == 0.25 for module in file.modules)
        assert len(file.modules) == len({key.split(".")[0] for key in shapes})
        spatial = [module for module in file.modules if module.is_spatial]
        assert all(module.kernel == (3, 3) for module in spatial)
        assert bool(spatial) == ("locon" in fixture)
        assert {module.block for module in file.modules} >= {"TE", "MID"}
        assert sum(module.num_numbers for module in file.modules) == sum(
            torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith("alpha")
        )


@pytest.mark.parametrize("naming", NAMINGS)
def test_namings_are_one(tmp_path, naming):
    modules = {
        place: random_parts("lora", shape) for place, shape in ((LINEAR, (8, 6)), (CONV, (8, 6, 3, 3)), (TEXT, (8, 6)))
    }
    path = write_lora(tmp_path / "x.safetensors", modules, naming=naming)
    with LoraFile(path, "x") as file:
        assert [module.name for module in file.modules] == [file.family.stem_of_place(m.place) for m in file.modules]
        assert {module.place for module in file.modules} == set(modules)
        for module, parts in iter_parts(file):
            assert all(torch.equal(parts[part], value) for part, value in modules[module.place].items())
            assert module.is_text == (module.place == TEXT)
            assert module.is_spatial == (module.place == CONV)


@pytest.mark.parametrize(
    ("algorithm", "named", "rank"),
    [("lora", "lora", 4), ("dora", "lora", 4), ("tucker", "lora", 4), ("loha", "loha", 4), ("loha_tucker", "loha", 4),
     ("lokr", "lokr", 4), ("lokr_whole", "lokr", None), ("lokr_both", "lokr", 4), ("full", "full", None)],
)  # fmt: skip
def test_algorithms(tmp_path, algorithm, named, rank):
    path = write_lora(tmp_path / "x.safetensors", {CONV: random_parts(algorithm, (8, 6, 3, 3), alpha=None)})
    with LoraFile(path, "x") as file:
        (module,) = file.modules
    assert (module.algorithm, module.rank, module.alpha, module.scale) == (named, rank, None, 1.0)
    assert module.kernel == (3, 3)
    assert module.is_dora == module.relative == (algorithm == "dora")


def write(tmp_path, tensors):
    write_tensors(tmp_path / "bad.safetensors", {key: torch.ones(*shape) for key, shape in tensors.items()}, {})
    return tmp_path / "bad.safetensors"


STEM = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{STEM}.lora_down.weight": (4, 8)}, "none of the known networks"),
        ({f"{STEM}.lora_down.weight": (0, 8), f"{STEM}.lora_up.weight": (8, 0)}, "rank 0"),
        ({f"{STEM}.lora_down.weight": (4, 8), f"{STEM}.lora_up.weight": (8, 4), f"{STEM}.alpha": (2,)}, "one number"),
        ({f"{STEM}.a1.weight": (4, 8), f"{STEM}.b1.weight": (4, 8)}, "algorithm that is not known"),
        (
            {f"{stem}.lora_{part}.weight": (4, 4) for stem in (STEM, "lora_unet_middle_block_1_proj_in")
             for part in ("up", "down")},
            "one layer twice",
        ),
        ({f"lora_unet_mid_block_madness_0.lora_{part}.weight": (4, 4) for part in ("up", "down")}, "no layer of"),
    ],
)  # fmt: skip
def test_odd_files_are_refused(tmp_path, tensors, said):
    with pytest.raises(FormatError, match=said):
        LoraFile(write(tmp_path, tensors), "bad")


def test_numbers_that_are_none_are_refused(tmp_path):
    parts = random_parts("lora", (8, 6))
    parts["lora_up.weight"][3, 1] = torch.nan
    path = write_lora(tmp_path / "x.safetensors", {LINEAR: parts})
    with LoraFile(path, "mine") as file, pytest.raises(FormatError, match="mine: .*to_q.lora_up.weight holds NaN"):
        list(iter_parts(file))


def test_embeddings_travel_along(tmp_path):
    path = write(
        tmp_path, {f"{STEM}.lora_down.weight": (4, 8), f"{STEM}.lora_up.weight": (8, 4), "bundle_emb.x.clip_l": (1, 8)}
    )
    with LoraFile(path, "x") as file:
        assert file.other_keys == ("bundle_emb.x.clip_l",)
        assert len(file.modules) == 1
