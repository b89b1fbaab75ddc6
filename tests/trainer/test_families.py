"""Runs on every family: what the trainer passes to it, and what the LoRA file says of the base."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers import full_size, training
from lora_atelier.core.errors import InputError
from lora_atelier.core.params import Choice
from lora_atelier.core.progress import SilentProgress
from lora_atelier.core.tensors import read_header, read_tensors
from lora_atelier.families._base import MergedLora, identity_hash, open_base
from lora_atelier.families._spec import get_family
from lora_atelier.trainer.base_model import merge_loras
from lora_atelier.trainer.objectives._spec import find_objective
from lora_atelier.trainer.plan import check_job
from lora_atelier.trainer.train import RunResult, train_lora

WORDS = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: full_size.write_tiny_checkpoint(folder / f"{name}.safetensors", family=name) for name in ("sd2", "sdxl")
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.draw_pictures(tmp_path_factory.mktemp("pictures"), count=3)


def run(
    folder: Path, pictures: Path, base: Path, *, opened: dict[str, Any] | None = None, **settings: Any
) -> RunResult:
    job = training.make_job(training.open_pictures(pictures), base=base, **{"steps": 2, **settings})
    if opened:
        job = replace(job, base=open_base(base, name=base.name, **opened))
        objective = find_objective(job.base.prediction_type)
        job = replace(job, objective=Choice(kind="objective", name=objective.name, params=objective.params()))
    return train_lora(job, **training.places(folder))


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_run_on_the_family(tmp_path: Path, pictures: Path, bases: dict[str, Path], name: str) -> None:
    result = run(tmp_path, pictures, bases[name])
    header = read_header(result.lora_path)
    family = get_family(name)
    stems = {key.split(".")[0] for key in header.shapes}
    assert stems == {target.stem for target in family.targets(family.load(bases[name]))}
    assert stems <= family.accepted_stems(bases[name])
    assert header.metadata["ss_base_model_version"] == WORDS[name]
    assert header.metadata["ss_v2"] == str(name == "sd2")
    assert header.metadata["modelspec.architecture"] == family.architecture
    assert header.metadata["modelspec.prediction_type"] == "epsilon"


def test_a_base_that_predicts_v_wants_its_objective(tmp_path: Path, pictures: Path, bases: dict[str, Path]) -> None:
    told = {"prediction": "v_prediction", "zero_terminal_snr": "on"}
    result = run(tmp_path, pictures, bases["sdxl"], opened=told, train_text_encoder=False)
    metadata = read_header(result.lora_path).metadata
    assert metadata["modelspec.prediction_type"] == "v"
    job = training.make_job(training.open_pictures(pictures), base=bases["sdxl"])
    with pytest.raises(InputError, match="predicts v_prediction"):
        check_job(replace(job, base=open_base(bases["sdxl"], name="xl", **told)))


def test_sizes_and_crops_reach_the_unet(
    tmp_path: Path, pictures: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_atelier.families import sdxl

    seen: list[list[int]] = []
    original = sdxl.Sdxl.predict

    def watched(self: Any, *args: Any, conditioning: Any = None, **kwargs: Any) -> torch.Tensor:
        seen.extend(conditioning.flat().tolist())
        return original(self, *args, conditioning=conditioning, **kwargs)

    monkeypatch.setattr(sdxl.Sdxl, "predict", watched)
    run(tmp_path, pictures, bases["sdxl"], train_text_encoder=False, steps=3)
    # pictures of 64 x 64 and 80 x 48 px in buckets of at most 64 x 64 px
    assert {tuple(row[:2]) for row in seen} == {(64, 64), (48, 80)}
    assert all(row[4] * row[5] <= 64 * 64 and row[4] % 8 == 0 for row in seen)


def test_weights_in_8_bits_learn_too(tmp_path: Path, pictures: Path, bases: dict[str, Path]) -> None:
    result = run(tmp_path, pictures, bases["sdxl"], train_text_encoder=False, fp8_base=True, precision="bf16")
    assert read_header(result.lora_path).metadata["ss_fp8_base"] == "True"


def test_merged_loras_change_the_weights_by_their_strengths(
    tmp_path: Path, pictures: Path, bases: dict[str, Path]
) -> None:
    result = run(tmp_path, pictures, bases["sdxl"], save_dtype="fp32")
    family, tensors = get_family("sdxl"), read_tensors(result.lora_path)
    plain, merged = (family.load(bases["sdxl"], parts=("unet", "text_encoder")) for _ in range(2))
    halved = next(target.stem for target in family.targets(plain) if target.part == "unet")
    lora = MergedLora(
        path=result.lora_path, name="x", strength_model=2.0, strength_clip=-1.0, stem_strengths=((halved, 0.5),)
    )
    merge_loras(family, merged, [lora], SilentProgress())
    before, after = family.modules_by_stem(plain), family.modules_by_stem(merged)
    for target in family.targets(plain):
        up, down = (tensors[f"{target.stem}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
        strength = -1.0 if target.part == "text_encoder" else 1.0 if target.stem == halved else 2.0
        alpha = float(tensors[f"{target.stem}.alpha"]) / len(down)
        change = (up @ down).view_as(target.module.weight) * alpha * strength
        torch.testing.assert_close(after[target.stem].weight, before[target.stem].weight + change, atol=1e-6, rtol=1e-4)

    base = open_base(bases["sdxl"], name="xl")
    with_lora = base.with_lora(lora)
    hashes = {identity_hash(handle, "file") for handle in (base, with_lora, with_lora.with_lora(lora))}
    assert len(hashes) == 3
    assert identity_hash(base, "file") == "file"
    trained = training.make_job(training.open_pictures(pictures), base=bases["sdxl"], steps=2)
    again = train_lora(replace(trained, base=with_lora), **training.places(tmp_path))
    assert again.steps_done == 2
    assert "x merged in at 2" in again.report


def test_the_vae_of_another_file_makes_other_latents(tmp_path: Path, pictures: Path, bases: dict[str, Path]) -> None:
    other = full_size.write_tiny_checkpoint(tmp_path / "other.safetensors", family="sdxl", seed=9)
    first = run(tmp_path, pictures, bases["sdxl"], train_text_encoder=False)
    second = run(
        tmp_path, pictures, bases["sdxl"], train_text_encoder=False, opened={"vae_path": other, "vae_name": "o"}
    )
    assert second.steps_done == 2
    assert first.losses != second.losses
    metadata = read_header(second.lora_path).metadata
    assert metadata["ss_vae_name"] == "other.safetensors"
    assert len(metadata["ss_new_vae_hash"]) == 64
