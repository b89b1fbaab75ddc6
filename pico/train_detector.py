"""Training of the detector on fresh drawings, as they are, worn, smaller, and away from the middle."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..dataset.detect import open_detector
from . import detector, world
from .drawing import Box
from .muon import set_rates
from .progress_file import ProgressLine, load_state, load_tensors, save_state, save_tensors
from .train_tagger import judged_scene, worn
from .train_vae import warm_flat_falling

MAX_BOXES = 6
_SIDE = detector.INPUT_PX


@dataclass(frozen=True, kw_only=True)
class DetectorTraining:
    """What decides the detector's weights."""

    steps: int = 3000
    seed: int = 41
    drawings: int = 9000
    batch: int = 32
    learning_rate: float = 2.5e-3
    warmup_steps: int = 60
    decay_share: float = 0.7
    reach_px: float = 5.0
    box_weight: float = 2.0
    save_every_steps: int = 300


def placed_drawing(rng: random.Random) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """A drawing on a grey square of the detector's size, with (class, box in px) of what is on it.

    Half of them lie as a letterbox puts them; the others are scaled and moved, their background grown to the edges.
    """
    scene = judged_scene(rng)
    picture = worn(world.draw(scene), rng)
    factor = _SIDE / max(picture.size)
    if rng.random() < 0.5:
        factor *= rng.uniform(0.4, 1.15)
        left = rng.uniform(min(0.0, _SIDE - factor * picture.width), max(0.0, _SIDE - factor * picture.width))
        top = rng.uniform(min(0.0, _SIDE - factor * picture.height), max(0.0, _SIDE - factor * picture.height))
        ground = picture.getpixel((1, 1)) if rng.random() < 0.8 else (detector.PAD_GREY,) * 3
    else:
        left, top = (_SIDE - factor * picture.width) / 2, (_SIDE - factor * picture.height) / 2
        ground = (detector.PAD_GREY,) * 3
    canvas = Image.new("RGB", (_SIDE, _SIDE), ground)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    canvas.paste(picture.resize(size, Image.Resampling.BILINEAR), (round(left), round(top)))
    return canvas, [(kind, _moved(box, factor, round(left), round(top))) for kind, box in boxes_of(scene)]


def boxes_of(scene: world.Scene) -> list[tuple[int, Box]]:
    """(class, box in px of the scene's picture) of everything the detector looks for."""
    found: list[tuple[int, Box]] = []
    for outline in world.outlines(scene):
        found.append((0, outline.body))
        if outline.head is not None:
            found.append((1, outline.head))
    return found


def _moved(box: Box, factor: float, left: int, top: int) -> Box:
    return (
        max(0.0, box[0] * factor + left),
        max(0.0, box[1] * factor + top),
        min(float(_SIDE), box[2] * factor + left),
        min(float(_SIDE), box[3] * factor + top),
    )


def drawings(work: Path, settings: DetectorTraining) -> tuple[Tensor, Tensor]:
    """(uint8 [n, 3, side, side], float [n, boxes, 5] of class and sides; class -1 for none), kept in `work`."""
    path = work / "detector_pictures.safetensors"
    if not path.is_file():
        rng = random.Random(f"detector {settings.seed}")
        pixels = torch.empty((settings.drawings, 3, _SIDE, _SIDE), dtype=torch.uint8)
        boxes = torch.full((settings.drawings, MAX_BOXES, 5), -1.0)
        for row in range(settings.drawings):
            picture, found = placed_drawing(rng)
            pixels[row] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            for place, (kind, box) in enumerate(found):
                boxes[row, place] = torch.tensor([kind, *box])
        save_tensors(path, {"pixels": pixels, "boxes": boxes}, {})
    tensors, _ = load_tensors(path)
    return tensors["pixels"], tensors["boxes"]


def targets(boxes: Tensor, reach_px: float) -> tuple[Tensor, Tensor]:
    """For each cell the class it answers for (-1 for none) and the sides of its box.

    A cell answers for the box whose centre is nearest, where that is within ``reach_px`` and the cell lies inside it.

    Args:
        boxes: [n, boxes, 5] of class (-1 for none), left, top, right, bottom in px.
        reach_px: Farthest that a cell may be from the centre of its box.

    Returns:
        int64 [n, cells] and float [n, 4, cells].
    """
    x, y = detector.cell_centres()
    kind, left, top, right, bottom = (boxes[..., index, None] for index in range(5))
    away = ((left + right) / 2 - x).square() + ((top + bottom) / 2 - y).square()
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    away = torch.where((kind >= 0) & inside & (away <= reach_px**2), away, torch.inf)
    nearest, place = away.min(dim=1)
    kinds = torch.where(nearest.isinf(), -1, boxes[..., 0].gather(1, place).long())
    wanted = boxes[..., 1:].gather(1, place[..., None].expand(-1, -1, 4)).transpose(1, 2)
    return kinds, wanted


def detector_loss(raw: Tensor, boxes: Tensor, settings: DetectorTraining) -> Tensor:
    """Focal loss of the class scores plus the generalised overlap loss of the boxes, per box.

    Source: Lin et al. 2017, Focal Loss, equation 5 (alpha 0.4, gamma 2); Rezatofighi et al. 2019, algorithm 1.
    """
    kinds, wanted = targets(boxes, settings.reach_px)
    present = kinds >= 0
    number = present.sum().clamp(min=1)
    logits = raw[:, 4:].flatten(2)
    truth = torch.stack([kinds == index for index in range(len(detector.CLASSES))], dim=1).float()
    away = torch.where(truth > 0.5, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(truth > 0.5, 0.4, 0.6) * away.square()
    scores = (weight * functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")).sum() / number
    made = detector.sides(raw).transpose(1, 2)[present]
    return scores * 2 + settings.box_weight * (1 - _generalised_overlap(made, wanted.transpose(1, 2)[present])).mean()


def _generalised_overlap(made: Tensor, wanted: Tensor) -> Tensor:
    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(dim=-1)

    both = area(torch.maximum(made[:, :2], wanted[:, :2]), torch.minimum(made[:, 2:], wanted[:, 2:]))
    either = area(made[:, :2], made[:, 2:]) + area(wanted[:, :2], wanted[:, 2:]) - both
    around = area(torch.minimum(made[:, :2], wanted[:, :2]), torch.maximum(made[:, 2:], wanted[:, 2:]))
    return both / either.clamp(min=1e-6) - (around - either) / around.clamp(min=1e-6)


def train_detector(work: Path, settings: DetectorTraining) -> detector.DetectorNet:
    """Train, or continue, the detector; state in `work/detector.safetensors`."""
    pixels, boxes = drawings(work, settings)
    torch.manual_seed(settings.seed)
    net = detector.DetectorNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=0.02)
    optimizer.param_groups[0]["full_lr"] = settings.learning_rate
    path = work / "detector.safetensors"
    first_step = load_state(path, {"net": net}, (optimizer,))
    progress = ProgressLine("detector", settings.steps, first_step, every_steps=100)
    net.train()
    for step in range(first_step, settings.steps):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        chosen = torch.randint(0, len(pixels), (settings.batch,), generator=generator)
        tint = 1 + torch.randn(settings.batch, 3, 1, 1, generator=generator) * 0.04
        inputs = (pixels[chosen].float() / 255 * tint).clamp(0, 1)
        set_rates((optimizer,), warm_flat_falling(step, settings.steps, settings.warmup_steps, settings.decay_share))
        loss = detector_loss(net(inputs), boxes[chosen], settings)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.tell(step + 1, loss=loss.item())
        if (step + 1) % settings.save_every_steps == 0 or step + 1 == settings.steps:
            save_state(path, {"net": net}, (optimizer,), step + 1)
    return net.eval()


def detector_overlap(path: Path, *, number: int = 300, least_score: float = 0.4) -> dict[str, float]:
    """Per class, the mean over all true boxes of fresh drawings of the best overlap with a box that was found."""
    opened = open_detector(path)
    rng = random.Random("detector held-out drawings")
    overlaps: dict[str, list[float]] = {name: [] for name in detector.CLASSES}
    for _ in range(number):
        scene = judged_scene(rng)
        found = opened.find(world.draw(scene), least_score=least_score)
        for kind, box in boxes_of(scene):
            name = detector.CLASSES[kind]
            same = (item.box for item in found if item.name == name)
            overlaps[name].append(max((box_overlap(other, box) for other in same), default=0.0))
    return {name: sum(values) / max(1, len(values)) for name, values in overlaps.items()}


def box_overlap(first: Box, second: Box) -> float:
    """Shared area of two boxes divided by the area of both together."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return both / (areas - both) if areas > both else 0.0
