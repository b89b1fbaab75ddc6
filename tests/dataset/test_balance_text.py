"""A plan as text and as files: read back by the scanner and by a TOML parser; nothing outside is written."""

import sys
from pathlib import Path

import pytest

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import InputError, StorageError
from lora_atelier.dataset.balance import BalanceParams, apply_plan, plan_dataset
from lora_atelier.dataset.balance_text import FORMS, plan_text, write_multiply
from lora_atelier.dataset.layout import parse_repeat_name
from lora_atelier.dataset.scan import DatasetParams, open_folder


@pytest.fixture
def balanced(tmp_path: Path):
    make_folder(tmp_path / "set" / "1_chars~a", {f"{n}.png": "a" for n in range(6)})
    make_folder(tmp_path / "set" / "1_style \u6f22", {f"{n}.png": "s" for n in range(2)})
    make_folder(tmp_path / "reg" / "1_girl", {"r.png": "girl"})
    params = DatasetParams(flip=True, caption_prefix='say "hi" \\o/')
    dataset = open_folder(tmp_path / "set", params, reg_folder=tmp_path / "reg")
    plan = plan_dataset(dataset, BalanceParams(rounding="two decimals"))
    return apply_plan(dataset, plan), plan


def test_folder_names_can_be_read_back(balanced) -> None:
    names = plan_text(*balanced, "folder names").splitlines()
    assert [parse_repeat_name(name) for name in names] == [(1, "chars~a"), (3, "style \u6f22")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_toml_can_be_read_back(balanced) -> None:
    import tomllib

    dataset, plan = balanced
    (entry,) = tomllib.loads(plan_text(dataset, plan, "kohya TOML", resolution_px=768))["datasets"]
    assert [(Path(subset["image_dir"]), subset["num_repeats"]) for subset in entry["subsets"]] == [
        (subset.folder, subset.repeats) for subset in dataset.subsets
    ]
    assert [subset.get("is_reg", False) for subset in entry["subsets"]] == [False, False, True]
    assert entry["subsets"][0]["caption_prefix"] == 'say "hi" \\o/, '
    assert (entry["resolution"], entry["batch_size"]) == (768, 1)
    assert entry["subsets"][0]["flip_aug"] is True


def test_multiply_is_written_into_each_training_folder(balanced) -> None:
    dataset, plan = balanced
    assert plan_text(dataset, plan, "multiply.txt") == "chars~a,1\nstyle \u6f22,3\n"
    written = write_multiply(dataset, plan, lambda path: True)
    assert [path.read_text(encoding="utf-8") for path in written] == ["1\n", "3\n"]
    assert {path.parent.name for path in written} == {"1_chars~a", "1_style \u6f22"}
    again = open_folder(dataset.root, DatasetParams())
    assert len(again) == 8


def test_nothing_is_written_outside_or_over_a_caption(balanced, tmp_path: Path) -> None:
    dataset, plan = balanced
    with pytest.raises(StorageError, match=r"lies outside the allowed folders, so multiply\.txt is not written"):
        write_multiply(dataset, plan, lambda path: "chars" in path.name)
    assert not list(tmp_path.rglob("multiply.txt"))
    make_folder(tmp_path / "other" / "1_x", {"multiply.png": "mine"})
    other = open_folder(tmp_path / "other", DatasetParams())
    with pytest.raises(InputError, match=r"holds a picture called 'multiply', whose caption file is multiply\.txt"):
        write_multiply(other, plan_dataset(other, BalanceParams()), lambda path: True)
    assert (tmp_path / "other" / "1_x" / "multiply.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_is_gone_and_a_form_that_is_none(balanced, tmp_path: Path) -> None:
    dataset, plan = balanced
    (tmp_path / "set" / "1_chars~a").rename(tmp_path / "moved")
    with pytest.raises(StorageError, match="the folder '1_chars~a' is gone; open the data set again"):
        write_multiply(dataset, plan, lambda path: True)
    with pytest.raises(InputError, match="the form 'yaml' is not known, allowed are folder names, kohya TOML"):
        plan_text(dataset, plan, "yaml")
    assert all(plan_text(dataset, plan, form) for form in FORMS)
