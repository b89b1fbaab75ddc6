"""The balance planner: a published example's folders exactly, weights, rounding, targets and what it writes."""

import math
from pathlib import Path

import numpy as np
import pytest

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.balance import (
    BalanceParams,
    Plan,
    apply_plan,
    plan_dataset,
    plan_repeats,
    split_by_folder,
    tree_places,
)
from lora_atelier.dataset.balance_tree import parse_weights
from lora_atelier.dataset.scan import DatasetParams, open_folder

RECORD_003 = {
    "artists~kantoku": (2190, 1),
    "artists~momoko": (762, 2),
    "artists~ke-ta": (738, 2),
    "artists~mochizuki_kei": (426, 5),
    "artists~onono_imoko": (373, 5),
    "characters~screenshots~Euphyllia": (235, 2),
    "characters~screenshots~Anisphia": (217, 3),
    "characters~screenshots~OyamaMahiro": (210, 3),
    "characters~screenshots~OyamaMahiro+OyamaMihari": (199, 3),
    "characters~screenshots~OyamaMihari": (177, 3),
    "characters~screenshots~Anisphia+Euphyllia": (165, 4),
    "characters~screenshots~Tilty": (95, 7),
    "characters~screenshots~Anisphia+Tilty": (24, 28),
    "characters~fanart~OyamaMahiro": (299, 3),
    "characters~fanart~Anisphia+Euphyllia": (97, 9),
    "characters~fanart~OyamaMihari": (53, 17),
    "characters~fanart~OyamaMahiro+OyamaMihari": (47, 19),
    "characters~fanart~Anisphia": (37, 24),
    "characters~fanart~Euphyllia": (16, 57),
}
"""Folder: (files, repeats) as the author trained them."""


def files_of(counts: dict[str, int]) -> dict[tuple[str, ...], int]:
    return {tuple(name.split("~")): count for name, count in counts.items()}


def plan(counts: dict[str, int], **params: object) -> Plan:
    return plan_repeats(files_of(counts), BalanceParams(**params))  # type: ignore[arg-type]


def repeats(counts: dict[str, int], **params: object) -> dict[str, int]:
    return {folder.name: folder.repeats for folder in plan(counts, **params).folders}


@pytest.fixture(scope="module")
def record() -> Plan:
    return plan({name: count for name, (count, _) in RECORD_003.items()})


def test_record_003_nineteen_of_nineteen(record: Plan) -> None:
    assert {folder.name: folder.repeats for folder in record.folders} == {
        name: count for name, (_, count) in RECORD_003.items()
    }


def test_record_003_totals(record: Plan) -> None:
    seen = record.seen_below()
    assert sum(folder.files for folder in record.folders) == 6360
    assert seen[()] == 19_425
    assert seen[("artists",)] == 9185
    assert seen[("characters",)] == 10_240
    assert seen[("characters", "fanart")] == 5364
    assert seen[("characters", "screenshots")] == 4876


def test_rounding_to_the_nearest_gives_only_twelve_of_them() -> None:
    nearest = repeats({name: count for name, (count, _) in RECORD_003.items()}, rounding="nearest")
    assert sum(nearest[name] == count for name, (_, count) in RECORD_003.items()) == 12


def test_over_fit_is_warned_of(record: Plan) -> None:
    text = record.text()
    assert "characters~fanart~Euphyllia: 16 files seen 57 times each per epoch: they will be learnt by heart" in text
    assert sum("times each per epoch" in warning for warning in record.warnings) == 2
    assert "     57   57.03      16     912" in text
    assert "  9185   50.0%   47.3%  artists" in text


def test_two_decimals_for_multiply_txt() -> None:
    decimals = plan({"a~x": 100, "a~y": 35, "b": 120}, rounding="two decimals")
    assert [folder.multiply for folder in decimals.folders] == [1.0, 2.86, 1.67]
    assert [folder.repeats for folder in decimals.folders] == [1, 3, 2]


def test_weights_by_name_path_and_pattern() -> None:
    counts = {"a~one": 10, "a~two": 10, "b~one": 10}
    assert repeats(counts) == {"a~one": 1, "a~two": 1, "b~one": 2}
    assert repeats(counts, weights="a~one, 3") == {"a~one": 3, "a~two": 1, "b~one": 4}
    assert repeats(counts, weights="# comment\n\nA/One,3") == {"a~one": 3, "a~two": 1, "b~one": 4}
    assert repeats(counts, weights="a,4\nt*,0.5") == {"a~one": 2, "a~two": 1, "b~one": 1}
    unknown = plan(counts, weights="thre,2\ntow,2")
    assert "the weight of 'tow' matched 0 folders; did you mean 'two'?" in unknown.warnings


def test_exact_whole_ratios_do_not_fall_below_themselves() -> None:
    for parts in range(2, 60):
        counts = {"a": 3 * 7 * parts, "b": 7, "c": 21}
        assert repeats(counts, max_repeats=10_000) == {"a": 1, "b": 3 * parts, "c": parts}


def test_pictures_beside_sub_folders_weigh_as_one_more() -> None:
    assert repeats({"a": 10, "a~x": 10, "b": 10}) == {"a": 1, "a~x": 1, "b": 2}


def test_cap_and_base() -> None:
    capped = plan({"many": 1000, "few": 5}, max_repeats=40)
    assert [folder.repeats for folder in capped.folders] == [1, 40]
    assert any("200.00 repeats are capped at 40" in warning for warning in capped.warnings)
    assert repeats({"a": 20, "b": 10}, min_repeats=10) == {"a": 10, "b": 20}


def test_target_steps() -> None:
    aimed = plan({"a": 60, "b": 20, "c": 13}, target_steps=3000, epochs=10, batch_size=2)
    assert abs(aimed.steps - 3000) <= 3000 * 0.06
    assert aimed.folders[1].repeats > aimed.folders[0].repeats
    too_few = plan({"a": 1000}, target_steps=10, epochs=10)
    assert any("10 steps cannot be reached: with one repeat each" in warning for warning in too_few.warnings)
    too_many = plan({"a": 10}, target_steps=1_000_000, epochs=1, max_repeats=50)
    assert any("with 50 repeats each it is 500 pictures" in warning for warning in too_many.warnings)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("a", "line 1 of the weights is 'a'; write pattern,weight"),
        ("a,1\nb,two", "line 2 of the weights is 'b,two'; write pattern,weight"),
        (",2", "line 1 of the weights is ',2'; write pattern,weight"),
        ("a,nan", "line 1 of the weights is 'a,nan'; write pattern,weight"),
        ("a,0", "line 1 of the weights gives 0 to 'a', allowed is 0.000001 to 1000000; to leave a folder out"),
        ("a,-3", "line 1 of the weights gives -3 to 'a'"),
        ("a,inf", "line 1 of the weights gives inf to 'a'"),
    ],
)
def test_malformed_weights(weights: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        parse_weights(weights)


def test_nothing_to_balance() -> None:
    with pytest.raises(InputError, match="there is no training folder to balance"):
        plan({})
    with pytest.raises(InputError, match="the folder 'a' holds no pictures"):
        plan({"a": 0})


def test_a_data_set_gets_its_repeats_and_regularisation_keeps_its_own(tmp_path: Path) -> None:
    make_folder(tmp_path / "set" / "1_chars~a", {f"{n}.png": "a" for n in range(6)})
    make_folder(tmp_path / "set" / "9_chars~b", {f"{n}.png": "b" for n in range(2)})
    make_folder(tmp_path / "set" / "4_style", {f"{n}.png": "s" for n in range(3)})
    make_folder(tmp_path / "reg" / "3_girl", {"r.png": "girl"})
    dataset = open_folder(tmp_path / "set", DatasetParams(), reg_folder=tmp_path / "reg")
    assert set(tree_places(dataset).values()) >= {("chars", "a"), ("chars", "b"), ("style",)}
    made = plan_dataset(dataset, BalanceParams(epochs=1))
    balanced = apply_plan(dataset, made)
    assert {subset.concept: subset.repeats for subset in balanced.subsets} == {
        "chars~a": 1,
        "chars~b": 3,
        "style": 4,
        "girl": 3,
    }
    assert made.steps == 2 * made.seen == 2 * (6 + 6 + 12)
    assert balanced.names is dataset.names
    assert balanced.history[-1] == "balanced: repeats of 1 folder changed"
    assert balanced.fingerprint() != dataset.fingerprint()
    assert apply_plan(balanced, plan_dataset(balanced, BalanceParams())).subsets == balanced.subsets


def test_a_plain_folder_is_split_by_its_sub_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "set" / "a", {f"{n}.png": "a" for n in range(4)})
    make_folder(tmp_path / "set" / "b" / "c", {f"{n}.png": "b" for n in range(1)})
    make_folder(tmp_path / "set", {"top.png": "t"})
    dataset = open_folder(tmp_path / "set", DatasetParams(keep_tokens=2))
    split = split_by_folder(dataset)
    assert [split.path(row) for row in range(len(split))] == [dataset.path(row) for row in range(len(dataset))]
    assert {subset.folder.name for subset in split.subsets} == {"set", "a", "c"}
    assert all(subset.keep_tokens == 2 for subset in split.subsets)
    assert {levels for levels in tree_places(split).values()} == {("set",), ("a",), ("b", "c")}
    balanced = apply_plan(split, plan_dataset(split, BalanceParams()))
    assert {subset.folder.name: subset.repeats for subset in balanced.subsets} == {"set": 4, "a": 1, "c": 4}


def test_shares_add_up() -> None:
    random = np.random.default_rng(5)
    counts = {f"{a}~{b}~{c}": int(random.integers(1, 900)) for a in "xy" for b in "pqr" for c in "klmn"}
    made = plan(counts, weights="x,3\np,0.25\nk,7", max_repeats=10_000)
    assert math.isclose(sum(folder.share for folder in made.folders), 1.0)
    assert min(folder.repeats for folder in made.folders) == 1
