"""How many ranks each module keeps: a fixed number, a rule on its own singular values, or one budget over all."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...core.errors import InputError
from ...core.params import Params, param
from .spectrum import Spectrum

SHARE_RULES = ("sv_fro", "sv_cumulative", "energy", "budget")
RULES = ("fixed", "sv_ratio", "sv_fro", "sv_cumulative", "sv_knee", "sv_threshold", "energy", "budget", "size", "exact")
_WHOLE_RULES = ("sv_cumulative", "sv_knee", "exact")
_TOLERANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class RankParams(Params):
    """How many ranks are kept."""

    rule: str = param(
        "fixed",
        doc="How many ranks a module keeps. fixed: 'rank' of them. By its own singular values: sv_ratio (those above "
        "the largest / value), sv_fro (until this share of the Frobenius norm), energy (of its square), sv_cumulative "
        "(of the sum, LyCORIS' quantile), sv_threshold (those above value), sv_knee (up to the elbow). Over all "
        "modules together: budget (this share of the whole energy with the fewest numbers), size (a file of this many "
        "MiB with the most energy). exact: all there are, nothing is lost.",
        choices=RULES,
    )
    rank: int = param(
        16,
        doc="The rank for 'fixed'; for the other rules the most a module may have, 0 for no limit. A module never gets "
        "more ranks than its change has.",
        minimum=0,
        maximum=4096,
        step=1,
    )
    value: float = param(
        0.9,
        doc="The rule's number: a share from 0 to 1 for sv_fro, energy, sv_cumulative and budget, a ratio above 1 for "
        "sv_ratio, a singular value for sv_threshold, MiB for size. Not used by fixed, sv_knee and exact.",
        minimum=0.0,
        maximum=1e9,
        step=0.05,
    )
    conv_rank: int = param(0, doc="As 'rank', for 3x3 convolutions; 0 takes the same.", minimum=0, maximum=4096, step=1)

    def __post_init__(self) -> None:
        """Checks that the number fits the rule."""
        super().__post_init__()
        if self.rule == "fixed" and self.rank == 0:
            raise InputError("rank is 0 with the rule 'fixed': give a rank from 1, or choose another rule.")
        if self.rule in SHARE_RULES and not 0.0 < self.value <= 1.0:
            raise InputError(f"value is {self.value:g} with the rule '{self.rule}': give a share above 0, up to 1.")
        if self.rule == "sv_ratio" and self.value < 1.0:
            raise InputError(f"value is {self.value:g} with the rule 'sv_ratio': give 1 or more, such as 20.")
        if self.rule in ("sv_threshold", "size") and self.value <= 0.0:
            raise InputError(f"value is 0 with the rule '{self.rule}': give a number above 0.")

    def limit(self, *, spatial: bool) -> int | None:
        """The most ranks a module may have; None without a limit."""
        rank = self.conv_rank if spatial and self.conv_rank else self.rank
        return rank or None

    @property
    def needs_all_values(self) -> bool:
        """Whether the rule asks for every singular value, so that a random projection is not enough."""
        return self.rule in _WHOLE_RULES

    @property
    def is_common(self) -> bool:
        """Whether the ranks of one module depend on all others."""
        return self.rule in ("budget", "size")


def choose_ranks(
    spectra: Sequence[Spectrum], spatial: Sequence[bool], params: RankParams, *, bytes_per_number: int = 2
) -> list[int]:
    """The rank of every module; 0 for one that changes nothing.

    Args:
        spectra: of the modules.
        spatial: which of them are 3x3 convolutions.
        params: the rule.
        bytes_per_number: of the file that will be written, for the rule 'size'.
    """
    limits = [
        min(spectrum.values.numel(), params.limit(spatial=conv) or spectrum.values.numel())
        for spectrum, conv in zip(spectra, spatial, strict=True)
    ]
    if params.rule == "budget":
        total = sum(spectrum.energy for spectrum in spectra)
        return _greedy(spectra, limits, enough_energy=params.value * total)
    if params.rule == "size":
        return _greedy(spectra, limits, most_numbers=int(params.value * 2**20 / bytes_per_number))
    rule = _RULES[params.rule]
    return [
        min(limit, max(1, rule(spectrum, params.value))) if limit else 0
        for spectrum, limit in zip(spectra, limits, strict=True)
    ]


def _all(spectrum: Spectrum, value: float) -> int:
    return spectrum.values.numel()


def _ratio(spectrum: Spectrum, value: float) -> int:
    """Source: kohya's networks/resize_lora.py, sv_ratio; the count itself, where that script takes one more."""
    return int((spectrum.values > spectrum.values[0] / value).sum())


def _threshold(spectrum: Spectrum, value: float) -> int:
    """Source: LyCORIS' extract_locon, mode threshold."""
    return int((spectrum.values > value).sum())


def _cumulative(spectrum: Spectrum, value: float) -> int:
    """The fewest whose sum reaches the share. Source: kohya's sv_cumulative, without its one too many."""
    return _reached(spectrum.values, value * float(spectrum.values.sum()))


def _energy(spectrum: Spectrum, value: float) -> int:
    """The fewest whose squares reach the share of the change's energy."""
    return _reached(spectrum.values.square(), value * spectrum.energy)


def _fro(spectrum: Spectrum, value: float) -> int:
    """The fewest whose norm reaches the share of the change's. Source: kohya's sv_fro, without its one too many."""
    return _energy(spectrum, value * value)


def _reached(terms: torch.Tensor, wanted: float) -> int:
    sums = torch.cumsum(terms, dim=0)
    return min(terms.numel(), int((sums < wanted * (1.0 - _TOLERANCE)).sum()) + 1)


def _knee(spectrum: Spectrum, value: float) -> int:
    """Up to the point furthest below the line from the first to the last singular value.

    Source: Satopaa et al. 2011 (Kneedle), for a falling convex curve, without smoothing.
    """
    values = spectrum.values
    count = values.numel()
    if count < 3:
        return count
    steps = torch.linspace(0.0, 1.0, count, dtype=torch.float64)
    heights = (values - values[-1]) / (values[0] - values[-1]).clamp_min(1e-300)
    return int(torch.argmax(1.0 - steps - heights)) + 1


_RULES: Mapping[str, Callable[[Spectrum, float], int]] = {
    "fixed": _all,
    "exact": _all,
    "sv_ratio": _ratio,
    "sv_threshold": _threshold,
    "sv_cumulative": _cumulative,
    "sv_fro": _fro,
    "energy": _energy,
    "sv_knee": _knee,
}


def _greedy(
    spectra: Sequence[Spectrum],
    limits: Sequence[int],
    *,
    enough_energy: float | None = None,
    most_numbers: int | None = None,
) -> list[int]:
    """The singular values of all modules in one row, by energy per stored number; taken until it is enough.

    Within a module they fall, so that taking the best next one is the best choice for every budget but its last value.
    """
    ranks = [0] * len(spectra)
    heap = [_entry(index, spectrum, 0) for index, spectrum in enumerate(spectra) if limits[index]]
    heapq.heapify(heap)
    energy, numbers = 0.0, 0
    while heap and (enough_energy is None or energy < enough_energy * (1.0 - _TOLERANCE)):
        _, index = heapq.heappop(heap)
        spectrum = spectra[index]
        if most_numbers is not None and numbers + spectrum.numbers_per_rank > most_numbers:
            continue
        energy += float(spectrum.values[ranks[index]]) ** 2
        numbers += spectrum.numbers_per_rank
        ranks[index] += 1
        if ranks[index] < limits[index]:
            heapq.heappush(heap, _entry(index, spectrum, ranks[index]))
    if not any(ranks) and most_numbers is not None and any(limits):
        raise InputError(
            f"a file of this size cannot hold one rank of any module; give at least "
            f"{min(s.numbers_per_rank for s in spectra) * 4 / 2**20:.2f} MiB."
        )
    return ranks


def _entry(index: int, spectrum: Spectrum, rank: int) -> tuple[float, int]:
    return (-(float(spectrum.values[rank]) ** 2) / spectrum.numbers_per_rank, index)
