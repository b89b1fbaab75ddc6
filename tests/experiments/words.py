"""Two characters in one data set, by triggers that share a word and by triggers that share none (I)."""

from collections.abc import Mapping

from lora_atelier.core.files import atomic_path
from lora_atelier.dataset.combine import combine
from lora_atelier.dataset.table import Dataset
from lora_atelier.pico import world as pico
from lora_atelier.pico.datasets import concept_prompts, write_concept_dataset

from .learning import COMMON, NUM_IMAGES, NUM_OTHERS, REPEATS, SAMPLING_STEPS, traits_seen
from .world import World

TRIGGERS: Mapping[str, Mapping[str, str]] = {
    "shared word": {"kest": "lumo kest", "vard": "lumo vard"},
    "no shared word": {"kest": "lumo kest", "vard": "giza vard"},
}
"""`lumo` and `giza` are three tokens each and have none in common; all else is equal."""
ARMS = tuple(TRIGGERS)
STEPS = 320
SEEN_AT = (80, 160, 240, 320)
NUM_PICTURES = 12
"""Of each character at each point."""


def prepared(world: World, arm: str, seed: int) -> Dataset:
    """Both characters with the triggers of an arm, and the pictures without them."""
    folder = world.data_folder(f"words-{seed}")
    if not folder.exists():
        with atomic_path(folder) as temporary:
            for concept in pico.CONCEPTS:
                if concept in TRIGGERS[arm]:
                    write_concept_dataset(
                        temporary / concept, concept, num_images=NUM_IMAGES, seed=seed, concept_repeats=REPEATS,
                        num_reg_images=NUM_OTHERS if concept == "kest" else 0,
                    )  # fmt: skip
    parts = []
    for concept, trigger in TRIGGERS[arm].items():
        part, before = world.open(folder / concept / "img"), pico.CONCEPTS[concept].trigger
        parts.append(part if trigger == before else world.steps(part, f"rename: {before} -> {trigger}"))
    return combine(parts).dataset


def run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains an arm and asks for each character by its trigger.

    Returns:
        Of every point ``own``, the share of the asked character's traits that are seen, and ``other``, that of the
        other one's; ``own_end`` and ``other_end`` are the means of the last two points.
    """
    trained = world.train(
        prepared(world, arm, seed), name=f"words-{arm.replace(' ', '-')}-{seed}", seed=seed, steps=STEPS, recipe=COMMON,
        save_every_steps=SEEN_AT[0], keep_last=0,
    )  # fmt: skip
    prompts = []
    for concept, trigger in TRIGGERS[arm].items():
        drawn = concept_prompts(concept, kind="trigger", num_prompts=NUM_PICTURES, seed=1000 + seed)
        prompts += [prompt.replace(pico.CONCEPTS[concept].trigger, trigger) for prompt in drawn]
    figures: dict[str, float] = {}
    for step in SEEN_AT:
        pictures = world.draw(trained.checkpoints[step], prompts, first_seed=10_000 * (seed + 1), steps=SAMPLING_STEPS)
        world.keep_sheet(f"words-{arm.replace(' ', '-')}-{seed}-{step}", pictures, prompts)
        asked_for = {"kest": pictures[:NUM_PICTURES], "vard": pictures[NUM_PICTURES:]}
        own = [traits_seen(world, some, concept).traits for concept, some in asked_for.items()]
        other = [
            traits_seen(world, some, concept).traits
            for concept, some in zip(asked_for, reversed(asked_for.values()), strict=True)
        ]
        figures |= {f"own_{step}": sum(own) / 2, f"other_{step}": sum(other) / 2}
    for name in ("own", "other"):
        figures[f"{name}_end"] = sum(figures[f"{name}_{step}"] for step in SEEN_AT[-2:]) / 2
    return {**figures, "loss": trained.loss, "seconds": trained.seconds}
