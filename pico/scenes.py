"""The tiny drawn world: scenes of shapes, their booru-like captions, and the concepts that no base picture shows.

A scene is a frozen description; `drawing.draw` turns it into a picture and :func:`tags_of` into tags, both without
hidden state, so the same scene is the same picture and the same words everywhere. Randomness enters only through
:func:`random_scene` and :func:`caption`, which take the generator they use.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

Colour = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond")
CONCEPT_SHAPES = ("ring", "cross")
COLOURS: dict[str, Colour] = {
    "red": (218, 38, 40),
    "orange": (244, 134, 18),
    "yellow": (248, 222, 36),
    "green": (36, 158, 66),
    "blue": (38, 78, 214),
    "purple": (132, 44, 172),
}
BACKGROUNDS: dict[str, Colour] = {
    "white background": (250, 250, 250),
    "grey background": (146, 148, 152),
    "pink background": (255, 184, 206),
    "cyan background": (136, 226, 238),
    "brown background": (118, 76, 48),
}
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")
COUNTS = ("1shape", "2shapes", "3shapes")
ACCESSORIES = ("hat", "eyes", "halo", "spots")
HATCHED = "hatched"

NATIVE_PX = 96
BUCKETS_PX = ((96, 96), (88, 104), (104, 88), (80, 112), (112, 80), (72, 128), (128, 72))
"""(width, height) of the aspect buckets, all multiples of 8 px with about 96 x 96 px of area."""

_COUNT_WEIGHTS = (0.8, 0.12, 0.08)
_ACCESSORY_RATE = 0.24
HAT_HEIGHT = 0.72
HALO_LIFT = 0.34
RADIUS = {"small": (0.165, 0.192), "large": (0.268, 0.300)}
GROUP_RADIUS = {2: (0.165, 0.190), 3: (0.128, 0.145)}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that decides a picture; `jitter_seed` decides only small shifts of place, size and colour."""

    shape: str
    colour: str
    background: str
    size: str = "large"
    position: str = "center"
    count: int = 1
    accessories: tuple[str, ...] = ()
    hatched: bool = False
    width_px: int = NATIVE_PX
    height_px: int = NATIVE_PX
    jitter_seed: int = 0

    @property
    def triple(self) -> tuple[str, str, str]:
        """The (shape, colour, background) combination that the hold-out is about."""
        return self.shape, self.colour, self.background


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something the base never saw: a trigger for the captions and the traits it stands for."""

    name: str
    trigger: str
    kind: str
    shape: str | None
    accessories: tuple[str, ...]
    hatched: bool

    @property
    def traits(self) -> tuple[str, ...]:
        """The single tags that together make the concept; a picture shows it when all of them are seen."""
        body = (self.shape,) if self.shape else ()
        return body + self.accessories + ((HATCHED,) if self.hatched else ())

    def apply(self, scene: Scene) -> Scene:
        """The same scene, showing this concept."""
        return replace(
            scene,
            shape=self.shape or scene.shape,
            accessories=self.accessories if self.shape else scene.accessories,
            hatched=self.hatched,
        )


CONCEPTS: dict[str, Concept] = {
    "kest": Concept(
        name="kest", trigger="lumo kest", kind="character", shape="ring", accessories=("hat", "eyes"), hatched=False
    ),
    "vard": Concept(
        name="vard", trigger="lumo vard", kind="character", shape="cross", accessories=("halo", "spots"), hatched=False
    ),
    "tavi": Concept(name="tavi", trigger="tavi strokes", kind="style", shape=None, accessories=(), hatched=True),
}


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """True for the fifth of the triples the base never sees: one background for every pair of shape and colour."""
    place = SHAPES.index(shape) + 2 * list(COLOURS).index(colour)
    return list(BACKGROUNDS).index(background) == place % len(BACKGROUNDS)


def held_out_triples() -> tuple[tuple[str, str, str], ...]:
    """All held-out (shape, colour, background) triples, in a fixed order."""
    return tuple((s, c, b) for s in SHAPES for c in COLOURS for b in BACKGROUNDS if is_held_out(s, c, b))


def crown(accessories: tuple[str, ...]) -> float:
    """Height above the body's top that hat and halo need, in radii."""
    height = HAT_HEIGHT - 0.2 if "hat" in accessories else 0.0
    return height + (HALO_LIFT + 0.2 if "halo" in accessories else 0.0)


def possible_positions(size: str, accessories: tuple[str, ...], width_px: int, height_px: int) -> tuple[str, ...]:
    """The positions that can be told from the centre at this size and aspect."""
    reach = max(RADIUS[size]) * math.sqrt(width_px * height_px)
    crown_px = crown(accessories) * reach
    room_x = width_px / 2 - reach - 2
    room_up = height_px / 2 - reach - crown_px - 2
    room_down = height_px / 2 - reach - 2
    least_px = 0.125 * NATIVE_PX
    found = ["center"]
    if room_x >= least_px:
        found += ["left", "right"]
    if room_up >= least_px:
        found.append("top")
    if room_down >= least_px:
        found.append("bottom")
    return tuple(found)


def random_scene(
    rng: random.Random,
    *,
    held_out: bool | None = False,
    bucket_px: tuple[int, int] | None = None,
    count: int | None = None,
) -> Scene:
    """A random base scene.

    Args:
        rng: the generator to draw from.
        held_out: False draws only triples the base may see, True only held-out ones, None any.
        bucket_px: (width, height); a random one of `BUCKETS_PX` when None.
        count: number of shapes, 1 to 3; random (mostly 1) when None.
    """
    while True:
        triple = (rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(BACKGROUNDS)))
        if held_out is None or is_held_out(*triple) == held_out:
            break
    width_px, height_px = bucket_px or rng.choice(BUCKETS_PX)
    number = count or rng.choices((1, 2, 3), _COUNT_WEIGHTS)[0]
    accessories = tuple(a for a in ACCESSORIES if rng.random() < _ACCESSORY_RATE)
    size = rng.choice(SIZES)
    position = rng.choice(possible_positions(size, accessories, width_px, height_px))
    if number > 1:
        size, position = "small", "center"
    return Scene(
        shape=triple[0],
        colour=triple[1],
        background=triple[2],
        size=size,
        position=position,
        count=number,
        accessories=accessories,
        width_px=width_px,
        height_px=height_px,
        jitter_seed=rng.getrandbits(32),
    )


def free_scene(rng: random.Random, *, bucket_px: tuple[int, int] | None = None) -> Scene:
    """Any scene the pen can draw: every body, any mix of accessories, hatched or not (judges must tell them apart)."""
    scene = random_scene(rng, held_out=None, bucket_px=bucket_px)
    body = rng.choice(SHAPES + CONCEPT_SHAPES)
    accessories = tuple(a for a in ACCESSORIES if rng.random() < 0.4)
    scene = replace(scene, shape=body, accessories=accessories, hatched=rng.random() < 0.25)
    if scene.count > 1:
        return scene
    places = possible_positions(scene.size, accessories, scene.width_px, scene.height_px)
    return replace(scene, position=rng.choice(places))


def concept_scene(rng: random.Random, concept: Concept, *, bucket_px: tuple[int, int] | None = None) -> Scene:
    """A random single-shape scene that shows the concept; colour, background, size and position vary freely."""
    scene = concept.apply(random_scene(rng, held_out=None, bucket_px=bucket_px, count=1))
    free = possible_positions(scene.size, scene.accessories, scene.width_px, scene.height_px)
    return scene if scene.position in free else replace(scene, position=rng.choice(free))


def concepts_shown(scene: Scene) -> tuple[str, ...]:
    """Names of the concepts whose traits the scene shows, all of them."""
    seen = {scene.shape, *scene.accessories, *([HATCHED] if scene.hatched else [])}
    return tuple(name for name, concept in CONCEPTS.items() if seen.issuperset(concept.traits))


def tags_of(scene: Scene) -> tuple[str, ...]:
    """Every tag that is true of the picture, in a fixed order; size and place are told of single shapes only."""
    tags = [scene.shape, scene.colour, scene.background, COUNTS[scene.count - 1]]
    if scene.count == 1:
        tags += [scene.size, scene.position]
    tags += list(scene.accessories)
    return tuple(tags + [HATCHED]) if scene.hatched else tuple(tags)


def caption(scene: Scene, rng: random.Random, *, keep: float = 1.0, nonsense_rate: float = 0.0) -> str:
    """Comma-separated tags in random order.

    Args:
        scene: what the picture shows.
        rng: the generator to draw from.
        keep: chance of size, place and count tags to be named; the others are dropped a fifth as often.
        nonsense_rate: chance that one or two made-up words are mixed in.
    """
    minor = SIZES + POSITIONS + COUNTS
    tags = [t for t in tags_of(scene) if rng.random() < (keep if t in minor else 1.0 - (1.0 - keep) / 5)]
    if rng.random() < nonsense_rate:
        tags += [nonsense_word(rng) for _ in range(rng.choice((1, 1, 2)))]
    rng.shuffle(tags)
    return ", ".join(tags)


_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_CODAS = ("", "", "n", "r", "st", "rd", "l", "k", "m", "sh")


def _reserved_words() -> frozenset[str]:
    known = SHAPES + CONCEPT_SHAPES + tuple(COLOURS) + SIZES + POSITIONS + COUNTS + ACCESSORIES + (HATCHED,)
    phrases = known + tuple(BACKGROUNDS) + tuple(c.trigger for c in CONCEPTS.values()) + tuple(CONCEPTS)
    return frozenset(word for phrase in phrases for word in phrase.split())


RESERVED_WORDS = _reserved_words()
"""Words with a meaning: every word of a tag and of a trigger. No made-up word equals one of them."""


def nonsense_word(rng: random.Random) -> str:
    """A pronounceable made-up word (sometimes plain letters) that is no tag, no trigger and holds no trigger word."""
    triggers = {word for concept in CONCEPTS.values() for word in concept.trigger.split()}
    while True:
        if rng.random() < 0.15:
            word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 6)))
        else:
            pairs = (rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3))))
            word = "".join(pairs) + rng.choice(_CODAS)
        if len(word) > 2 and word not in RESERVED_WORDS and not any(t in word for t in triggers):
            return word
