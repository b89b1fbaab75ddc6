"""A LoRA out of two checkpoints: the difference of every layer, cut to few ranks, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import FormatError, InputError
from ...core.params import Params, param
from ...core.progress import Progress
from ...core.stream import TensorReader
from ...families._spec import KOHYA, Family, Kind, Place, Variant
from ...families._targets import group_of
from .cutting import Layer, cut_layers
from .drafts import Draft, Made
from .factors import Change
from .metadata import family_metadata, network_values
from .ranks import RankParams

LINEAR, CONVOLUTIONS, ALL = "linear (LoRA)", "linear and convolutions (LoCon)", "all"
_GROUPS: dict[str, tuple[str, ...]] = {
    LINEAR: ("self-attention", "cross-attention", "feed-forward", "projections", "text-attention", "text-mlp"),
}
_GROUPS[CONVOLUTIONS] = (*_GROUPS[LINEAR], "resnets", "samplers")
_GROUPS[ALL] = (*_GROUPS[CONVOLUTIONS], "time", "ends")
WHERE_DIFFERENT, NEVER = "where they differ", "never"


@dataclass(frozen=True, kw_only=True)
class ExtractParams(Params):
    """What of the difference is taken."""

    layers: str = param(
        CONVOLUTIONS,
        doc="Which layers: those of the transformers (a LoRA), the resnets' as well (a LoCon), or also time embedding, "
        "first and last convolution.",
        choices=tuple(_GROUPS),
    )
    text_encoders: str = param(
        WHERE_DIFFERENT,
        doc="Whether the text encoders' layers are taken; those that are the same in both files never are.",
        choices=(WHERE_DIFFERENT, NEVER),
    )
    norms_and_biases: bool = param(
        False, doc="Also take the differences of norms and biases as they are (w_norm, b_norm, diff_b); few bytes."
    )
    exact: bool = param(
        False,
        doc="Off: random projections, ten times as quick, with an error that is stated and hardly above the least. On: "
        "by all eigenvalues of every layer. Rules that ask for all singular values are always exact.",
    )
    seed: int = param(0, doc="Of the random projections.", minimum=0, maximum=2**53)
    min_change: float = param(
        0.0,
        doc="Layers whose difference is a smaller part of the weight than this are left out; 0 leaves out those alone "
        "that differ by no more than the rounding of the coarser file.",
        minimum=0.0,
        maximum=1.0,
        step=0.001,
        advanced=True,
    )


class CheckpointPair:
    """Two checkpoints of one family, open for reading by many threads."""

    def __init__(self, base: Path, tuned: Path, family: Family) -> None:
        """Opens both.

        Raises:
            InputError: they are the same file.
            FormatError: one of them is damaged.
            StorageError: one of them cannot be read.
        """
        if base.resolve() == tuned.resolve():
            raise InputError(f"both checkpoints are {base.name}: give the original and the one that was made of it.")
        self.family = family
        self.base, self.tuned = TensorReader(base), TensorReader(tuned)

    def __enter__(self) -> CheckpointPair:
        """Gives itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes both files."""
        self.base.close()
        self.tuned.close()

    def places(self) -> list[Place]:
        """The layers that both have."""
        others = set(self.family.places_of_file(self.tuned.header))
        return [place for place in self.family.places_of_file(self.base.header) if place in others]

    def shape(self, place: Place, parameter: str = "weight") -> tuple[int, ...]:
        """Of a weight; empty where the base lacks it.

        Raises:
            FormatError: the two files differ in it.
        """
        shapes = []
        for reader in (self.base, self.tuned):
            part = self.family.place_in_file(place, reader.header, parameter)
            whole = () if part is None else reader.header.shapes[part.key]
            shapes.append(whole if part is None or part.rows is None else (part.rows[1] - part.rows[0], *whole[1:]))
        if shapes[0] != shapes[1] and all(shapes):
            raise FormatError(
                f"{self.tuned.path.name} has a weight of shape {list(shapes[1])} at {place.path}, "
                f"{self.base.path.name} one of {list(shapes[0])}: they are of unlike kinds (such as inpainting)."
            )
        return shapes[0] if all(shapes) else ()

    def difference(self, place: Place, parameter: str = "weight") -> Tensor | None:
        """Tuned - base in fp32; None where they are equal in the coarser of their number formats.

        Raises:
            FormatError: the difference is not finite.
        """
        values = []
        for reader in (self.base, self.tuned):
            part = self.family.place_in_file(place, reader.header, parameter)
            if part is None:
                return None
            values.append(part.of(reader.tensor(part.key)))
        base, tuned = values
        coarse = min((base.dtype, tuned.dtype), key=_digits)
        if torch.equal(base.to(coarse), tuned.to(coarse)):
            return None
        found = tuned.float() - base.float()
        if not bool(torch.isfinite(found).all()):
            raise FormatError(
                f"the difference of {self.tuned.path.name} and {self.base.path.name} is not finite at {place.path}: "
                "one of the files holds NaN or infinite numbers."
            )
        return found

    def relative_size(self, place: Place, difference: Tensor) -> float:
        """||difference|| / ||base weight||."""
        part = self.family.place_in_file(place, self.base.header)
        if part is None:
            return 0.0
        length = torch.linalg.vector_norm(part.of(self.base.tensor(part.key)).float())
        return float(torch.linalg.vector_norm(difference) / length.clamp_min(1e-30))


def _digits(dtype: torch.dtype) -> float:
    """Significant digits of a number format, for telling the coarser."""
    return -torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def extract(
    pair: CheckpointPair,
    params: ExtractParams,
    ranks: RankParams,
    *,
    bytes_per_number: int = 2,
    variant: Variant | None = None,
    progress: Progress | None = None,
) -> Draft:
    """The difference of two checkpoints as a LoRA.

    Args:
        pair: the original and the one made of it, open.
        params: what is taken.
        ranks: how many ranks.
        bytes_per_number: of the file that will be written, for the rule 'size'.
        variant: of the tuned checkpoint, for the metadata.
        progress: told, and may cancel.

    Raises:
        FormatError: the files do not fit each other, are damaged, or do not differ.
    """
    layers, norms = chosen_places(pair, params)
    found = [_layer(pair, place, params) for place in layers]
    cuts = cut_layers(
        found, ranks, seed=None if params.exact else params.seed, bytes_per_number=bytes_per_number, progress=progress,
        text=f"extracting from {pair.tuned.path.name}",
    )  # fmt: skip
    made = [cut for cut in cuts if cut is not None]
    made += [norm for norm in (_norm(pair, place) for place in norms) if norm is not None]
    if not made:
        raise FormatError(
            f"{pair.tuned.path.name} and {pair.base.path.name} do not differ in any of the {len(layers)} layers that "
            "were looked at; nothing was extracted."
        )
    return Draft(
        family=pair.family,
        modules=tuple(sorted(made, key=lambda one: (one.place.part == "unet",))),
        metadata={
            **family_metadata(pair.family, variant),
            **network_values(made),
            "ss_sd_model_name": pair.base.path.name,
        },
        notes=_notes(pair, params, len(layers), made),
    )


def chosen_places(pair: CheckpointPair, params: ExtractParams) -> tuple[list[Place], list[Place]]:
    """The layers with a matrix that are taken, and the norms.

    Raises:
        FormatError: a layer has unlike shapes in the two files.
    """
    matrices: list[Place] = []
    norms: list[Place] = []
    for place in pair.places():
        if place.part != "unet" and params.text_encoders == NEVER:
            continue
        shape = pair.shape(place)
        group = group_of(place.path, _kind(shape))
        if group == "norms":  # loaders know no name for those of text encoders
            norms += [place] * (params.norms_and_biases and place.part == "unet")
        elif group in _GROUPS[params.layers]:
            matrices.append(place)
    return matrices, norms


def _kind(shape: Sequence[int]) -> Kind:
    if len(shape) == 1:
        return "norm"
    return "linear" if len(shape) == 2 else "conv1x1" if tuple(shape[2:]) == (1, 1) else "conv3x3"


def _layer(pair: CheckpointPair, place: Place, params: ExtractParams) -> Layer:
    shape = pair.shape(place)

    def change() -> tuple[Change, tuple[int, ...]]:
        found = pair.difference(place)
        if found is None or (params.min_change and pair.relative_size(place, found) < params.min_change):
            found = torch.zeros(shape)
        return found.reshape(shape[0], -1), shape

    bias = pair.difference(place, "bias") if params.norms_and_biases else None
    return Layer(
        place=place,
        block=pair.family.block_of_stem(pair.family.stem_of_place(place, KOHYA)),
        change=change,
        is_spatial=any(size > 1 for size in shape[2:]),
        parts={} if bias is None else {"diff_b": bias},
    )


def _norm(pair: CheckpointPair, place: Place) -> Made | None:
    found = {
        name: value
        for name, value in (("w_norm", pair.difference(place)), ("b_norm", pair.difference(place, "bias")))
        if value is not None
    }
    if not found:
        return None
    if "w_norm" not in found:  # readers know a norm by its weight
        found = {"w_norm": torch.zeros(pair.shape(place)), **found}
    block = pair.family.block_of_stem(pair.family.stem_of_place(place, KOHYA))
    return Made(place=place, block=block, parts=found)


def _notes(pair: CheckpointPair, params: ExtractParams, looked_at: int, made: Sequence[Made]) -> tuple[str, ...]:
    cut = sum(one.factors is not None or "diff" in one.parts for one in made)
    notes = [f"{cut} of {looked_at} layers differ."]
    texts = any(one.place.part != "unet" for one in made)
    if params.text_encoders == WHERE_DIFFERENT:
        notes.append("The text encoders differ and are in it." if texts else "The text encoders are the same in both.")
    if not params.exact:
        notes.append("Cut by random projections; the errors are those of the cut itself, measured.")
    return tuple(notes)
