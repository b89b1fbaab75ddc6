"""kohya's configuration file: three levels, kohya's defaults, and every refusal with its place."""

import json

import pytest

from atelier_tests.helpers.pictures import make_folder, save_picture
from lora_atelier.core.errors import AtelierError
from lora_atelier.dataset.scan import DatasetParams, open_folder

GOOD = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

[[datasets]]
resolution = 768
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'cats'
  class_tokens = 'zwx cat'
  num_repeats = 3
  flip_aug = true
  caption_dropout_rate = 0.1
  caption_prefix = 'best,  zwx'

  [[datasets.subsets]]
  image_dir = 'reg'
  is_reg = true
  keep_tokens = 0
  color_aug = true

  [[datasets.subsets]]
  image_dir = './cats/'

[[datasets]]
  [[datasets.subsets]]
  image_dir = 'style'
  caption_separator = ';'
  shuffle_caption = false
  caption_tag_dropout_rate = 0.25
  alpha_mask = true
"""


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / "cats", {"1.png": "zwx, cat", "2.png": None})
    make_folder(tmp_path / "cats" / "deeper", {"3.png": "not looked at"})
    make_folder(tmp_path / "reg", {"1.png": "a cat"})
    make_folder(tmp_path / "style", {"1.png": "one; two, three"})
    return tmp_path


def opened(folder, text=GOOD, allowed=None, **params):
    (folder / "set.toml").write_text(text, encoding="utf-8")
    return open_folder(folder / "set.toml", DatasetParams(**params), allowed=allowed)


def test_all_three_levels_hold(folder):
    dataset = opened(folder, repeats=2, keep_tokens=9)
    cats, reg, style = dataset.subsets
    assert (cats.repeats, cats.keep_tokens, cats.shuffle_captions, cats.flip) == (6, 2, True, True)
    assert (cats.caption_dropout, cats.caption_prefix, cats.is_reg) == (0.1, "best, zwx", False)
    assert (reg.repeats, reg.keep_tokens, reg.is_reg, reg.flip) == (2, 0, True, False)
    assert (style.keep_tokens, style.shuffle_captions, style.tag_dropout) == (1, False, 0.25)
    assert [dataset.caption(row) for row in range(4)] == ["zwx, cat", "zwx cat", "a cat", "one, two, three"]
    assert dataset.tags.row(3) == ("one", "two, three")
    assert dataset.mask(3) == "alpha"
    assert dataset.mask(0) == ""
    assert dataset.path(3) == folder / "style" / "1.png"
    report = dataset.summary()
    assert "Read 'set.toml' as a kohya configuration of 3 subsets" in report
    assert "Set in the training node, not taken from the file: resolution = 768, batch_size = 4." in report
    assert "Not followed: color_aug = True." in report
    assert "Named twice in one data set, the second time left out as kohya does: [[datasets]] 1, subset 3." in report


def test_a_metadata_subset_takes_what_the_file_names(folder):
    (folder / "meta.json").write_text(json.dumps({(folder / "cats" / "1.png").as_posix(): {"tags": "from meta"}}))
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cats'\nmetadata_file = 'meta.json'\n"
    dataset = opened(folder, text)
    assert [dataset.names[0], dataset.caption(0)] == ["1.png", "from meta"]
    assert "Not named in the metadata file, and left out: 1 picture." in dataset.notes
    without = opened(folder, text.replace("image_dir = 'cats'\n", ""))
    assert list(without.names) == ["1.png"]


def test_masks_of_the_same_names_are_found(folder):
    save_picture(folder / "masks" / "2.png")
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cats'\nconditioning_data_dir = 'masks'\n"
    dataset = opened(folder, text)
    assert dataset.mask(0) == ""
    assert dataset.mask(1) == folder / "masks" / "2.png"
    save_picture(folder / "masks" / "1.png")  # also in the same process
    assert opened(folder, text).mask(0) == folder / "masks" / "1.png"


SUBSET = "[[datasets]]\n[[datasets.subsets]]\n"
WRONG = {
    "syntax": ("[general\n", r"set.toml is not valid TOML: .*line 1"),
    "table": ("[genral]\n", r"set.toml: unknown table 'genral'; did you mean 'general'\?"),
    "option": (
        SUBSET + "image_dir='cats'\nnum_repeat=2",
        r"\[\[datasets\]\] 1, subset 1: .*did you mean 'num_repeats'",
    ),
    "type": (SUBSET + "image_dir='cats'\nnum_repeats='2'", r"num_repeats is '2', allowed is a whole number"),
    "bool as int": (SUBSET + "image_dir='cats'\nnum_repeats=true", r"num_repeats is True, allowed is a whole number"),
    "range": (SUBSET + "image_dir='cats'\nnum_repeats=0", r"num_repeats is 0, allowed is 1 to 10000"),
    "rate": (SUBSET + "image_dir='cats'\ncaption_dropout_rate=3", r"caption_dropout_rate is 3, allowed is 0 to 1"),
    "no folder": (SUBSET + "num_repeats=2", r"image_dir is missing; name the folder with the pictures"),
    "gone": (SUBSET + "image_dir='cast'", r"image_dir 'cast' is not a folder"),
    "outside": (SUBSET + "image_dir='../elsewhere'", r"image_dir '../elsewhere' lies outside the allowed folders"),
    "windows": (SUBSET + "image_dir='D:\\pictures'", r"is a Windows path and this machine is not Windows"),
    "nothing": ("[general]\n", r"set.toml names no folder; add \[\[datasets\]\]"),
    "single brackets": ("[datasets]\nresolution=512", r"\[\[datasets\]\] must be a list of tables"),
    "only reg": (SUBSET + "image_dir='reg'\nis_reg=true", r"names only regularisation pictures"),
    "metadata gone": (SUBSET + "image_dir='cats'\nmetadata_file='no.json'", r"metadata_file .* does not exist"),
    "is_reg above": ("[general]\nis_reg=true\n", r"\[general\]: unknown option 'is_reg'|names no folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_place(folder, case):
    text, message = WRONG[case]
    with pytest.raises(AtelierError, match=message):
        opened(folder, text)


def test_a_folder_elsewhere_needs_to_be_allowed(folder, tmp_path_factory):
    outside = make_folder(tmp_path_factory.mktemp("outside"), {"1.png": "far"})
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{outside.as_posix()}'\n"
    with pytest.raises(AtelierError, match="lies outside the allowed folders"):
        opened(folder, text)
    dataset = opened(folder, text, allowed=lambda path: path.is_relative_to(outside))
    assert dataset.caption(0) == "far"


def test_not_utf8(folder):
    (folder / "set.toml").write_bytes(b"[general]\n# caf\xe9\n")
    with pytest.raises(AtelierError, match="set.toml is not UTF-8 text; save it as UTF-8"):
        open_folder(folder / "set.toml", DatasetParams())


def test_separators_of_captions_are_followed(folder):
    text = GOOD.replace(
        "keep_tokens = 0", "keep_tokens = 0\n  keep_tokens_separator = '|||'\n  token_warmup_step = 100"
    )
    dataset = opened(folder, text.replace("[general]", "[general]\nsecondary_separator = ';;;'"))
    assert [subset.keep_tokens_separator for subset in dataset.subsets] == ["", "|||", ""]
    assert {subset.secondary_separator for subset in dataset.subsets} == {";;;"}
    assert any("Set in the training node" in note and "token_warmup_step = 100" in note for note in dataset.notes)
