"""Rank rules against their definitions, written out with loops; the spectrum and the cut against a full SVD."""

import math

import pytest
import torch

from lora_atelier.core.errors import InputError
from lora_atelier.merger.lora.factors import Factors, difference_norm, inner_product
from lora_atelier.merger.lora.ranks import RankParams, choose_ranks
from lora_atelier.merger.lora.spectrum import Spectrum, cut, decompose_randomly, spectrum_of

VALUES = [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]


def spectrum(values, shape=(10, 20)):
    values = torch.tensor(values, dtype=torch.float64)
    return Spectrum(values=values, energy=float(values.square().sum()), shape=shape)


def rank_of(values=tuple(VALUES), *, spatial=False, **params):
    return choose_ranks([spectrum(list(values))], [spatial], RankParams(**params))[0]


def naive(values, reached):
    """The fewest values for which `reached` holds."""
    return next(k for k in range(1, len(values) + 1) if reached(values[:k]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.507936, 0.75, 0.9, 0.99, 1.0])
def test_shares_take_the_fewest_that_reach_them(share):
    total, squares = sum(VALUES), sum(v * v for v in VALUES)
    assert rank_of(rule="sv_cumulative", value=share, rank=0) == naive(VALUES, lambda k: sum(k) >= share * total - 1e-9)
    assert rank_of(rule="energy", value=share, rank=0) == naive(
        VALUES, lambda k: sum(v * v for v in k) >= share * squares - 1e-9
    )
    assert rank_of(rule="sv_fro", value=share, rank=0) == naive(
        VALUES, lambda k: math.sqrt(sum(v * v for v in k) / squares) >= share - 1e-9
    )


def test_a_share_that_is_met_exactly_takes_no_more():
    assert rank_of([3.0, 1.0, 1.0, 1.0], rule="sv_cumulative", value=0.5, rank=0) == 1
    assert rank_of([1.0, 1.0, 1.0, 1.0], rule="energy", value=0.5, rank=0) == 2
    assert rank_of([1.0, 1.0, 1.0, 1.0], rule="sv_fro", value=0.5, rank=0) == 1


def test_rules_by_single_values():
    assert rank_of(rule="sv_ratio", value=5.0, rank=0) == 3  # above 1.6
    assert rank_of(rule="sv_threshold", value=0.75, rank=0) == 4
    assert rank_of(rule="sv_threshold", value=100.0, rank=0) == 1
    assert rank_of(rule="exact", rank=0) == 6
    assert rank_of([10.0, 9.0, 8.0, 0.3, 0.2, 0.1], rule="sv_knee", rank=0) == 4
    assert rank_of(rule="fixed", rank=4) == 4
    assert rank_of(rule="fixed", rank=40) == 6
    assert rank_of([], rule="fixed", rank=4) == 0


def test_limits():
    assert rank_of(rule="exact", rank=4) == 4
    assert rank_of(rule="energy", value=1.0, rank=2) == 2
    assert rank_of(rule="fixed", rank=4, conv_rank=2, spatial=True) == 2
    assert rank_of(rule="fixed", rank=4, conv_rank=2) == 4
    assert rank_of(rule="fixed", rank=4, spatial=True) == 4


def test_a_common_budget_is_the_best_choice_of_all():
    spectra = [spectrum([5.0, 1.0, 0.5]), spectrum([3.0, 2.9, 0.1]), spectrum([0.0])]
    spectra[2] = spectrum([])
    total = sum(s.energy for s in spectra)
    for share in (0.5, 0.9, 0.97, 1.0):
        ranks = choose_ranks(spectra, [False] * 3, RankParams(rule="budget", value=share, rank=0))

        def kept(ranks):
            return sum(float(s.values[:r].square().sum()) for s, r in zip(spectra, ranks, strict=True))

        assert kept(ranks) >= share * total - 1e-9
        cheaper = [(a, b, 0) for a in range(4) for b in range(4) if a + b < sum(ranks)]
        assert all(kept(other) < share * total for other in cheaper)


def test_a_budget_prefers_what_costs_less():
    spectra = [spectrum([1.0], shape=(1000, 1000)), spectrum([0.9], shape=(10, 10))]
    assert choose_ranks(spectra, [False] * 2, RankParams(rule="budget", value=0.4, rank=0)) == [0, 1]


def test_a_size_is_kept_to():
    spectra = [spectrum(VALUES, shape=(1000, 1000)), spectrum(VALUES, shape=(500, 500))]
    params = RankParams(rule="size", value=0.02, rank=0)
    ranks = choose_ranks(spectra, [False] * 2, params, bytes_per_number=2)
    numbers = sum(rank * s.numbers_per_rank for rank, s in zip(ranks, spectra, strict=True))
    assert 0.02 * 2**20 - 2 * 2000 < 2 * numbers <= 0.02 * 2**20
    with pytest.raises(InputError, match="cannot hold one rank"):
        choose_ranks(spectra, [False] * 2, RankParams(rule="size", value=0.0001, rank=0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank is 0"), ({"rule": "energy", "value": 1.5}, "share above 0"),
        ({"rule": "budget", "value": 0.0}, "share"), ({"rule": "sv_ratio", "value": 0.5}, "1 or more"),
        ({"rule": "size", "value": 0.0}, "above 0"), ({"rule": "best"}, "unknown value of rule"),
        ({"rank": -1}, "rank is -1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(given, said):
    with pytest.raises(InputError, match=said):
        RankParams(**given)


def factors(rows=40, columns=56, rank=8, seed=0):
    torch.manual_seed(seed)
    return Factors(up=torch.randn(rows, rank), down=torch.randn(rank, columns), shape=(rows, columns))


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
@pytest.mark.parametrize("size", [(40, 56), (56, 40), (6, 90), (90, 6)])
def test_the_cut_of_a_product_is_that_of_a_full_svd(rank, size):
    change = factors(*size)
    left, values, right = torch.linalg.svd(change.matrix().double(), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    got, found = cut(change, rank), spectrum_of(change)
    assert got.rank == min(rank, 8, *size)
    assert torch.linalg.vector_norm(got.matrix() - best) <= 1e-5 * torch.linalg.vector_norm(best)
    assert torch.allclose(found.values, values[: found.values.numel()], rtol=1e-5)
    assert found.energy == pytest.approx(float(values.square().sum()), rel=1e-6)
    assert found.error(rank) == pytest.approx(
        math.sqrt(float(values[rank:].square().sum() / values.square().sum())), abs=1e-5
    )
    assert torch.linalg.vector_norm(got.up) == pytest.approx(float(torch.linalg.vector_norm(got.down)), rel=1e-4)


@pytest.mark.parametrize("size", [(40, 56), (56, 40)])
def test_the_cut_of_a_matrix(size):
    torch.manual_seed(1)
    matrix = torch.randn(*size)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    best = (left[:, :5] * values[:5]) @ right[:5]
    assert torch.linalg.vector_norm(cut(matrix, 5).matrix() - best) <= 1e-6 * torch.linalg.vector_norm(best)
    assert torch.allclose(spectrum_of(matrix).values, values)
    assert cut(torch.zeros(4, 6), 2).rank == 0
    assert spectrum_of(torch.zeros(4, 6)).values.numel() == 0


@pytest.mark.parametrize("size", [(120, 200), (200, 120)])
def test_the_random_cut_states_its_own_error_exactly(size):
    torch.manual_seed(2)
    matrix = torch.randn(*size) + 5 * torch.randn(size[0], 6) @ torch.randn(6, size[1])
    taken = decompose_randomly(matrix, 10, seed=3)
    got, found = taken.cut(10), taken.spectrum
    error = float(torch.linalg.vector_norm(matrix - got.matrix()) / torch.linalg.vector_norm(matrix))
    assert found.error(10) == pytest.approx(error, rel=1e-4)
    values = torch.linalg.svdvals(matrix.double())
    best = math.sqrt(float(values[10:].square().sum() / values.square().sum()))
    assert best <= error <= 1.005 * best
    assert torch.equal(got.up, decompose_randomly(matrix, 10, seed=3).cut(10).up)


def test_products_are_compared_without_being_built():
    one, other = factors(seed=1), factors(rank=5, seed=2)
    assert inner_product(one, other) == pytest.approx(float((one.matrix() * other.matrix()).sum()), rel=1e-5)
    assert difference_norm(one, other) == pytest.approx(float(torch.linalg.vector_norm(one.matrix() - other.matrix())))
    assert difference_norm(one, one) <= 1e-5 * math.sqrt(one.squared_norm())
