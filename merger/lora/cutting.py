"""Cutting the changes of many layers to ranks, in threads: what resizing, merging, extracting and converting share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...core.progress import Progress, SilentProgress
from ...core.seeds import derive
from ...core.stream import Stop, run_jobs
from ...families._spec import Place
from .drafts import Made
from .factors import Change, Factors, as_matrix, as_shape
from .ranks import RankParams, choose_ranks
from .spectrum import Decomposed, Spectrum, decompose, decompose_randomly, spectrum_of


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer whose change is to be cut.

    Attributes:
        place: the layer.
        block: of block weights.
        change: builds the change and the shape of the weight it is for; may be called twice, from any thread.
        is_spatial: whether it is a 3x3 convolution.
        scale: alpha / rank of the module that is to be made.
        rank_before: of the module it was made of.
        parts: tensors that go beside the cut as they are, such as a bias' difference.
    """

    place: Place
    block: str
    change: Callable[[], tuple[Change, tuple[int, ...]]]
    is_spatial: bool = False
    scale: float = 1.0
    rank_before: int | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)


def cut_layers(
    layers: Sequence[Layer],
    params: RankParams,
    *,
    seed: int | None = None,
    bytes_per_number: int = 2,
    progress: Progress | None = None,
    text: str = "",
) -> list[Made | None]:
    """The cut change of every layer, in order; None for one that changes nothing or gets no rank.

    A cut that would take more numbers than the change itself is written as the difference.

    Args:
        layers: what is cut.
        params: how many ranks.
        seed: takes matrices apart by random projections, where the rule does not need all their singular values; None
            takes them apart exactly.
        bytes_per_number: of the file that will be written, for the rule 'size'.
        progress: told, and may cancel.
        text: words beside the bar.
    """
    progress = progress or SilentProgress()
    work = _Work(params, None if params.needs_all_values else seed)
    numbers = range(len(layers))
    if params.is_common:
        spectra: list[Spectrum | None] = [None] * len(layers)

        def look(number: int, stop: Stop) -> None:
            spectra[number] = work.spectrum(layers[number])

        run_jobs(numbers, look, progress=progress, text=f"{text}: singular values")
        known = [spectrum for spectrum in spectra if spectrum is not None]
        spatial = [layer.is_spatial for layer in layers]
        ranks = choose_ranks(known, spatial, params, bytes_per_number=bytes_per_number)
    else:
        ranks = [-1] * len(layers)
    made: list[Made | None] = [None] * len(layers)

    def cut_one(number: int, stop: Stop) -> None:
        made[number] = work.cut(layers[number], ranks[number])

    run_jobs(numbers, cut_one, progress=progress, text=text)
    return made


class _Work:
    """One layer at a time; a common seed gives every layer its own numbers."""

    def __init__(self, params: RankParams, seed: int | None) -> None:
        self.params, self.seed = params, seed

    def spectrum(self, layer: Layer) -> Spectrum:
        change, shape = layer.change()
        if self._limit(layer, change) is None:
            return spectrum_of(change)
        return self._decomposed(layer, change, shape).spectrum

    def cut(self, layer: Layer, rank: int) -> Made | None:
        if rank == 0:
            return _only_parts(layer)
        change, shape = layer.change()
        taken = self._decomposed(layer, change, shape)
        if rank < 0:
            (rank,) = choose_ranks([taken.spectrum], [layer.is_spatial], self.params)
        if rank == 0:
            return _only_parts(layer)
        if rank * taken.spectrum.numbers_per_rank >= shape[0] * taken.spectrum.shape[1] and _reaches_all(taken, rank):
            return _whole(layer, change, shape, taken.spectrum)
        return Made(
            place=layer.place,
            block=layer.block,
            factors=taken.cut(rank),
            scale=layer.scale,
            parts=layer.parts,
            energy=taken.spectrum.energy,
            lost=taken.spectrum.lost(rank),
            rank_before=layer.rank_before,
        )

    def _decomposed(self, layer: Layer, change: Change, shape: tuple[int, ...]) -> Decomposed:
        limit = self._limit(layer, change)
        if limit is None:
            return decompose(change, shape=shape)
        seed = derive(self.seed or 0, layer.place.part, layer.place.path)
        return decompose_randomly(as_matrix(change), limit, seed=seed, shape=shape)

    def _limit(self, layer: Layer, change: Change) -> int | None:
        """The most ranks a random projection is asked for; None where the exact way is taken."""
        limit = self.params.limit(spatial=layer.is_spatial)
        if self.seed is None or limit is None or (isinstance(change, Factors) and change.rank <= 2 * limit):
            return None
        return limit if 3 * limit < min(as_shape(change)) else None


def _reaches_all(taken: Decomposed, rank: int) -> bool:
    return taken.spectrum.is_whole and rank >= taken.spectrum.values.numel()


def _whole(layer: Layer, change: Change, shape: tuple[int, ...], spectrum: Spectrum) -> Made:
    parts = {"diff": as_matrix(change).reshape(shape).contiguous(), **layer.parts}
    return Made(
        place=layer.place, block=layer.block, parts=parts, energy=spectrum.energy, rank_before=layer.rank_before
    )


def _only_parts(layer: Layer) -> Made | None:
    return Made(place=layer.place, block=layer.block, parts=layer.parts) if layer.parts else None
