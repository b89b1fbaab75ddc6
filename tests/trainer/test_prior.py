"""Regularisation: kohya's ordinary loss with its weight, or the base's own answers as targets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers import full_size
from atelier_tests.helpers.masked import masked_pictures
from atelier_tests.helpers.training import draw_pictures, make_job, open_pictures
from lora_atelier.core.errors import InputError
from lora_atelier.core.params import Choice
from lora_atelier.families._base import open_base
from lora_atelier.families._spec import Conditioning, get_family
from lora_atelier.families.sd15 import Sd15
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams
from lora_atelier.trainer.caption_params import CaptionParams
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.objectives._spec import Question
from lora_atelier.trainer.objectives.v_prediction import VPredictionParams
from lora_atelier.trainer.prior import PriorPreservation
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]
SMALL: dict[str, Any] = {"steps": 3, "blocks": "MID", "train_text_encoder": False}


@pytest.mark.parametrize("family_name", ["sd15", "sdxl"])
@pytest.mark.parametrize("trains_text", [True, False])
def test_targets_are_what_the_frozen_model_says(family_name: str, trains_text: bool, tmp_path: Path) -> None:
    """Rows for regularisation are answered by the bare model, text encoder included; the others stay as they were."""
    family = get_family(family_name)
    path = full_size.write_tiny_checkpoint(tmp_path / "tiny.safetensors", family=family_name)
    loaded = family.load(path, parts=("unet", "text_encoder"))
    captions = ["ring", "a red circle", "hat"]
    draw = torch.Generator().manual_seed(0)
    noisy, target = (torch.randn(3, 4, 8, 8, generator=draw) for _ in range(2))
    timesteps = torch.tensor([10, 500, 990])
    sizes = torch.tensor([[64, 64], [80, 48], [64, 32]])
    told = Conditioning(original_size=sizes, crop=sizes * 0, target_size=sizes) if family.takes_sizes else None
    question = Question(noisy_latents=noisy, timesteps=timesteps, target=target)

    def predict(*given: Any) -> torch.Tensor:
        return family.predict(loaded.unet, *given[:3], conditioning=given[3])

    with torch.no_grad():
        expected = predict(noisy, timesteps, family.encode_text(loaded, captions), told)
    choice = Choice(kind="network", name="lora", params=LoraParams(rank=2, alpha=2.0))
    adapter = AdapterSet.attach(family.targets(loaded, text_encoder=trains_text), choice, seed=0)
    with torch.no_grad():
        for stem in adapter.stems:
            adapter.parts_of(stem)["lora_up.weight"].fill_(0.05)
    text = family.encode_text(loaded, captions)
    preserve = PriorPreservation(
        adapter=adapter,
        predict=predict,
        rows=lambda index: [0, 2] if index == 5 else [],
        base_text=(lambda *given, **named: family.encode_text(loaded, captions)) if trains_text else None,
    )
    assert preserve(question, text, told, 4, seed=0, step=0, micro=0) is question
    got = preserve(question, text, told, 5, seed=0, step=0, micro=0)
    torch.testing.assert_close(got.target[[0, 2]], expected[[0, 2]], atol=2e-5, rtol=1e-4)
    assert torch.equal(got.target[1], target[1])
    assert torch.equal(got.noisy_latents, noisy)
    assert not got.target.requires_grad
    assert adapter.enabled
    adapted = predict(noisy, timesteps, text, told)
    assert adapted.requires_grad
    assert not torch.allclose(adapted.detach()[[0, 2]], expected[[0, 2]], atol=1e-3)


def test_only_batches_with_regularisation_pay(
    job: MakeJob, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that has changed nothing yet answers as the base: the loss of such a batch is 0."""
    dataset = masked_pictures(tmp_path, reg=True)
    calls: list[tuple[int, bool]] = []
    original = Sd15.predict

    def watched(self: Any, unet: Any, noisy: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        calls.append((len(noisy), torch.is_grad_enabled()))
        return original(self, unet, noisy, *given, **named)

    monkeypatch.setattr(Sd15, "predict", watched)
    settings = {**SMALL, "steps": 6, "batch_size": 1, "optimizer": {"lr_unet": 1e-12}}
    result = train_lora(job(dataset=dataset, prior_preservation=True, **settings), **places)
    assert "regularisation pictures keep the base's own answers" in result.report
    preserved = [not grad for _, grad in calls]
    assert sum(preserved) + 6 == len(calls)
    zero = [loss < 1e-9 for loss in result.losses]
    assert zero.count(True) == sum(preserved)
    assert 0 < zero.count(True) < 6


def test_both_kinds_of_regularisation(job: MakeJob, places: Places, tmp_path: Path) -> None:
    dataset = masked_pictures(tmp_path, reg=True)
    settings = {**SMALL, "steps": 6, "batch_size": 1}
    kohya = train_lora(job(dataset=dataset, **settings), **places)
    prior = train_lora(job(dataset=dataset, prior_preservation=True, **settings), **places)
    assert kohya.run.key != prior.run.key
    assert kohya.losses != prior.losses
    assert open_run(prior.run.folder).manifest["config"]["train"]["prior_preservation"] is True


@pytest.mark.parametrize(("weight", "share"), [(0.5, 0.5), (0.0, 0.0)])
def test_the_weight_of_regularisation_is_kohyas(
    job: MakeJob, places: Places, tmp_path: Path, weight: float, share: float
) -> None:
    """Batches of one picture: those for regularisation lose that share of their loss, the others none."""
    draw_pictures(tmp_path / "set")
    dataset = open_pictures(tmp_path / "set", reg_folder=draw_pictures(tmp_path / "reg", count=2))
    settings = {**SMALL, "steps": 4, "batch_size": 1, "optimizer": {"lr_unet": 1e-12}}
    plain = train_lora(job(dataset=dataset, **settings), **places).losses
    weighted = train_lora(job(dataset=dataset, prior_loss_weight=weight, **settings), **places).losses
    ratios = [round(one / other, 4) for one, other in zip(weighted, plain, strict=True)]
    assert set(ratios) == {1.0, share}


def test_a_folders_weight(job: MakeJob, places: Places, dataset: Any) -> None:
    halved = dataset.with_subsets([replace(subset, loss_weight=0.5) for subset in dataset.subsets], note="half")
    plain = train_lora(job(**{**SMALL, "steps": 1}), **places)
    half = train_lora(job(dataset=halved, **{**SMALL, "steps": 1}), **places)
    assert half.losses[0] == pytest.approx(0.5 * plain.losses[0], rel=1e-6)
    assert half.run.key != plain.run.key


def test_without_regularisation_there_is_nothing_to_preserve(job: MakeJob, places: Places) -> None:
    with pytest.raises(InputError, match="prior_preservation is on, but the data set holds no regularisation picture"):
        train_lora(job(prior_preservation=True), **places)


def test_velocity_and_both_encoders(places: Places, tmp_path: Path) -> None:
    """SDXL that predicts v, both text encoders trained, a clip skip for each, long captions, masks and the prior."""
    base = full_size.write_tiny_checkpoint(tmp_path / "xl.safetensors", family="sdxl")
    dataset = masked_pictures(tmp_path / "pictures", reg=True).with_tags({0: ("ring",) * 50}, note="long")
    made = make_job(
        dataset,
        base=base,
        steps=6,
        batch_size=1,
        optimizer={"lr_unet": 1e-12, "lr_text_encoder": 1e-12},
        blocks="MID,TE",
        prior_preservation=True,
        clip_skip=2,
        clip_skip_2=3,
        text_encoder_stop=4,
    )
    opened = open_base(base, name="xl", prediction="v_prediction", zero_terminal_snr="on")
    objective = Choice(kind="objective", name="v_prediction", params=VPredictionParams())
    made = replace(made, base=opened, objective=objective, captions=CaptionParams(max_tokens=150))
    result = train_lora(made, **places)
    zero = [loss < 1e-9 for loss in result.losses]
    assert 0 < zero.count(True) < 6
    assert "clip skip 2 and 3" in result.report
