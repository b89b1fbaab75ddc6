"""How many ranks the difference of two checkpoints fills: what a LoRA of it could hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.errors import FormatError
from ...core.progress import Progress, SilentProgress
from ...families._spec import KOHYA, Place
from .extract import CheckpointPair, ExtractParams, chosen_places
from .spectrum import spectrum_of

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class LayerSpectrum:
    """One layer's difference.

    Attributes:
        name: kohya's stem.
        block: of block weights.
        size: the most ranks it could have.
        relative: ||difference|| / ||weight||.
        shares: share of the energy in the first ranks, for each of `RANKS`.
        energy: squared norm.
    """

    name: str
    block: str
    size: int
    relative: float
    shares: tuple[float, ...]
    energy: float


def differences(
    pair: CheckpointPair, params: ExtractParams, *, max_layers: int = 0, progress: Progress | None = None
) -> list[LayerSpectrum]:
    """The singular values of every layer's difference, or of an even choice of the layers.

    Args:
        pair: open.
        params: which layers.
        max_layers: how many are looked at; 0 for all.
        progress: told, and may cancel.

    Raises:
        FormatError: the files do not fit each other, are damaged, or do not differ.
    """
    progress = progress or SilentProgress()
    places, _ = chosen_places(pair, params)
    step = max(1, -(-len(places) // max_layers)) if max_layers else 1
    places = places[::step]
    found = []
    for number, place in enumerate(places):
        row = _of_layer(pair, place)
        found += [] if row is None else [row]
        progress.update(number + 1, len(places), f"differences of {pair.tuned.path.name}")
    if not found:
        raise FormatError(
            f"{pair.tuned.path.name} and {pair.base.path.name} do not differ in any of the {len(places)} layers looked "
            "at; there is no spectrum to draw."
        )
    return found


def _of_layer(pair: CheckpointPair, place: Place) -> LayerSpectrum | None:
    difference = pair.difference(place)
    if difference is None:
        return None
    spectrum = spectrum_of(difference.reshape(difference.shape[0], -1))
    sums = torch.cumsum(spectrum.values.square(), dim=0) / spectrum.energy
    name = pair.family.stem_of_place(place, KOHYA)
    return LayerSpectrum(
        name=name,
        block=pair.family.block_of_stem(name),
        size=min(spectrum.shape),
        relative=pair.relative_size(place, difference),
        shares=tuple(float(sums[min(rank, sums.numel()) - 1]) for rank in RANKS),
        energy=spectrum.energy,
    )


def mean_shares(rows: Sequence[LayerSpectrum]) -> list[float]:
    """Share of the whole energy that a LoRA of each of `RANKS` could hold."""
    total = sum(row.energy for row in rows)
    return [sum(row.shares[number] * row.energy for row in rows) / total for number in range(len(RANKS))]


def differences_report(rows: Sequence[LayerSpectrum], names: tuple[str, str]) -> str:
    """The spectra in lines for a person."""
    shares = mean_shares(rows)
    enough = next((rank for rank, share in zip(RANKS, shares, strict=True) if share >= 0.9), None)
    moved = sum(row.relative for row in rows) / len(rows)
    lines = [
        f"{names[1]} - {names[0]}: {len(rows)} layers differ, by {moved:.2%} of their weight's norm on average.",
        "Share of the energy in the first ranks:",
        *(f"  {rank:4} {share:7.2%}" for rank, share in zip(RANKS, shares, strict=True)),
        f"90 % of it fits in rank {enough}." if enough else f"Less than 90 % of it fits in rank {RANKS[-1]}.",
    ]
    return "\n".join(lines)


def differences_json(rows: Sequence[LayerSpectrum]) -> dict[str, Any]:
    """The spectra as plain values."""
    return {"ranks": list(RANKS), "shares": mean_shares(rows), "layers": [vars(row) for row in rows]}
