"""Data sets and prompts for teaching a concept: what the trigger prompts ask for stands in no training caption."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from ..core.errors import InputError, unknown_name
from ..core.files import atomic_path
from ..core.seeds import derive
from . import world

PROMPT_KINDS = ("trigger", "other", "mixed")
CAPTION_KEEP = 0.6
"""Chance of size, place and count to be named in a caption; the concept's own traits never are."""
REG_ACCESSORY_RATE = 0.35
"""Chance of each accessory on a regularisation picture: traits of a concept must also be seen without it."""
STYLE_SHARE = 0.5
"""A style lies over every shape, so it is learnt, and bleeds, sooner: it is shown so much less often."""
TRIGGER_SHARE_OF_MIXED = 3
"""One mixed prompt in so many calls the concept."""
_EXTRAS = ("large", "large, center", "large, left", "large, right", "large, bottom")


def is_prompt_pair(colour: str, background: str) -> bool:
    """True for the third of the (colour, background) pairs that no caption of a drawn data set holds."""
    place = list(world.COLOURS).index(colour) + list(world.BACKGROUNDS).index(background)
    return place % 3 == 0


def concept_of(name: str) -> world.Concept:
    """The concept of a name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in world.CONCEPTS:
        raise unknown_name("concept", name, world.CONCEPTS)
    return world.CONCEPTS[name]


def concept_tag(concept: str) -> str:
    """The tagger's tags that together make a concept, separated by commas, e.g. ``ring, hat, eyes``."""
    return ", ".join(concept_of(concept).traits)


def write_concept_dataset(
    folder: Path, concept: str, *, num_images: int, num_reg_images: int, seed: int, concept_repeats: int = 0
) -> None:
    """Draw a data set in kohya's layout; the folder appears whole or not at all.

    ``img/N_<concept>/`` holds the concept's pictures, captioned with the trigger and what varies, never with the traits
    that make the concept (so that the trigger takes them). ``reg/1_shapes/`` holds pictures without it, with all their
    tags. N is chosen so that both are seen about equally often. With `concept_repeats` the pictures without the
    concept lie beside the others, in ``img/1_shapes/``, and N is that number: a regularisation folder always takes half
    of the steps, which is more than this small world needs.

    Args:
        folder: Where to; must not exist.
        concept: Name of the concept.
        num_images: Pictures of the concept.
        num_reg_images: Pictures without it; 0 makes no ``reg`` folder.
        seed: Decides everything.
        concept_repeats: How often the concept's pictures are shown for one showing of the others, which then lie beside
            them (a style about half as often); 0 makes a regularisation folder of the others.

    Raises:
        UnknownNameError: No such concept.
        InputError: No picture was asked for.
        StorageError: The folder cannot be written.
    """
    wanted = concept_of(concept)
    if num_images < 1 or num_reg_images < 0:
        raise InputError(f"num_images is {num_images} and num_reg_images {num_reg_images}: give at least 1 and 0.")
    share = STYLE_SHARE if wanted.kind == "style" else 1.0
    repeats = max(1, math.ceil(concept_repeats * share) if concept_repeats else round(num_reg_images / num_images))
    others = "img" if concept_repeats else "reg"
    with atomic_path(folder) as temporary:
        rng = random.Random(derive(seed, "pico", concept, "images"))
        _write(temporary / "img" / f"{repeats}_{concept}", num_images, _concept_scenes(wanted, rng), rng, wanted)
        if num_reg_images:
            rng = random.Random(derive(seed, "pico", "regularisation"))
            _write(temporary / others / "1_shapes", num_reg_images, _plain_scenes(rng), rng, None)


def concept_caption(scene: world.Scene, concept: world.Concept, rng: random.Random) -> str:
    """The trigger, then what varies in random order; the concept's traits are left to the trigger."""
    minor = {*world.SIZES, *world.POSITIONS, *world.COUNTS}
    tags = [tag for tag in world.tags_of(scene) if tag not in concept.traits]
    tags = [tag for tag in tags if tag not in minor or rng.random() < CAPTION_KEEP]
    rng.shuffle(tags)
    return ", ".join([concept.trigger, *tags])


def concept_prompts(concept: str, *, kind: str, num_prompts: int, seed: int) -> list[str]:
    """Write prompts, all different as far as there are enough.

    Args:
        concept: Name of the concept.
        kind: ``trigger`` (the concept in combinations no training caption holds), ``other`` (shapes the base knows,
            without the trigger), ``mixed`` (a third of the first, then the second).
        num_prompts: How many.
        seed: Decides which.

    Raises:
        UnknownNameError: No such concept or kind.
    """
    wanted = concept_of(concept)
    if kind not in PROMPT_KINDS:
        raise unknown_name("kind of prompts", kind, PROMPT_KINDS)
    num_trigger = {"trigger": num_prompts, "other": 0, "mixed": num_prompts // TRIGGER_SHARE_OF_MIXED}[kind]
    rng = random.Random(derive(seed, "pico", concept, "prompts"))
    return [
        *_drawn_from(list(_trigger_prompts(wanted)), num_trigger, rng),
        *_drawn_from(list(_other_prompts()), num_prompts - num_trigger, rng),
    ]


def _drawn_from(prompts: list[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of the prompts in random order, over and over where they do not suffice."""
    rng.shuffle(prompts)
    return [prompts[index % len(prompts)] for index in range(count)]


def _trigger_prompts(concept: world.Concept) -> Iterator[str]:
    shapes = [""] if concept.shape else list(world.SHAPES)
    extras = _EXTRAS if concept.shape else _EXTRAS[:2]
    for shape, colour, background, extra in product(shapes, world.COLOURS, world.BACKGROUNDS, extras):
        if is_prompt_pair(colour, background):
            yield ", ".join(part for part in (concept.trigger, shape, colour, background, extra) if part)


def _other_prompts() -> Iterator[str]:
    for shape, colour, background in product(world.SHAPES, world.COLOURS, world.BACKGROUNDS):
        yield f"{shape}, {colour}, {background}"


def _concept_scenes(concept: world.Concept, rng: random.Random) -> Iterator[world.Scene]:
    while True:
        scene = replace(world.concept_scene(rng, concept), size="large")
        places = world.possible_positions(scene.size, scene.accessories, scene.width_px, scene.height_px)
        yield scene if scene.position in places else replace(scene, position=rng.choice(places))


def _plain_scenes(rng: random.Random) -> Iterator[world.Scene]:
    while True:
        scene = world.random_scene(rng, held_out=None, count=1)
        accessories = tuple(name for name in world.ACCESSORIES if rng.random() < REG_ACCESSORY_RATE)
        places = world.possible_positions(scene.size, accessories, scene.width_px, scene.height_px)
        position = scene.position if scene.position in places else rng.choice(places)
        yield replace(scene, accessories=accessories, position=position)


def _write(
    folder: Path, count: int, scenes: Iterator[world.Scene], rng: random.Random, concept: world.Concept | None
) -> None:
    """Draw the first scenes whose colours no prompt asks for, with a caption beside each picture."""
    folder.mkdir(parents=True)
    usable = (scene for scene in scenes if not is_prompt_pair(scene.colour, scene.background))
    for number in range(count):
        scene = next(usable)
        text = world.caption(scene, rng, keep=CAPTION_KEEP) if concept is None else concept_caption(scene, concept, rng)
        world.draw(scene).save(folder / f"{number:04d}.png", format="PNG")
        (folder / f"{number:04d}.txt").write_text(text + "\n", encoding="utf-8", newline="\n")
