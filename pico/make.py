"""Makes the tiny world's bases, tagger and detector from nothing: `python -m lora_atelier.pico.make`.

Stages, in order: `vae`, `base`, `sdxl`, `tagger`, `detector`, `assets`. Each continues where it stopped; states, sample
sheets and figures lie in the work folder. Two cores need a little under two hours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from . import detector, tagger_net, world
from .judge import ASSETS, Judge, paint_all, shape_prompts, share_as_asked
from .sheets import labelled_sheet
from .train_detector import DetectorTraining, detector_overlap, train_detector
from .train_sdxl import SdxlTraining, train_sdxl
from .train_tagger import Agreement, TaggerTraining, agreement, judged_scene, train_tagger
from .train_unet import BaseTraining, normalise_vae, train_base
from .train_vae import VaeTraining, train_vae

WORK = Path(__file__).resolve().parent.parent / "build" / "pico"
STAGES = ("vae", "base", "sdxl", "tagger", "detector", "assets")
PUBLISHED = (
    "pico-base.safetensors",
    "pico-sdxl.safetensors",
    "pico-tagger/model.onnx",
    "pico-tagger/selected_tags.csv",
    "pico-detector/model.onnx",
)
SIZE_LIMIT_BYTES = {
    "pico-base.safetensors": 24_000_000,
    "pico-sdxl.safetensors": 8_000_000,
    "pico-tagger/model.onnx": 1_000_000,
    "pico-detector/model.onnx": 500_000,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of all stages."""

    vae: VaeTraining = VaeTraining()
    base: BaseTraining = BaseTraining()
    sdxl: SdxlTraining = SdxlTraining()
    tagger: TaggerTraining = TaggerTraining()
    detector: DetectorTraining = DetectorTraining()
    judged_pictures: int = 200


def make(work: Path, assets: Path, last_stage: str, plan: Plan) -> dict[str, float]:
    """Run the stages up to and with `last_stage` and return the figures measured on the way.

    Raises:
        ValueError: an asset is larger than it may be.
    """
    figures: dict[str, float] = {}
    vae = train_vae(work, plan.vae)
    if last_stage == "vae":
        return figures
    normalise_vae(vae, work / "vae_normalised.safetensors")
    trainer = train_base(work, vae, plan.base)
    trainer.write_base(work / "pico-base.safetensors")
    if last_stage == "base":
        return figures
    train_sdxl(work, work / "pico-base.safetensors", plan.sdxl)
    if last_stage == "sdxl":
        return figures
    net, counts = train_tagger(work, vae, plan.tagger)
    tagger_net.write_onnx(net, work / "pico-tagger" / "model.onnx")
    tagger_net.write_tag_list(work / "pico-tagger" / "selected_tags.csv", counts.tolist())
    judge = Judge(work / "pico-tagger")
    figures["tagger_micro_f1"] = tagger_score(judge).f1
    if last_stage == "tagger":
        return figures
    detector.write_onnx(train_detector(work, plan.detector), work / "pico-detector" / "model.onnx")
    overlaps = detector_overlap(work / "pico-detector" / "model.onnx")
    figures |= {f"detector_overlap_{name}": overlap for name, overlap in overlaps.items()}
    if last_stage == "assets":
        asked = shape_prompts(plan.judged_pictures, seed=1, held_out=True)
        pictures = paint_all(trainer.painter(), [a.prompt for a in asked])
        figures["held_out_share"] = share_as_asked(judge, pictures, asked)
        labelled_sheet(pictures[:64], [a.prompt for a in asked[:64]]).save(work / "held-out.png")
        publish(work, assets)
    (work / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8", newline="\n")
    return figures


def tagger_score(judge: Judge, number: int = 1000) -> Agreement:
    """The tagger's agreement with drawings it was not trained on."""
    rng = random.Random("tagger held-out drawings")
    scenes = [judged_scene(rng) for _ in range(number)]
    return agreement(
        judge.probabilities([world.draw(s) for s in scenes]), torch.stack([tagger_net.label_vector(s) for s in scenes])
    )


def publish(work: Path, assets: Path) -> None:
    """Copy the finished files to the assets folder, each under a temporary name first.

    Raises:
        ValueError: a file is larger than it may be.
    """
    for name in PUBLISHED:
        source, target = work / name, assets / name
        limit = SIZE_LIMIT_BYTES.get(name)
        if limit and source.stat().st_size > limit:
            raise ValueError(f"{name} has {source.stat().st_size} bytes, allowed are {limit}; use smaller widths")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".part")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def main() -> None:
    """Read the command line and make what it asks for."""
    parser = argparse.ArgumentParser(prog="lora_atelier.pico.make", description=__doc__)
    parser.add_argument("--stage", default="assets", choices=STAGES, help="the last stage to run (default: all)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for states, sample sheets and figures")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder the finished files are copied to")
    parser.add_argument("--threads", type=int, default=2, help="processor cores to use")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(json.dumps(make(chosen.work, chosen.assets, chosen.stage, Plan())), flush=True)


if __name__ == "__main__":
    main()
