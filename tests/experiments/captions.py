"""How much of a caption is written: the trigger alone, every tag, or every tag that should not stick."""

import numpy as np

from lora_atelier.dataset.combine import combine
from lora_atelier.dataset.table import Dataset
from lora_atelier.pico import world as pico
from lora_atelier.pico.datasets import concept_prompts, write_concept_dataset
from lora_atelier.pico.judge import label
from lora_atelier.tagger.proposal import PresetParams, propose
from lora_atelier.tagger.recipe import run_steps
from lora_atelier.tagger.steps._spec import StepContext

from .world import World

ARMS = ("none", "all", "pruned")
STEPS = {"kest": 600, "tavi": 300}
"""A style lies over everything and is learned sooner."""
NUM_IMAGES, NUM_OTHERS, REPEATS = 28, 112, 10
NUM_PICTURES = 48
UNKNOWN_TO_SITES = "blacklist: lumo kest, lumo vard, tavi strokes"
"""A real tagger does not know the new concept; the tiny one does, as a judge must, and is not asked here."""
TRAITS_BY_HAND = {"kest": "ring, hat, eyes", "tavi": "hatched"}
"""Flips for the preset's proposal: shapes stand in no list of traits of people."""


def prepared(world: World, concept: str, arm: str, seed: int) -> Dataset:
    """The data set of an arm; only captions of the concept's pictures differ between the arms."""
    folder = world.data_folder(f"captions-{concept}-{seed}")
    if not folder.exists():
        write_concept_dataset(
            folder, concept, num_images=NUM_IMAGES, num_reg_images=NUM_OTHERS, seed=seed, concept_repeats=REPEATS
        )
    whole = world.open(folder / "img")
    is_concept = np.array([whole.subset_of(row).concept == concept for row in range(len(whole))])
    mine = whole.take(np.flatnonzero(is_concept).tolist(), note=f"pictures of {concept}")
    others = whole.take(np.flatnonzero(~is_concept).tolist(), note="pictures without it")
    tagged = world.steps(world.tagged(mine, "overwrite"), UNKNOWN_TO_SITES)
    return combine([captioned(world, tagged, concept, arm), others]).dataset


def captioned(world: World, dataset: Dataset, concept: str, arm: str) -> Dataset:
    """The concept's pictures with the captions of an arm, by the pack's own steps and preset."""
    trigger = pico.CONCEPTS[concept].trigger
    if arm == "none":
        return world.steps(dataset, f"blacklist: glob:*\ntrigger: {trigger}")
    if arm == "all":
        return world.steps(dataset, f"trigger: {trigger}")
    params = PresetParams(preset="character", trigger=trigger, worn=True, remove=TRAITS_BY_HAND[concept])
    return run_steps(dataset, propose(dataset, params).recipe, StepContext())[0]


def run(world: World, concept: str, arm: str, seed: int) -> dict[str, float]:
    """Trains an arm and asks for the concept by its bare trigger, in combinations no caption holds."""
    trained = world.train(
        prepared(world, concept, arm, seed), name=f"captions-{concept}-{arm}-{seed}", seed=seed, steps=STEPS[concept]
    )
    prompts = concept_prompts(concept, kind="trigger", num_prompts=NUM_PICTURES, seed=1000 + seed)
    pictures = world.draw(trained.lora, prompts, first_seed=10_000 * (seed + 1))
    world.keep_sheet(f"captions-{concept}-{arm}-{seed}", pictures[:24], prompts[:24])
    traits = [label(trait) for trait in pico.CONCEPTS[concept].traits]
    asked_about = {label(tag) for tag in (*pico.SHAPES, *pico.COLOURS, *pico.BACKGROUNDS)}
    seen = world.judge.labels(pictures)
    whole = [shown.issuperset(traits) for shown in seen]
    share = [sum(trait in shown for trait in traits) / len(traits) for shown in seen]
    asked = [asked_about.intersection(label(part) for part in prompt.split(", ")) for prompt in prompts]
    control = [shown.issuperset(wanted) for shown, wanted in zip(seen, asked, strict=True)]
    both = [one and other for one, other in zip(whole, control, strict=True)]
    return {
        "traits": sum(share) / len(share),
        "all_traits": sum(whole) / len(whole),
        "control": sum(control) / len(control),
        "both": sum(both) / len(both),
        "loss": trained.loss,
        "seconds": trained.seconds,
    }
