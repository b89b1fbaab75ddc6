"""The tiny drawn world: scenes of shapes, their booru-like captions, and the concepts that no base picture shows.

A scene is a frozen description; :func:`draw` turns it into a picture and :func:`tags_of` into tags, both without
hidden state, so the same scene is the same picture and the same words everywhere. Randomness enters only through
:func:`random_scene` and :func:`caption`, which take the generator they use.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

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

_HAT: Colour = (36, 36, 48)
_PUPIL: Colour = (20, 20, 24)
_WHITE: Colour = (255, 255, 255)
_GOLD: Colour = (226, 172, 30)
_SUPERSAMPLING = 3
_COUNT_WEIGHTS = (0.8, 0.12, 0.08)
_ACCESSORY_RATE = 0.24
_HAT_HEIGHT = 0.72
_HALO_LIFT = 0.34
_RADIUS = {"small": (0.165, 0.192), "large": (0.268, 0.300)}
_GROUP_RADIUS = {2: (0.165, 0.190), 3: (0.128, 0.145)}
_TOP = {"square": 0.86, "heart": 0.74, "ring": 1.06, "triangle": 0.86, "star": 0.9, "diamond": 0.95}
_EYE_Y = {"triangle": 0.22, "heart": -0.18, "star": 0.02, "diamond": -0.02, "cross": 0.0, "ring": -0.54}
_EYE_X = {"ring": 0.54, "star": 0.27, "triangle": 0.28, "diamond": 0.30}


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


def possible_positions(size: str, accessories: tuple[str, ...], width_px: int, height_px: int) -> tuple[str, ...]:
    """The positions that can be told from the centre at this size and aspect."""
    reach = max(_RADIUS[size]) * math.sqrt(width_px * height_px)
    crown = _crown(accessories) * reach
    room_x = width_px / 2 - reach - 2
    room_up = height_px / 2 - reach - crown - 2
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


@dataclass(frozen=True, kw_only=True)
class Stripes:
    """Stripes laid over a body; the concept's own are white and run at 45 degrees."""

    angle: float = math.pi / 4
    spacing: float = 0.52
    thickness: float = 0.25
    colour: Colour = _WHITE


def random_stripes(rng: random.Random) -> Stripes:
    """Stripes of any direction, width and colour, for teaching the autoencoder forms in general."""
    colour = rng.choice([_WHITE, _WHITE, *COLOURS.values(), *BACKGROUNDS.values(), _HAT])
    thickness = rng.uniform(0.14, 0.3)
    spacing = thickness * rng.uniform(1.7, 2.6)
    return Stripes(angle=rng.uniform(0, math.pi), spacing=spacing, thickness=thickness, colour=colour)


def draw(scene: Scene, stripes: Stripes | None = None) -> Image.Image:
    """The picture of a scene: RGB, `width_px` x `height_px`, anti-aliased by supersampling.

    Args:
        scene: what to draw.
        stripes: stripes for every body; the concept's own where the scene is hatched, else none.
    """
    if stripes is None and scene.hatched:
        stripes = Stripes()
    rng = random.Random(scene.jitter_seed)
    scale = _SUPERSAMPLING
    width, height = scene.width_px * scale, scene.height_px * scale
    canvas = Image.new("RGB", (width, height), _jittered(BACKGROUNDS[scene.background], rng, 5))
    body = _jittered(COLOURS[scene.colour], rng, 9)
    for x, y, radius in _places(scene, rng):
        _draw_body(canvas, scene, body, stripes, (x * scale, y * scale, radius * scale))
    return canvas.reduce(scale)


def _jittered(colour: Colour, rng: random.Random, amount: int) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in colour)
    return red, green, blue


def _crown(accessories: tuple[str, ...]) -> float:
    """Height above the body's top that hat and halo need, in radii."""
    height = _HAT_HEIGHT - 0.2 if "hat" in accessories else 0.0
    return height + (_HALO_LIFT + 0.2 if "halo" in accessories else 0.0)


def _places(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """(x, y, radius) in px of every shape, all inside the picture with what they wear."""
    width, height = scene.width_px, scene.height_px
    side = math.sqrt(width * height)
    crown = _crown(scene.accessories)
    if scene.count > 1:
        radius = rng.uniform(*_GROUP_RADIUS[scene.count]) * side
        steps = [(i + 0.5) / scene.count - 0.5 for i in range(scene.count)]
        drop = crown * radius / 2
        along = 0.96 * max(width, height)
        if width >= height:
            return [(width / 2 + s * along, height / 2 + drop + rng.uniform(-5, 5), radius) for s in steps]
        return [(width / 2 + rng.uniform(-4, 4), height / 2 + drop + s * along, radius) for s in steps]
    radius = rng.uniform(*_RADIUS[scene.size]) * side
    low_x, high_x = radius + 2, width - radius - 2
    low_y, high_y = radius * (1 + crown) + 2, height - radius - 2
    x, y = width / 2 + rng.uniform(-2, 2), height / 2 + crown * radius * 0.3 + rng.uniform(-2, 2)
    inset = 0.0 if scene.size == "large" else 5.0
    if scene.position == "left":
        x = low_x + inset + rng.uniform(0, 3)
    elif scene.position == "right":
        x = high_x - inset - rng.uniform(0, 3)
    elif scene.position == "top":
        y = low_y + rng.uniform(0, 3)
    elif scene.position == "bottom":
        y = high_y - inset - rng.uniform(0, 3)
    return [(min(max(x, low_x), high_x), min(max(y, low_y), high_y), radius)]


def _polygon(shape: str) -> list[Point]:
    """Outline of an angular shape in radii around its centre, y downwards."""
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0.0, -1.0), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "diamond":
        return [(0.0, -1.05), (0.72, 0.0), (0.0, 1.05), (-0.72, 0.0)]
    if shape == "cross":
        arm = 0.40
        return [
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ]  # fmt: skip
    if shape == "star":
        tips = []
        for corner in range(10):
            reach = 1.08 if corner % 2 == 0 else 0.50
            angle = math.pi * corner / 5
            tips.append((reach * math.sin(angle), 0.06 - reach * math.cos(angle)))
        return tips
    curve = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (
            1.02 * math.sin(t) ** 3,
            -0.062 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) - 0.06,
        )
        for t in curve
    ]


def _body_mask(size_px: tuple[int, int], shape: str, x: float, y: float, radius: float) -> Image.Image:
    mask = Image.new("L", size_px, 0)
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        outer = radius * (1.06 if shape == "ring" else 1.0)
        pen.ellipse((x - outer, y - outer, x + outer, y + outer), fill=255)
        if shape == "ring":
            hole = 0.48 * radius
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        return mask
    pen.polygon([(x + radius * px, y + radius * py) for px, py in _polygon(shape)], fill=255)
    return mask


def _draw_body(
    canvas: Image.Image, scene: Scene, colour: Colour, stripes: Stripes | None, place: tuple[float, float, float]
) -> None:
    x, y, radius = place
    mask = _body_mask(canvas.size, scene.shape, x, y, radius)
    canvas.paste(colour, (0, 0), mask)
    if "spots" in scene.accessories:
        canvas.paste(_WHITE, (0, 0), ImageChops.multiply(mask, _spots(canvas.size, scene.shape, x, y, radius)))
    if stripes is not None:
        canvas.paste(stripes.colour, (0, 0), ImageChops.multiply(mask, _stripe_mask(canvas.size, stripes, place)))
    pen = ImageDraw.Draw(canvas)
    top = y - radius * _TOP.get(scene.shape, 1.0)
    if "hat" in scene.accessories:
        base = top + 0.2 * radius
        half = 0.58 * radius
        pen.polygon([(x - half, base), (x + half, base), (x, base - _HAT_HEIGHT * radius)], fill=_HAT)
        pen.rectangle((x - half * 1.3, base - 0.07 * radius, x + half * 1.3, base + 0.07 * radius), fill=_HAT)
        top = base - _HAT_HEIGHT * radius
    if "halo" in scene.accessories:
        middle = top - _HALO_LIFT * radius + (0.12 * radius if "hat" in scene.accessories else 0.0)
        box = (x - 0.66 * radius, middle - 0.2 * radius, x + 0.66 * radius, middle + 0.2 * radius)
        pen.ellipse(box, outline=_GOLD, width=max(2, round(0.13 * radius)))
    if "eyes" in scene.accessories:
        _draw_eyes(pen, scene.shape, x, y, radius)


def _draw_eyes(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float) -> None:
    eye_y = y + _EYE_Y.get(shape, -0.12) * radius
    for side in (-1, 1):
        eye_x = x + side * _EYE_X.get(shape, 0.36) * radius
        for reach, fill in ((0.24 * radius, _WHITE), (0.12 * radius, _PUPIL)):
            pen.ellipse((eye_x - reach, eye_y - reach, eye_x + reach, eye_y + reach), fill=fill)


_SPOTS: tuple[Point, ...] = ((-0.48, 0.42), (0.48, 0.42), (0.0, 0.66), (0.0, 0.26), (0.0, -0.5), (-0.66, -0.42), (0.66, -0.42))
_CROSS_SPOTS: tuple[Point, ...] = ((0.0, -0.72), (0.0, 0.0), (0.0, 0.72), (-0.7, 0.0), (0.7, 0.0))
_RING_SPOTS: tuple[Point, ...] = ((0.0, -0.74), (0.0, 0.74), (-0.72, 0.2), (0.72, 0.2), (-0.45, 0.62), (0.45, 0.62))


def _spots(size_px: tuple[int, int], shape: str, x: float, y: float, radius: float) -> Image.Image:
    layer = Image.new("L", size_px, 0)
    pen = ImageDraw.Draw(layer)
    dot = 0.15 * radius
    for px, py in {"cross": _CROSS_SPOTS, "ring": _RING_SPOTS}.get(shape, _SPOTS):
        cx, cy = x + px * radius, y + py * radius
        pen.ellipse((cx - dot, cy - dot, cx + dot, cy + dot), fill=255)
    return layer


def _stripe_mask(size_px: tuple[int, int], stripes: Stripes, place: tuple[float, float, float]) -> Image.Image:
    x, y, radius = place
    layer = Image.new("L", size_px, 0)
    pen = ImageDraw.Draw(layer)
    along_x, along_y = math.cos(stripes.angle) * 2 * radius, -math.sin(stripes.angle) * 2 * radius
    width = max(2, round(stripes.thickness * radius))
    for step in range(-6, 7):
        shift = step * stripes.spacing * radius
        cx, cy = x + math.sin(stripes.angle) * shift, y + math.cos(stripes.angle) * shift
        pen.line((cx - along_x, cy - along_y, cx + along_x, cy + along_y), fill=255, width=width)
    return layer


def scribble(rng: random.Random, width_px: int, height_px: int) -> Image.Image:
    """A picture of random strokes, boxes and ellipses: an autoencoder trained on some of these learns to copy any form."""
    scale = _SUPERSAMPLING
    width, height = width_px * scale, height_px * scale

    def any_colour() -> Colour:
        named = list(COLOURS.values()) + list(BACKGROUNDS.values()) + [_HAT, _WHITE, _GOLD]
        return _jittered(rng.choice(named), rng, 30)

    canvas = Image.new("RGB", (width, height), any_colour())
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(1, 5)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.08, 0.5) * width, rng.uniform(0.08, 0.5) * height
        kind, pen_px = rng.randrange(4), rng.randint(2 * scale, 9 * scale)
        if kind == 0:
            pen.ellipse((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=any_colour())
        elif kind == 1:
            pen.ellipse((x - w / 2, y - h / 2, x + w / 2, y + h / 2), outline=any_colour(), width=pen_px)
        elif kind == 2:
            pen.polygon([(x + rng.uniform(-w, w), y + rng.uniform(-h, h)) for _ in range(rng.randint(3, 5))], any_colour())
        else:
            angle, paint = rng.uniform(0, math.pi), any_colour()
            dx, dy = w * math.cos(angle), h * math.sin(angle)
            gap = rng.uniform(2.2, 3.2) * pen_px / 2
            for line in range(rng.randint(1, 5)):
                ox, oy = -math.sin(angle) * gap * 2 * line, math.cos(angle) * gap * 2 * line
                pen.line((x - dx + ox, y - dy + oy, x + dx + ox, y + dy + oy), fill=paint, width=pen_px)
    return canvas.reduce(scale)
