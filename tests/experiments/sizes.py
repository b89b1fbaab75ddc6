"""Size words: one per picture, or several that contradict each other, as sites give them."""

import random
from collections.abc import Iterator
from dataclasses import replace

from lora_atelier.core.files import atomic_path
from lora_atelier.core.seeds import derive
from lora_atelier.dataset.table import Dataset
from lora_atelier.pico import world as pico
from lora_atelier.pico.datasets import is_prompt_pair

from .world import Trained, World

ARMS = ("several", "one")
STEPS = 600
NUM_IMAGES = 80
NUM_PICTURES = 64
CONTRADICTED = 0.75
"""Share of the pictures whose site caption names the other size as well."""
WORDS = {"small": "cross", "large": "ring"}
"""Size words that mean nothing to the base (it never saw these shapes) but are tokens of their own: made-up words fall
into syllables, which the base was taught to ignore. A LoRA has to learn them from these captions alone."""
ONE_SHAPE = "1shape"
ONE_SIZE = "exclusive arbiter=score: size: small, large"
RENAMED = "rename: small -> cross, large -> ring"


def scenes(rng: random.Random) -> Iterator[pico.Scene]:
    """Single shapes without accessories, small and large by turns, in colours that no prompt asks for."""
    number = 0
    while True:
        scene = replace(pico.random_scene(rng, count=1), accessories=(), size=("small", "large")[number % 2])
        if is_prompt_pair(scene.colour, scene.background):
            continue
        places = pico.possible_positions(scene.size, (), scene.width_px, scene.height_px)
        yield scene if scene.position in places else replace(scene, position=rng.choice(places))
        number += 1


def site_caption(scene: pico.Scene, rng: random.Random) -> str:
    """Shape, colour, background and a size, and for most pictures the other size too, in random order."""
    other = "small" if scene.size == "large" else "large"
    tags = [scene.shape, scene.colour, scene.background, scene.size]
    tags += [other] if rng.random() < CONTRADICTED else []
    rng.shuffle(tags)
    return ", ".join(tags)


def prepared(world: World, arm: str, seed: int, *, renamed: bool = True) -> Dataset:
    """Site tags first, the tagger's behind them, then the steps of the arm; the size words may be renamed last."""
    folder = world.data_folder(f"sizes-{seed}")
    if not folder.exists():
        rng = random.Random(derive(seed, "experiments", "sizes"))
        with atomic_path(folder) as temporary:
            inner = temporary / "1_shapes"
            inner.mkdir(parents=True)
            for number, scene in zip(range(NUM_IMAGES), scenes(rng), strict=False):
                pico.draw(scene).save(inner / f"{number:04d}.png", format="PNG")
                text = site_caption(scene, rng)
                (inner / f"{number:04d}.txt").write_text(text + "\n", encoding="utf-8", newline="\n")
    dataset = world.tagged(world.open(folder, keep_tokens=0), "append")
    recipe = "\n".join([*([ONE_SIZE] if arm == "one" else []), *([RENAMED] if renamed else [])])
    return world.steps(dataset, recipe) if recipe else dataset


def asked(seed: int, *, count: str = "", renamed: bool = True) -> list[tuple[str, str]]:
    """(prompt, size) of as many small as large pictures, in colour pairs that no caption holds."""
    rng = random.Random(derive(seed, "experiments", "sizes", "prompts"))
    pairs = [(c, b) for c in pico.COLOURS for b in pico.BACKGROUNDS if is_prompt_pair(c, b)]
    found = []
    for number in range(NUM_PICTURES):
        size = ("small", "large")[number % 2]
        colour, background = rng.choice(pairs)
        words = (rng.choice(pico.SHAPES), *([count] if count else []), colour, background)
        found.append((", ".join((*words, WORDS[size] if renamed else size)), size))
    return found


def run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains an arm and asks for both sizes by their new words."""
    trained = world.train(prepared(world, arm, seed), name=f"sizes-{arm}-{seed}", seed=seed, steps=STEPS)
    return _judged(world, trained, f"sizes-{arm}-{seed}", asked(seed), seed)


def run_single(world: World, arm: str, seed: int) -> dict[str, float]:
    """The same training, asked for single shapes: groups have no size."""
    trained = world.train(prepared(world, arm, seed), name=f"sizes-{arm}-{seed}", seed=seed, steps=STEPS)
    return _judged(world, trained, f"sizes-single-{arm}-{seed}", asked(seed, count=ONE_SHAPE), seed)


def run_known(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains with the size words that the base knows, and asks for single shapes by them."""
    dataset = prepared(world, arm, seed, renamed=False)
    trained = world.train(dataset, name=f"sizes-known-{arm}-{seed}", seed=seed, steps=STEPS)
    wanted = asked(seed, count=ONE_SHAPE, renamed=False)
    return _judged(world, trained, f"sizes-known-{arm}-{seed}", wanted, seed)


def _judged(world: World, trained: Trained, name: str, wanted: list[tuple[str, str]], seed: int) -> dict[str, float]:
    prompts = [prompt for prompt, _ in wanted]
    pictures = world.draw(trained.lora, prompts, first_seed=10_000 * (seed + 1))
    world.keep_sheet(name, pictures[:24], prompts[:24])
    seen = world.judge.labels(pictures)
    right = [
        size in shown and ("small" if size == "large" else "large") not in shown
        for shown, (_, size) in zip(seen, wanted, strict=True)
    ]
    return {
        "size_right": sum(right) / len(right),
        "small_right": sum(right[0::2]) / len(right[0::2]),
        "large_right": sum(right[1::2]) / len(right[1::2]),
        "loss": trained.loss,
        "seconds": trained.seconds,
    }
