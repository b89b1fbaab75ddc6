"""Draws scenes with Pillow: anti-aliased by supersampling, the same bytes for the same scene."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from .scenes import BACKGROUNDS, COLOURS, GROUP_RADIUS, HALO_LIFT, HAT_HEIGHT, RADIUS, Colour, Scene, crown

Point = tuple[float, float]
Box = tuple[float, float, float, float]

_HAT: Colour = (36, 36, 48)
_PUPIL: Colour = (20, 20, 24)
_WHITE: Colour = (255, 255, 255)
_GOLD: Colour = (226, 172, 30)
_SUPERSAMPLING = 3
_TOP = {"square": 0.86, "heart": 0.74, "ring": 1.06, "triangle": 0.86, "star": 0.9, "diamond": 0.95}
_EYE_Y = {"triangle": 0.22, "heart": -0.18, "star": 0.02, "diamond": -0.02, "cross": 0.0, "ring": -0.54}
_EYE_X = {"ring": 0.54, "star": 0.27, "triangle": 0.28, "diamond": 0.30}


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


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Where one shape of a picture is, as (left, top, right, bottom) in px.

    Attributes:
        body: The shape with all it wears.
        head: What it wears on top, down to below its eyes; None for a shape without hat, halo and eyes.
    """

    body: Box
    head: Box | None


def outlines(scene: Scene) -> list[Outline]:
    """Where the shapes of a scene's picture are, in the order they are drawn."""
    rng = random.Random(scene.jitter_seed)
    _jittered(BACKGROUNDS[scene.background], rng, 5)
    _jittered(COLOURS[scene.colour], rng, 9)
    return [_outline(scene, *place) for place in _places(scene, rng)]


def _outline(scene: Scene, x: float, y: float, radius: float) -> Outline:
    left, top, right, bottom = _extent(scene.shape)
    crown_y = -_TOP.get(scene.shape, 1.0)
    half = 0.0
    if "hat" in scene.accessories:
        crown_y, half = crown_y + 0.2 - HAT_HEIGHT, 0.58 * 1.3
    if "halo" in scene.accessories:
        crown_y += -HALO_LIFT - 0.2 + (0.12 if "hat" in scene.accessories else 0.0)
        half = max(half, 0.66)
    if "eyes" in scene.accessories:
        half = max(half, _EYE_X.get(scene.shape, 0.36) + 0.28)
    body = (min(left, -half), min(top, crown_y), max(right, half), bottom)
    chin_y = _EYE_Y.get(scene.shape, -0.12) + 0.34
    head = (-half, min(crown_y, chin_y - 0.62), half, chin_y) if half else None
    return Outline(body=_placed(body, x, y, radius), head=head and _placed(head, x, y, radius))


def _placed(box: Box, x: float, y: float, radius: float) -> Box:
    left, top, right, bottom = box
    return (x + left * radius, y + top * radius, x + right * radius, y + bottom * radius)


def _extent(shape: str) -> Box:
    """Box of a body alone, in radii around its centre."""
    if shape in ("circle", "ring"):
        reach = 1.06 if shape == "ring" else 1.0
        return (-reach, -reach, reach, reach)
    points = _polygon(shape)
    return (min(p[0] for p in points), min(p[1] for p in points), max(p[0] for p in points), max(p[1] for p in points))


def _jittered(colour: Colour, rng: random.Random, amount: int) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-amount, amount))) for value in colour)
    return red, green, blue


def _places(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """(x, y, radius) in px of every shape, all inside the picture with what they wear."""
    width, height = scene.width_px, scene.height_px
    side = math.sqrt(width * height)
    above = crown(scene.accessories)
    if scene.count > 1:
        radius = rng.uniform(*GROUP_RADIUS[scene.count]) * side
        steps = [(i + 0.5) / scene.count - 0.5 for i in range(scene.count)]
        drop = above * radius / 2
        along = 0.96 * max(width, height)
        if width >= height:
            return [(width / 2 + s * along, height / 2 + drop + rng.uniform(-5, 5), radius) for s in steps]
        return [(width / 2 + rng.uniform(-4, 4), height / 2 + drop + s * along, radius) for s in steps]
    radius = rng.uniform(*RADIUS[scene.size]) * side
    radius = min(radius, (height - 4) / (2 + above), (width - 4) / 2)
    low_x, high_x = radius + 2, width - radius - 2
    low_y, high_y = radius * (1 + above) + 2, height - radius - 2
    x, y = width / 2 + rng.uniform(-2, 2), height / 2 + above * radius * 0.3 + rng.uniform(-2, 2)
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
        pen.polygon([(x - half, base), (x + half, base), (x, base - HAT_HEIGHT * radius)], fill=_HAT)
        pen.rectangle((x - half * 1.3, base - 0.07 * radius, x + half * 1.3, base + 0.07 * radius), fill=_HAT)
        top = base - HAT_HEIGHT * radius
    if "halo" in scene.accessories:
        middle = top - HALO_LIFT * radius + (0.12 * radius if "hat" in scene.accessories else 0.0)
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


_SPOTS: tuple[Point, ...] = (
    (-0.48, 0.42),
    (0.48, 0.42),
    (0.0, 0.66),
    (0.0, 0.26),
    (0.0, -0.5),
    (-0.66, -0.42),
    (0.66, -0.42),
)
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
    """A picture of random strokes, boxes and ellipses: an autoencoder that meets them copies any form."""
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
            pen.polygon(
                [(x + rng.uniform(-w, w), y + rng.uniform(-h, h)) for _ in range(rng.randint(3, 5))], any_colour()
            )
        else:
            angle, paint = rng.uniform(0, math.pi), any_colour()
            dx, dy = w * math.cos(angle), h * math.sin(angle)
            gap = rng.uniform(2.2, 3.2) * pen_px / 2
            for line in range(rng.randint(1, 5)):
                ox, oy = -math.sin(angle) * gap * 2 * line, math.cos(angle) * gap * 2 * line
                pen.line((x - dx + ox, y - dy + oy, x + dx + ox, y + dy + oy), fill=paint, width=pen_px)
    return canvas.reduce(scale)
