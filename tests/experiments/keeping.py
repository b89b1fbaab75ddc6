"""What is left of the other things the base can draw, with regularisation pictures and without them (H)."""

import random

from lora_atelier.core.seeds import derive
from lora_atelier.dataset.combine import combine
from lora_atelier.dataset.table import Dataset
from lora_atelier.pico import world as pico
from lora_atelier.pico.datasets import concept_prompts, write_concept_dataset
from lora_atelier.pico.judge import label

from . import learning
from .learning import COMMON, CONCEPT, NUM_IMAGES, NUM_OTHERS, SAMPLING_STEPS
from .world import World

ARMS = ("without", "with")
STEPS = learning.STEPS
SEEN_AT = (120, 240)
NUM_OTHER_PICTURES = 36


def prepared(world: World, arm: str, seed: int) -> Dataset:
    """The character's pictures, alone or with a regularisation folder, which is shown as often as they are."""
    folder = world.data_folder(f"keeping-{seed}")
    if not folder.exists():
        write_concept_dataset(folder, CONCEPT, num_images=NUM_IMAGES, num_reg_images=NUM_OTHERS, seed=seed)
    mine = world.open(folder / "img")
    return mine if arm == "without" else combine([mine], [world.open(folder / "reg", keep_tokens=0)]).dataset


def others(seed: int) -> list[str]:
    """Prompts of shapes the base knows, without the trigger; each shape equally often."""
    rng = random.Random(derive(seed, "experiments", "keeping", "prompts"))
    colours, backgrounds = list(pico.COLOURS), list(pico.BACKGROUNDS)
    shapes = [pico.SHAPES[number % len(pico.SHAPES)] for number in range(NUM_OTHER_PICTURES)]
    return [f"{shape}, {rng.choice(colours)}, {rng.choice(backgrounds)}" for shape in shapes]


def run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains an arm and asks for the character, and for the shapes the base knew before."""
    trained = world.train(
        prepared(world, arm, seed), name=f"keeping-{arm}-{seed}", seed=seed, steps=STEPS, recipe=COMMON,
        save_every_steps=SEEN_AT[0], keep_last=0,
    )  # fmt: skip
    figures: dict[str, float] = {}
    mine, theirs = concept_prompts(CONCEPT, kind="trigger", num_prompts=12, seed=1000 + seed), others(seed)
    traits = {label(trait) for trait in pico.CONCEPTS[CONCEPT].traits}
    for step in SEEN_AT:
        pictures = world.draw(
            trained.checkpoints[step], mine + theirs, first_seed=10_000 * (seed + 1), steps=SAMPLING_STEPS
        )
        world.keep_sheet(f"keeping-{arm}-{seed}-{step}", pictures, mine + theirs)
        seen = world.judge.labels(pictures[len(mine) :])
        kept = [shown.issuperset(map(label, prompt.split(", "))) for shown, prompt in zip(seen, theirs, strict=True)]
        figures |= {
            f"kept_{step}": sum(kept) / len(kept),
            f"false_{step}": sum(len(traits & shown) for shown in seen) / (len(traits) * len(seen)),
            f"recall_{step}": learning.traits_seen(world, pictures[: len(mine)]).recall,
        }
    return {**figures, "loss": trained.loss, "seconds": trained.seconds}
