"""Head crops alone, or with crops of the whole person out of the same pictures as regularisation."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from lora_atelier.core.files import atomic_path
from lora_atelier.core.seeds import derive
from lora_atelier.dataset.combine import combine
from lora_atelier.dataset.crops import CropParams, subject_crops
from lora_atelier.dataset.crops_captions import RetagParams, retag_crops
from lora_atelier.dataset.detect_rows import find_boxes
from lora_atelier.dataset.table import Dataset
from lora_atelier.nodes.crops import retagger_of
from lora_atelier.nodes.host import PICO_NAME
from lora_atelier.pico import world as pico
from lora_atelier.pico.datasets import is_prompt_pair

from .world import SIDE_PX, World

ARMS = ("heads", "heads and persons")
PLAIN_ARMS = ("heads", "heads and plain persons")
"""Plain: the captions of the person crops are without the trigger, as regularisation captions usually are."""
FRAMED_ARMS = ("framed heads", "framed heads and persons")
"""Framed: the captions of head crops say that they are head crops, as a real tagger's `portrait` does."""
FRAMING = "vard"
"""Stands for `portrait`: a token of its own that means nothing to the base and nothing else in these captions."""
STEPS = 300
NUM_IMAGES = 32
NUM_PICTURES = 32
CONCEPT = "kest"
PICTURE_PX = 144
"""Side of the photographs, half as large again as a training picture."""
HEAD_SHARE = 0.9
"""Tight: the head fills the picture."""
LEAST_SCORE = 0.4
EDGE_PX = 1.0
"""A body that comes nearer to the picture's edge is taken to be cut."""


def prepared(world: World, arm: str, seed: int) -> Dataset:
    """Head crops, with or without their twins; captions are what the tagger sees in each crop, behind the trigger."""
    concept = pico.CONCEPTS[CONCEPT]
    folder = world.data_folder(f"crops-{seed}")
    if not folder.exists():
        rng = random.Random(derive(seed, "experiments", "crops"))
        with atomic_path(folder) as temporary:
            inner = temporary / f"1_{CONCEPT}"
            inner.mkdir(parents=True)
            number = 0
            while number < NUM_IMAGES:
                scene = pico.concept_scene(rng, concept, bucket_px=(PICTURE_PX, PICTURE_PX))
                scene = replace(scene, size="large", position="center")
                if is_prompt_pair(scene.colour, scene.background):
                    continue
                pico.draw(scene).save(inner / f"{number:04d}.png", format="PNG")
                text = ", ".join([concept.trigger, *pico.tags_of(scene)])
                (inner / f"{number:04d}.txt").write_text(text + "\n", encoding="utf-8", newline="\n")
                number += 1
    dataset = world.open(folder)
    boxes = find_boxes(dataset, world.detector, least_score=LEAST_SCORE, index=world.host.index())
    params = CropParams(train_width_px=SIDE_PX, train_height_px=SIDE_PX, head_share=HEAD_SHARE)
    pairs = subject_crops(dataset, boxes, params)
    crops = pairs.both if "persons" in arm else pairs.heads
    tagged = retag_crops(crops, retagger_of(PICO_NAME, 0.0), RetagParams(), index=world.host.index()).dataset
    of_heads = f"trigger: {concept.trigger}, {FRAMING}" if "framed" in arm else ""
    of_twins = f"blacklist: {concept.trigger}" if "plain" in arm else ""
    return _recaptioned(world, tagged, of_heads=of_heads, of_twins=of_twins)


def _recaptioned(world: World, crops: Dataset, *, of_heads: str, of_twins: str) -> Dataset:
    """The crops after one recipe for heads and another for their twins, in the same order."""
    parts = []
    for rows, recipe, note in ((~crops.is_reg, of_heads, "head crops"), (crops.is_reg, of_twins, "person crops")):
        if rows.any():
            part = crops.take(np.flatnonzero(rows).tolist(), note=note)
            parts.append(world.steps(part, recipe) if recipe else part)
    return combine(parts).dataset if of_heads or of_twins else crops


def asked(seed: int) -> tuple[list[str], list[str]]:
    """Prompts for the whole character by its trigger, and for known shapes that wear the same things."""
    rng = random.Random(derive(seed, "experiments", "crops", "prompts"))
    pairs = [(c, b) for c in pico.COLOURS for b in pico.BACKGROUNDS if is_prompt_pair(c, b)]
    concept = pico.CONCEPTS[CONCEPT]
    whole, known = [], []
    for _ in range(NUM_PICTURES):
        colour, background = rng.choice(pairs)
        whole.append(", ".join([concept.trigger, *concept.traits, colour, background, "1shape"]))
    for _ in range(NUM_PICTURES):
        colour, background = rng.choice(pairs)
        known.append(", ".join([rng.choice(pico.SHAPES), "hat, eyes", colour, background, "1shape"]))
    return whole, known


def whole_bodies(world: World, pictures: Sequence[Image.Image]) -> list[bool]:
    """Whether the detector sees one whole body in each picture, with all its sides inside."""
    found = []
    for picture in pictures:
        bodies = [item for item in world.detector.find(picture, least_score=LEAST_SCORE) if item.name == "body"]
        best = max(bodies, key=lambda item: item.score, default=None)
        found.append(
            best is not None
            and min(best.box[:2]) >= EDGE_PX
            and max(best.box[2:]) <= SIDE_PX - EDGE_PX
        )  # fmt: skip
    return found


def run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains an arm and asks for whole bodies, with the trigger and without it."""
    trained = world.train(prepared(world, arm, seed), name=f"crops-{arm}-{seed}", seed=seed, steps=STEPS)
    figures: dict[str, float] = {}
    for name, prompts in zip(("trigger", "known"), asked(seed), strict=True):
        pictures = world.draw(trained.lora, prompts, first_seed=10_000 * (seed + 1) + (name == "known") * 5000)
        world.keep_sheet(f"crops-{arm.replace(' ', '-')}-{seed}-{name}", pictures[:24], prompts[:24])
        bodies, seen = whole_bodies(world, pictures), world.judge.labels(pictures)
        wanted = [{part for part in prompt.split(", ") if part in (*pico.SHAPES, *pico.CONCEPT_SHAPES)}
                  for prompt in prompts]  # fmt: skip
        shape = [shown.issuperset(asked_for) for shown, asked_for in zip(seen, wanted, strict=True)]
        worn = [shown.issuperset(("hat", "eyes")) for shown in seen]
        full = [body and right for body, right in zip(bodies, shape, strict=True)]
        figures |= {
            f"full_body_{name}": sum(full) / len(full),
            f"inside_{name}": sum(bodies) / len(bodies),
            f"shape_{name}": sum(shape) / len(shape),
            f"hat_and_eyes_{name}": sum(worn) / len(worn),
        }
    return {**figures, "loss": trained.loss, "seconds": trained.seconds}
