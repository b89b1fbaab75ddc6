"""The committed tagger as a judge of pictures: labels per picture, and the share that show what was asked."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import world
from .tagger_net import RATING, prepare

if TYPE_CHECKING:
    from .generate import Painter

ASSETS = Path(__file__).resolve().parent / "assets"
BASE_FILE = ASSETS / "pico-base.safetensors"
TAGGER_FOLDER = ASSETS / "pico-tagger"
DETECTOR_FILE = ASSETS / "pico-detector" / "model.onnx"


class Judge:
    """Runs a WD14-format tagger with onnxruntime."""

    def __init__(self, folder: Path = TAGGER_FOLDER) -> None:
        """Open `model.onnx` and `selected_tags.csv` of a folder."""
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = 2
        self._session = InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._side_px = int(self._session.get_inputs()[0].shape[1])
        with (folder / "selected_tags.csv").open(encoding="utf-8", newline="") as opened:
            self.rows = [(row["name"], int(row["category"])) for row in csv.DictReader(opened)]

    def probabilities(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, labels] in the order of the tag list."""
        name = self._session.get_inputs()[0].name
        batches = [
            self._session.run(None, {name: np.stack([prepare(p, self._side_px) for p in pictures[i : i + 64]])})[0]
            for i in range(0, len(pictures), 64)
        ]
        return torch.from_numpy(np.concatenate(batches))

    def labels(self, pictures: Sequence[Image.Image], threshold: float = 0.5) -> list[frozenset[str]]:
        """The labels seen in each picture, ratings left out."""
        seen = (self.probabilities(pictures) > threshold).tolist()
        return [
            frozenset(name for (name, category), yes in zip(self.rows, row, strict=True) if yes and category != RATING)
            for row in seen
        ]


@dataclass(frozen=True, kw_only=True)
class AskedPicture:
    """A prompt and the tagger labels its picture should show."""

    prompt: str
    asked: tuple[str, ...]


def label(tag: str) -> str:
    """A tag or trigger as the tagger writes it."""
    return tag.replace(" ", "_")


def shape_prompts(number: int, seed: int = 0, *, held_out: bool | None = None) -> tuple[AskedPicture, ...]:
    """Prompts of single shapes; each picture should show the asked shape, colour and background.

    Args:
        number: how many.
        seed: decides them.
        held_out: True asks only for triples the base never saw, False only for those it saw, None for any.
    """
    rng = random.Random(f"shape prompts {seed}")
    found = []
    for _ in range(number):
        scene = world.random_scene(rng, held_out=held_out, bucket_px=(world.NATIVE_PX, world.NATIVE_PX), count=1)
        asked = tuple(label(tag) for tag in scene.triple)
        found.append(AskedPicture(prompt=world.caption(scene, rng), asked=asked))
    return tuple(found)


def paint_all(
    painter: Painter, prompts: Sequence[str], *, first_seed: int = 0, batch: int = 25, steps: int = 16
) -> list[Image.Image]:
    """One native-size picture per prompt, seeds counting up from `first_seed`."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        seeds = range(first_seed + start, first_seed + start + len(some))
        pictures += painter.paint(some, list(seeds), steps=steps)
    return pictures


def share_as_asked(judge: Judge, pictures: Sequence[Image.Image], asked: Sequence[AskedPicture]) -> float:
    """Share of the pictures that show every label asked for."""
    hits = [seen.issuperset(a.asked) for seen, a in zip(judge.labels(pictures), asked, strict=True)]
    return sum(hits) / max(1, len(hits))
