"""Every merge method against its formula written out naively, and against sd-mecha where it has the method."""

import math

import numpy as np
import pytest
import torch

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.merger.methods._filters import gaussian_filter, median_filter
from lora_atelier.merger.methods._spec import DELTA, WEIGHT, KeyContext, get_method, methods

SHAPES = [(), (7,), (6, 5), (4, 3, 3, 3)]
WANTED = {
    "weighted_sum", "add_difference", "sum_twice", "triple_sum", "n_average", "slerp", "train_difference", "cosine_a",
    "cosine_b", "smooth_add", "tensor_slice", "ties", "dare", "della", "model_stock", "geometric_median",
    "perpendicular_add", "weights_clip", "difference", "add_delta",
}  # fmt: skip


def draw(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(count)]


def run(name, tensors, *, key="model.diffusion_model.out.2.weight", survey=None, seed=5, **params):
    method = get_method(name)
    before = [None if value is None else value.clone() for value in tensors]
    result = method.merge(tensors, method.params(**params), KeyContext(key=key, seed=seed, survey=survey))
    for value, old in zip(tensors, before, strict=True):
        assert value is None or torch.equal(value, old), "a method must not change what it is given"
    return result


def flat(tensor):
    return [float(value) for value in tensor.reshape(-1)]


def same(result, expected, shape):
    wanted = torch.tensor(expected, dtype=torch.float64).reshape(shape)
    torch.testing.assert_close(result.double(), wanted, rtol=2e-5, atol=2e-6)


def test_all_methods_are_there():
    assert set(methods()) >= WANTED
    with pytest.raises(UnknownNameError, match="did you mean 'weighted_sum'"):
        get_method("weightedsum")


NAIVE = {
    "weighted_sum": (2, {"alpha": 0.3}, lambda a, b: 0.7 * a + 0.3 * b),
    "add_difference": (3, {"alpha": 0.8}, lambda a, b, c: a + 0.8 * (b - c)),
    "difference": (2, {}, lambda a, b: a - b),
    "add_delta": (2, {"alpha": -0.5}, lambda a, d: a - 0.5 * d),
    "sum_twice": (3, {"alpha": 0.3, "beta": 0.6}, lambda a, b, c: 0.4 * (0.7 * a + 0.3 * b) + 0.6 * c),
    "triple_sum": (3, {"alpha": 0.3, "beta": 0.6}, lambda a, b, c: 0.1 * a + 0.3 * b + 0.6 * c),
    "n_average": (5, {}, lambda *values: sum(values) / 5),
    "train_difference": (
        3,
        {"alpha": 0.5},
        lambda a, b, c: a + 1.8 * 0.5 * math.copysign(abs(b - a) / (abs(b - c) + abs(b - a)), b - c) * abs(b - c),
    ),
    "weights_clip": (4, {}, lambda a, *bounds: min(max(a, min(bounds)), max(bounds))),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(NAIVE))
def test_elementwise_methods(name, shape):
    count, params, formula = NAIVE[name]
    tensors = draw(shape, count)
    expected = [formula(*values) for values in zip(*map(flat, tensors), strict=True)]
    same(run(name, tensors, **params), expected, shape)
    if not get_method(name).whole and shape:
        parts = [run(name, [value.reshape(-1)[i : i + 3] for value in tensors], **params) for i in range(0, 12, 3)]
        assert torch.allclose(torch.cat(parts), run(name, tensors, **params).reshape(-1)[:12], atol=1e-6)


def test_train_difference_where_all_are_equal():
    a = torch.tensor([1.0, 2.0])
    assert torch.equal(run("train_difference", [a, a.clone(), a.clone()]), a)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_slerp(shape):
    a, b = draw(shape, 2)
    fa, fb = flat(a), flat(b)
    la, lb = math.sqrt(sum(x * x for x in fa)), math.sqrt(sum(x * x for x in fb))
    angle = math.acos(sum(x * y for x, y in zip(fa, fb, strict=True)) / (la * lb))
    length = 0.7 * la + 0.3 * lb
    expected = [
        length * (math.sin(0.7 * angle) * x / la + math.sin(0.3 * angle) * y / lb) / math.sin(angle)
        for x, y in zip(fa, fb, strict=True)
    ]
    same(run("slerp", [a, b], alpha=0.3), expected, shape)
    torch.testing.assert_close(run("slerp", [a, a.clone()], alpha=0.3), a)
    zero = torch.zeros(shape)
    torch.testing.assert_close(run("slerp", [zero, b], alpha=0.3), 0.3 * b)


def cosine(x, y):
    return sum(p * q for p, q in zip(x, y, strict=True)) / (math.sqrt(sum(p * p for p in x) * sum(q * q for q in y)))


@pytest.mark.parametrize("name", ["cosine_a", "cosine_b"])
@pytest.mark.parametrize("survey", [None, (0.2, 0.9)])
def test_cosine(name, survey):
    a, b = draw((6, 5), 2, seed=3)
    columns = [cosine(flat(a[:, i]), flat(b[:, i])) for i in range(5)]
    if name == "cosine_a":
        unit_a = a / a.norm(dim=0)
        unit_b = b / b.norm(dim=0)
        whole = cosine(flat(unit_a), flat(unit_b))
    else:
        whole = cosine(flat(a), flat(b))
    k = [(column + whole) / 2 for column in columns]
    if survey is not None:
        k = [(value - survey[0]) / (survey[1] - survey[0]) for value in k]
    k = [min(1.0, max(0.0, value - 0.2)) for value in k]
    expected = [float(b[r, c]) * (1 - k[c]) + float(a[r, c]) * k[c] for r in range(6) for c in range(5)]
    same(run(name, [a, b], survey=survey, alpha=0.2), expected, (6, 5))
    vae = run(name, [a, b], survey=survey, key="first_stage_model.x.weight")
    assert torch.equal(vae, a)


def test_the_spread_of_cosine_cuts_the_tails():
    survey = get_method("cosine_a").survey
    seen = [torch.linspace(0, 1, 101, dtype=torch.float64), torch.tensor([5.0, -5.0], dtype=torch.float64)]
    least, greatest = survey.conclude(seen)
    values = np.sort(np.concatenate([part.numpy() for part in seen]))
    values = np.delete(values, np.where(values < np.percentile(values, 1, method="midpoint")))
    values = np.delete(values, np.where(values > np.percentile(values, 99, method="midpoint")))
    assert (least, greatest) == (values.min(), values.max())
    assert survey.conclude([]) is None
    a, b = draw((6, 5), 2)
    method = get_method("cosine_a")
    looked = survey.look([a, b], method.params(), KeyContext(key="x"))
    assert looked.tolist() == pytest.approx([cosine(flat(a[:, i]), flat(b[:, i])) for i in range(5)], abs=1e-5)


def naive_median(values):
    result = np.empty_like(values)
    padded = np.pad(values, 1, mode="symmetric")
    for place in np.ndindex(values.shape):
        window = padded[tuple(slice(i, i + 3) for i in place)]
        result[place] = np.sort(window.reshape(-1))[window.size // 2]
    return result


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_smooth_add(shape):
    a, b, c = draw(shape, 3)
    change = naive_median((b - c).numpy().astype(np.float64))
    for axis in range(change.ndim):
        moved = np.moveaxis(change, axis, 0)
        padded = np.pad(moved, [(4, 4)] + [(0, 0)] * (moved.ndim - 1), mode="symmetric")
        weights = [math.exp(-0.5 * offset**2) for offset in range(-4, 5)]
        moved = sum(w * padded[i : i + len(moved)] for i, w in enumerate(weights)) / sum(weights)
        change = np.moveaxis(moved, 0, axis)
    same(run("smooth_add", [a, b, c], alpha=0.7), (a.numpy() + 0.7 * change).reshape(-1).tolist(), shape)
    scalar = torch.tensor(2.0)
    assert float(run("smooth_add", [scalar, scalar + 1, scalar], alpha=1.0)) == pytest.approx(3.0)


def test_filters_are_those_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    value = torch.randn(5, 4, 3, 3)
    np.testing.assert_allclose(median_filter(value).numpy(), ndimage.median_filter(value.numpy(), size=3))
    smooth = ndimage.gaussian_filter(value.numpy(), sigma=1)
    np.testing.assert_allclose(gaussian_filter(value).numpy(), smooth, atol=1e-6)


@pytest.mark.parametrize(("width", "start"), [(0.5, 0.0), (0.3, 0.9), (1.0, 0.4), (0.25, 1.0)])
def test_tensor_slice(width, start):
    a, b = draw((10, 4), 2)
    chosen = {round((start % 1.0 + i * 0.1) * 10) % 10 for i in range(round(width * 10 + 1e-9))}
    result = run("tensor_slice", [a, b], alpha=width, beta=start)
    if width != 0.25:
        for row in range(10):
            assert torch.equal(result[row], b[row] if row in chosen else a[row]), row
    wide_a, wide_b = draw((3, 200), 2)
    cut = run("tensor_slice", [wide_a, wide_b], alpha=0.5, along="columns where there are more than 100")
    assert torch.equal(cut[:, :100], wide_b[:, :100])
    assert torch.equal(cut[:, 100:], wide_a[:, 100:])


def naive_ties(deltas, keep, vote):
    trimmed = []
    for delta in deltas:
        size = sorted(abs(x) for x in delta)
        least = size[max(int((1 - keep) * len(delta)), 1) - 1] if keep < 1 else 0.0
        trimmed.append([x if abs(x) >= least else 0.0 for x in delta])
    result = []
    for values in zip(*trimmed, strict=True):
        votes = sum(values) if vote == "sum" else sum((x > 0) - (x < 0) for x in values)
        agreeing = [x for x in values if x and x * votes > 0]
        result.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return result


@pytest.mark.parametrize("vote", ["sum", "count"])
@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_ties(vote, keep):
    base, *models = draw((6, 5), 4)
    changes = naive_ties([flat(model - base) for model in models], keep, vote)
    expected = [x + 0.7 * y for x, y in zip(flat(base), changes, strict=True)]
    same(run("ties", [base, *models], alpha=0.7, keep=keep, vote=vote), expected, (6, 5))
    deltas = run("ties", [None, *(model - base for model in models)], alpha=1.0, keep=keep, vote=vote)
    same(deltas, changes, (6, 5))


def test_dare():
    base, one, two = draw((40, 50), 3)
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(40, 50)
    for model in (one, two):
        mask = torch.rand(40, 50, generator=generator) >= 0.8
        total += mask * (model - base) / 0.2
    torch.testing.assert_close(run("dare", [base, one, two], drop=0.8), base + total / 2)
    torch.testing.assert_close(run("dare", [base, one, two], drop=0.0), (one + two) / 2)
    mean = sum(run("dare", [base, one, two], drop=0.5, seed=seed) for seed in range(200)) / 200
    assert float((mean - (one + two) / 2).abs().mean()) < 0.02


def test_della():
    base, one = draw((4, 25), 2)
    order = sorted(range(100), key=lambda i: -abs(flat(one - base)[i]))
    drop = [0.0] * 100
    for rank, place in enumerate(order):
        drop[place] = 0.6 + 0.4 * (rank / 99 - 0.5)
    random = torch.rand(4, 25, generator=torch.Generator().manual_seed(5)).reshape(-1).tolist()
    change = flat(one - base)
    expected = [
        x + (0.0 if r < d else c / (1 - d)) for x, c, d, r in zip(flat(base), change, drop, random, strict=True)
    ]
    same(run("della", [base, one], drop=0.6, spread=0.4), expected, (4, 25))
    with pytest.raises(InputError, match="lower the spread"):
        get_method("della").params(drop=0.9, spread=0.4)


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_model_stock(per):
    base, *models = draw((6, 5), 4)
    deltas = [model - base for model in models]
    mean = sum(deltas) / 3
    pairs = [(0, 1), (0, 2), (1, 2)]
    if per == "tensor":
        cos = [sum(cosine(flat(deltas[i]), flat(deltas[j])) for i, j in pairs) / 3] * 6
    else:
        cos = [sum(cosine(flat(deltas[i][r]), flat(deltas[j][r])) for i, j in pairs) / 3 for r in range(6)]
    t = [3 * max(0.0, c) / (1 + 2 * max(0.0, c)) for c in cos]
    expected = [float(base[r, c]) + t[r] * float(mean[r, c]) for r in range(6) for c in range(5)]
    same(run("model_stock", [base, *models], per=per), expected, (6, 5))


def test_geometric_median():
    points = [torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([30.0, 30.0])]
    result = run("geometric_median", points, iterations=1000)
    total = float(sum(torch.dist(point, result) for point in points))
    for dx in (-0.02, 0.02):
        for axis in range(2):
            moved = result.clone()
            moved[axis] += dx
            assert float(sum(torch.dist(point, moved) for point in points)) >= total - 1e-5
    assert float(result.abs().max()) < 1.0, "one odd model hardly counts"


def test_perpendicular_add():
    a, b, c = draw((6, 5), 3)
    own, other = a - c, b - c
    along = float((own * other).sum() / (own * own).sum())
    torch.testing.assert_close(run("perpendicular_add", [a, b, c], alpha=0.5), a + 0.5 * (other - along * own))
    torch.testing.assert_close(run("perpendicular_add", [c, b, c], alpha=1.0), b)


def test_clip_with_stiffness():
    bounds = [torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([10.0])]
    assert float(run("weights_clip", [torch.tensor([20.0]), *bounds], stiffness=1.0)) == 10.0
    assert float(run("weights_clip", [torch.tensor([-20.0]), *bounds], stiffness=1.0)) == 1.0
    assert float(run("weights_clip", [torch.tensor([-20.0]), *bounds], stiffness=0.5)) == 0.5


# --- what holds for all --------------------------------------------------------------------------------------------


def default_inputs(method, value):
    return [value] * (len(method.inputs) + (max(2, method.min_many) if method.many else 0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", sorted(methods()))
def test_a_model_merged_with_itself_is_itself(name, shape):
    method = get_method(name)
    value = draw(shape, 1)[0]
    result = run(name, default_inputs(method, value))
    if name == "difference":
        assert not result.any()
    elif name == "add_delta":
        torch.testing.assert_close(result, 2 * value)
    else:
        torch.testing.assert_close(result, value)
    assert result.dtype == torch.float32
    assert result.shape == value.shape


@pytest.mark.parametrize("name", sorted(methods()))
def test_what_comes_out_unchanged_does(name):
    method = get_method(name)
    zero = {parameter: 0.0 for parameter in method.blocks}
    params = method.params(**zero)
    kept = method.unchanged(params)
    if kept is None:
        return
    tensors = draw((6, 5), len(default_inputs(method, None)))
    torch.testing.assert_close(run(name, tensors, **zero), tensors[kept])


@pytest.mark.parametrize("name", sorted(methods()))
def test_shares_are_the_factors(name):
    method = get_method(name)
    tensors = draw((6, 5), len(default_inputs(method, None)))
    factors = method.shares(method.params(), len(tensors))
    if factors is None:
        return
    expected = sum(factor * value for factor, value in zip(factors, tensors, strict=True))
    torch.testing.assert_close(run(name, tensors), expected)


@pytest.mark.parametrize("name", sorted(methods()))
def test_descriptions(name):
    method = get_method(name)
    assert method.title
    assert len(method.source) > 20
    assert not method.summary.endswith(".")
    for parameter in method.blocks:
        assert "0 " in next(p.doc for p in method.params.parameters() if p.name == parameter), "what 0 means is said"


def test_kinds():
    check = lambda name, *kinds: get_method(name).check_kinds(name, kinds)  # noqa: E731
    assert check("weighted_sum", WEIGHT, WEIGHT) == WEIGHT
    assert check("weighted_sum", DELTA, DELTA) == DELTA
    assert check("difference", WEIGHT, WEIGHT) == DELTA
    assert check("add_delta", WEIGHT, DELTA) == WEIGHT
    assert check("ties", WEIGHT, WEIGHT, WEIGHT) == WEIGHT
    assert check("ties", None, DELTA, DELTA) == DELTA
    for name, kinds, message in (
        ("weighted_sum", (WEIGHT, DELTA), "cannot be mixed"),
        ("add_difference", (WEIGHT, WEIGHT, DELTA), "needs a model as c"),
        ("add_delta", (WEIGHT, WEIGHT), "difference first"),
        ("ties", (None, WEIGHT, WEIGHT), "common ancestor"),
        ("ties", (WEIGHT, DELTA, DELTA), "no base"),
        ("ties", (WEIGHT, WEIGHT), "2 or more models"),
        ("weighted_sum", (WEIGHT,), "takes 2 models"),
        ("add_difference", (WEIGHT, None, WEIGHT), "lacks its model b"),
    ):
        with pytest.raises(InputError, match=message):
            check(name, *kinds)


# --- sd-mecha as a live oracle -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mecha():
    pytest.importorskip("sd_mecha")
    from sd_mecha.extensions import merge_methods

    def call(name, *tensors, **params):
        return merge_methods.resolve(name).__wrapped__(*(value.clone() for value in tensors), **params)

    return call


def alpha(value):
    return torch.tensor(value)


def test_mecha_agrees(mecha):
    a, b, c, d = draw((8, 6), 4, seed=11)
    close = torch.testing.assert_close
    close(run("slerp", [a, b], alpha=0.3), mecha("slerp", a, b, alpha=alpha(0.3)))
    close(run("cosine_a", [a, b], alpha=0.2, spread=False), mecha("add_cosine_a", a, b, alpha=alpha(0.2)))
    close(run("cosine_b", [a, b], alpha=0.2, spread=False), mecha("add_cosine_b", a, b, alpha=alpha(0.2)))
    mask = mecha("train_difference_mask", a, b, c, alpha=alpha(0.6))
    close(run("train_difference", [a, b, c], alpha=0.6), a + mask * (b - c))
    close(run("tensor_slice", [a, b], alpha=0.5, beta=0.75), mecha("tensor_sum", a, b, width=0.5, offset=0.75))
    close(run("difference", [a, b]), mecha("subtract", a, b))
    close(run("perpendicular_add", [a, b, c], alpha=1.0), a + mecha("perpendicular_component", a - c, b - c))
    close(run("weights_clip", [3 * a, b, c, d], stiffness=0.3), mecha("clamp", 3 * a, b, c, d, stiffness=0.3))
    deltas = [a - d, b - d, c - d]
    for keep in (1.0, 0.5):
        for vote, sums in (("sum", True), ("count", False)):
            close(run("ties", [None, *deltas], keep=keep, vote=vote), mecha("ties_sum", *deltas, k=keep, vote_sgn=sums))
    # Both stop when the sum of distances no longer changes in fp32, which tells the place to about its square root.
    close(run("geometric_median", [a, b, c]), mecha("geometric_median", a, b, c), rtol=0.0, atol=1e-3)
    near = [a - d, a - d + 0.1 * b]
    close(run("model_stock", [None, *near], per="row"), mecha("model_stock", *near))
    states = [{"k": value} for value in (a, b, c)]
    average = mecha_states("n_average", states)
    close(run("n_average", [a, b, c]), average)
    close(run("weighted_sum", [a, b], alpha=0.3), mecha_states("weighted_sum", states[:2], alpha=alpha(0.3)))


def mecha_states(name, states, **params):
    from sd_mecha.extensions import merge_methods

    return merge_methods.resolve(name).__wrapped__(*states, key="k", **params)
