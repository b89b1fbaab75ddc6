"""Singular values of a change, and its best approximation of a rank.

A product up @ down of r columns has the singular values of an r x r core (QR of both factors); nothing of the
weight's size is built or decomposed. Matrices are decomposed by the eigenvalues of their smaller Gram matrix in fp64,
or, where a stated error is enough, by random projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import Change, Factors

ROUNDING = 1e-6
"""Singular values below this share of the largest are what fp32 left of zeros."""

OVERSAMPLING = 16
"""Columns of a random projection beyond the wanted rank."""
POWER_ITERATIONS = 3


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What is known of a change before it is cut.

    Attributes:
        values: singular values, fp64, falling; those that are rounding are left out.
        energy: the squared Frobenius norm of the whole change.
        shape: [out, in * kernel].
        is_whole: whether `values` are all there are; a random projection knows the largest only.
    """

    values: Tensor
    energy: float
    shape: tuple[int, int]
    is_whole: bool = True

    @property
    def numbers_per_rank(self) -> int:
        """Numbers that a file stores for one rank."""
        return self.shape[0] + self.shape[1]

    def lost(self, rank: int) -> float:
        """The energy that a cut to this rank takes."""
        return max(0.0, self.energy - float(self.values[:rank].square().sum()))

    def error(self, rank: int) -> float:
        """||change - cut|| / ||change||, Frobenius norms."""
        return math.sqrt(self.lost(rank) / self.energy) if self.energy > 0.0 else 0.0


def spectrum_of(change: Change) -> Spectrum:
    """All singular values of a change, of its own core where it is thin."""
    if isinstance(change, Factors) and change.rank < min(change.up.shape[0], change.down.shape[1]):
        values = torch.linalg.svdvals(_core(change))
        shape = (change.up.shape[0], change.down.shape[1])
        return Spectrum(values=_kept(values), energy=float(values.square().sum()), shape=shape)
    matrix = change.matrix() if isinstance(change, Factors) else change
    wide = _wide(matrix).double()
    values = torch.linalg.eigvalsh(wide @ wide.t()).clamp_min(0.0).flip(0).sqrt()
    return Spectrum(values=_kept(values), energy=float(wide.square().sum()), shape=(matrix.shape[0], matrix.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Decomposed:
    """A change taken apart: its spectrum, and its cut to any rank.

    Attributes:
        spectrum: of the change.
        cut: the nearest change of at most a rank, its two factors of equal size.
    """

    spectrum: Spectrum
    cut: Callable[[int], Factors]


def cut(change: Change, rank: int, *, shape: tuple[int, ...] | None = None) -> Factors:
    """The nearest change of at most this rank; see `decompose`."""
    return decompose(change, shape=shape).cut(rank)


def decompose(change: Change, *, shape: tuple[int, ...] | None = None) -> Decomposed:
    """Takes a change apart, exactly.

    Args:
        change: thin or a matrix.
        shape: of the weight that a matrix changes, where it is more than its two sizes.

    Source: Eckart and Young 1936; for products, Q1 R1 (Q2 R2)' = Q1 (R1 R2') Q2' and the SVD of the small core.
    """
    if isinstance(change, Factors):
        if change.rank < min(change.up.shape[0], change.down.shape[1]):
            return _decompose_product(change)
        return _decompose_matrix(change.matrix(), change.shape)
    return _decompose_matrix(change, shape or (change.shape[0], change.shape[1]))


def _decompose_product(change: Factors) -> Decomposed:
    q, r = torch.linalg.qr(change.down.t())
    core = torch.linalg.qr(change.up, mode="r")[1].double() @ r.double().t()
    _, values, right = torch.linalg.svd(core)
    spectrum = Spectrum(
        values=_kept(values), energy=float(values.square().sum()), shape=(change.up.shape[0], change.down.shape[1])
    )

    def cut_to(rank: int) -> Factors:
        kept = min(rank, spectrum.values.numel())
        roots = values[:kept].sqrt()
        up = change.up @ (r.t() @ (right[:kept].t() / roots).float())
        down = (right[:kept] * roots[:, None]).float() @ q.t()
        return Factors(up=up, down=down, shape=change.shape)

    return Decomposed(spectrum=spectrum, cut=cut_to)


def _decompose_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Decomposed:
    """By the eigenvectors of the smaller Gram matrix; the other side is their product with the matrix."""
    wide = _wide(matrix).double()
    squares, vectors = torch.linalg.eigh(wide @ wide.t())
    values = squares.clamp_min(0.0).flip(0).sqrt()
    spectrum = Spectrum(
        values=_kept(values), energy=float(wide.square().sum()), shape=(matrix.shape[0], matrix.shape[1])
    )

    def cut_to(rank: int) -> Factors:
        kept = min(rank, spectrum.values.numel())
        left, roots = vectors.flip(1)[:, :kept], values[:kept].sqrt()
        return _placed(matrix, (left * roots).float(), ((left / roots).t() @ wide).float(), shape)

    return Decomposed(spectrum=spectrum, cut=cut_to)


def decompose_randomly(matrix: Tensor, rank: int, *, seed: int, shape: tuple[int, ...] | None = None) -> Decomposed:
    """Takes the largest singular values of a matrix apart, nearly the best, with an exact error of their own.

    The range is found by a random projection with power iterations; a cut is the best one within that range, so that
    its error is exactly ||matrix||^2 - the sum of its squared singular values.

    Args:
        matrix: [out, in * kernel] fp32.
        rank: the most that will be asked for.
        seed: of the projection.
        shape: of the weight, where it is more than the matrix' two sizes.

    Source: Halko, Martinsson, Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1.
    """
    wide = _wide(matrix)
    columns = min(rank + OVERSAMPLING, wide.shape[0])
    generator = torch.Generator().manual_seed(seed)
    sample = wide @ torch.randn(wide.shape[1], columns, generator=generator)
    for _ in range(POWER_ITERATIONS):
        sample = wide @ (wide.t() @ torch.linalg.qr(sample)[0])
    basis = torch.linalg.qr(sample)[0]
    q, r = torch.linalg.qr((basis.t() @ wide).t())
    left, values, right = torch.linalg.svd(r.t().double())
    spectrum = Spectrum(
        values=_kept(values), energy=float(wide.double().square().sum()), shape=(matrix.shape[0], matrix.shape[1]),
        is_whole=columns == wide.shape[0],
    )  # fmt: skip

    def cut_to(rank: int) -> Factors:
        kept = min(rank, spectrum.values.numel())
        roots = values[:kept].sqrt()
        up = basis @ (left[:, :kept] * roots).float()
        down = (right[:kept] * roots[:, None]).float() @ q.t()
        return _placed(matrix, up, down, shape or (matrix.shape[0], matrix.shape[1]))

    return Decomposed(spectrum=spectrum, cut=cut_to)


def _placed(matrix: Tensor, up: Tensor, down: Tensor, shape: tuple[int, ...]) -> Factors:
    """The factors of a matrix out of those of its wide form."""
    if matrix.shape[0] > matrix.shape[1]:
        up, down = down.t(), up.t()
    return Factors(up=up.contiguous(), down=down.contiguous(), shape=shape)


def _core(change: Factors) -> Tensor:
    left: Tensor = torch.linalg.qr(change.up, mode="r")[1].double()
    right: Tensor = torch.linalg.qr(change.down.t(), mode="r")[1].double()
    return left @ right.t()


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()


def _kept(values: Tensor) -> Tensor:
    """The singular values that are not rounding."""
    values = values.double()
    return values[values > ROUNDING * values[0]] if values.numel() and float(values[0]) > 0.0 else values[:0]
