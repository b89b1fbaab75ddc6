"""How fast a character is learned: one common training, of which each arm changes one setting, seen at four points.

Experiments D, E, F, G, J, K and L of docs/experiments.md. The common training is their shared arm and is run once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lora_atelier.core.files import atomic_path
from lora_atelier.dataset.table import Dataset
from lora_atelier.pico import world as pico
from lora_atelier.pico.datasets import concept_prompts, write_concept_dataset
from lora_atelier.pico.judge import label

from .world import Recipe, World

CONCEPT = "kest"
NUM_IMAGES, NUM_OTHERS, REPEATS = 28, 112, 10
STEPS = 240
SEEN_AT = (60, 120, 180, 240)
NUM_PICTURES = 32
SAMPLING_STEPS = 8
"""Fewer than elsewhere, as four points of every training are drawn."""
LR, LR_TEXT = 1e-3, 0.75e-3

COMMON = Recipe(
    settings={
        "lr_unet": LR, "lr_text_encoder": LR_TEXT, "schedule": "constant", "warmup_steps": 20, "beta2": 0.99,
        "weight_decay": 0.01,
    }
)  # fmt: skip
"""A quarter of the quickstart's rates, at which half of the character is there after 40 steps and nothing could be seen
to be faster."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What pictures of one checkpoint show.

    Attributes:
        traits: Share of the character's traits that are seen, in the mean of the pictures.
        recall: Share of the pictures that show all of them.
    """

    traits: float
    recall: float


def with_settings(**changed: float | str) -> Recipe:
    """The common training with other settings of its optimizer."""
    return replace(COMMON, settings={**COMMON.settings, **changed})


def pictures_of(world: World, seed: int) -> Dataset:
    """The data set all arms share: the character ten times as often as each of the other pictures, captions pruned."""
    folder = world.data_folder(f"learning-{seed}")
    if not folder.exists():
        write_concept_dataset(
            folder, CONCEPT, num_images=NUM_IMAGES, num_reg_images=NUM_OTHERS, seed=seed, concept_repeats=REPEATS
        )
    return world.open(folder / "img")


def traits_seen(world: World, pictures: Sequence[Image.Image], concept: str = CONCEPT) -> Learned:
    """Counts the traits of a concept in pictures."""
    traits = [label(trait) for trait in pico.CONCEPTS[concept].traits]
    seen = [sum(trait in shown for trait in traits) for shown in world.judge.labels(pictures)]
    return Learned(traits=sum(seen) / (len(seen) * len(traits)), recall=sum(n == len(traits) for n in seen) / len(seen))


def asked(seed: int) -> tuple[list[str], int]:
    """The prompts of a seed, with the bare trigger, and the seed of their noise; the same for all arms."""
    return concept_prompts(CONCEPT, kind="trigger", num_prompts=NUM_PICTURES, seed=1000 + seed), 10_000 * (seed + 1)


def curve(world: World, recipe: Recipe, name: str, seed: int, seen_at: Sequence[int] = SEEN_AT) -> dict[str, float]:
    """Trains a recipe, or takes it up where it was stopped, and looks at its checkpoints.

    Args:
        world: Where.
        recipe: How.
        name: Of the training; one name is one training, whichever experiment asks for it.
        seed: Of pictures, training and prompts.
        seen_at: Steps of the checkpoints, evenly apart; the last is the end of the training.

    Returns:
        ``traits_60`` ... and ``recall_60`` ... of every point; ``speed``, the mean of the traits over the points (how
        early they are seen; of the common points only); ``traits_end`` and ``recall_end``, the mean of the last two
        points; ``loss``, ``seconds``.
    """
    kept = world.folder / "curves" / f"{name}-{seed}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    trained = world.train(
        pictures_of(world, seed),
        name=f"learning-{name}-{seed}",
        seed=seed,
        steps=seen_at[-1],
        recipe=recipe,
        save_every_steps=seen_at[0],
        keep_last=0,
    )
    points = {step: look(world, trained.checkpoints[step], f"{name}-{seed}-{step}", seed) for step in seen_at}
    figures = figures_of(points) | {"loss": trained.loss, "seconds": trained.seconds}
    keep(kept, figures)
    return figures


def look(world: World, lora: Path | None, name: str, seed: int) -> Learned:
    """Draws with a checkpoint, keeps the sheet, and counts."""
    prompts, first_seed = asked(seed)
    pictures = world.draw(lora, prompts, first_seed=first_seed, steps=SAMPLING_STEPS)
    world.keep_sheet(f"learning-{name}", pictures, prompts)
    return traits_seen(world, pictures)


def figures_of(points: Mapping[int, Learned]) -> dict[str, float]:
    """The figures of a training from what was seen at its points."""
    last = list(points.values())[-2:]
    return {
        **{f"traits_{step}": point.traits for step, point in points.items()},
        **{f"recall_{step}": point.recall for step, point in points.items()},
        **({"speed": sum(point.traits for point in points.values()) / len(points)} if tuple(points) == SEEN_AT else {}),
        "traits_end": sum(point.traits for point in last) / len(last),
        "recall_end": sum(point.recall for point in last) / len(last),
    }


def keep(path: Path, figures: Mapping[str, float]) -> None:
    """Writes figures down, whole or not at all, for the experiments that share a training."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(figures) + "\n", encoding="utf-8", newline="\n")
