"""The tagger to the letter of the WD14 contract, on graphs that show how the picture reached them."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.onnx_tagger import ROWS, write_table, write_tagger
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.discovery import discover
from lora_atelier.core.errors import FormatError, InputError, MissingLibraryError, StorageError, UnknownNameError
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset.images import upright_rgb
from lora_atelier.tagger import prepare as prepare_module
from lora_atelier.tagger import runner, taggers
from lora_atelier.tagger.labels import KAOMOJI, compared, written
from lora_atelier.tagger.prepare import pad_square, prepare
from lora_atelier.tagger.runner import PickParams, Tag, open_tagger, pick, tags_text
from lora_atelier.tagger.tables import CATEGORY_WORDS
from lora_atelier.tagger.taggers.wd14 import TAGGER


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return write_tagger(tmp_path_factory.mktemp("tagger") / "tiny")


@pytest.fixture
def tagger(folder):
    return open_tagger(folder, threads=1)


def picture(colour, size=(32, 32)):
    return Image.new("RGB", size, colour)


def names(tagger, image, **params):
    return {tag.name for tag in pick(tagger.tag_image(image), PickParams(**params))}


def score(tagger, image, name):
    scores = tagger.tag_image(image)
    return float(scores.values[scores.names.index(name)])


@pytest.mark.parametrize(("colour", "name"), [((255, 0, 0), "red"), ((0, 255, 0), "green"), ((0, 0, 255), "blue")])
def test_channel_order(tagger, colour, name):
    found = names(tagger, picture(colour))
    assert found & {"red", "green", "blue"} == {name}


def test_range_is_0_to_255(tagger):
    assert score(tagger, picture((255, 255, 255)), "bright") > 0.99
    assert score(tagger, picture((100, 100, 100)), "bright") < 0.5


def test_narrow_and_flat_pictures_get_white_borders(tagger):
    assert "white left" in names(tagger, picture((0, 0, 0), (8, 64)))
    assert "white top" not in names(tagger, picture((0, 0, 0), (8, 64)))
    assert "white top" in names(tagger, picture((0, 0, 0), (64, 8)))
    assert "white left" not in names(tagger, picture((0, 0, 0), (64, 64)))
    assert "red" not in names(tagger, picture((255, 0, 0), (1, 4000)))


def test_transparency_becomes_white(tagger):
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert {"white left", "bright"} <= names(tagger, clear)
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.info["transparency"] = 0
    assert "bright" in names(tagger, palette)


def test_ratings_by_argmax_and_characters_by_their_category(tagger):
    tags = pick(tagger.tag_image(picture((255, 0, 0))), PickParams(include_rating=True))
    assert [tag.category for tag in tags[:2]] == ["rating", "character"]
    assert tags[0].name == "sensitive"
    assert tags[1].name == "hatsune miku (vocaloid)"
    assert not {"general", "explicit"} & {tag.name for tag in tags[1:]}
    assert "sensitive" not in names(tagger, picture((255, 0, 0)))


def test_thresholds_override_the_models_own(tagger):
    image = picture((255, 0, 0))
    assert "hatsune miku (vocaloid)" in names(tagger, image)
    assert "hatsune miku (vocaloid)" not in names(tagger, image, character_threshold=0.97)
    assert "long hair" not in names(tagger, image, general_threshold=0.8)


def test_writing_of_names(tagger):
    image = picture((255, 0, 0))
    assert {"^_^", "(o)_(o)", 'say "a,b"', "long hair"} <= names(tagger, image)
    assert {"^_^", "long_hair"} <= names(tagger, image, underscores_to_spaces=False)
    assert {"\\(o\\)_\\(o\\)", "hatsune miku \\(vocaloid\\)"} <= names(tagger, image, escape_parentheses=True)


def test_exclude_ignores_underscores_spaces_and_escapes(tagger):
    found = names(tagger, picture((255, 0, 0)), exclude="long_hair, Hatsune Miku \\(vocaloid\\)\n^_^, hair")
    assert not {"long hair", "hatsune miku (vocaloid)", "^_^"} & found
    assert 'say "a,b"' in found


def test_max_tags_keeps_the_surest(tagger):
    tags = pick(tagger.tag_image(picture((255, 0, 0))), PickParams(max_tags=2, characters_first=False))
    assert len(tags) == 2
    assert tags[0].score >= tags[1].score
    assert tags[0].name == "red"


def test_kaomoji_are_the_nineteen():
    assert len(KAOMOJI) == 19
    for face in KAOMOJI:
        assert written(face, underscores_to_spaces=True, escape_parentheses=False) == face
    assert compared("long_hair") == compared(" Long  hair ")


def test_size_comes_from_the_graph(tmp_path):
    pytest.importorskip("onnx")
    tagger = open_tagger(write_tagger(tmp_path / "big", size_px=40))
    assert (tagger.height_px, tagger.width_px) == (40, 40)
    assert "red" in names(tagger, picture((255, 0, 0), (100, 100)))
    free = open_tagger(write_tagger(tmp_path / "free", size_px="S"))
    assert free.height_px == 448


@pytest.mark.parametrize(("batch", "is_batched"), [("N", True), (1, False), (3, False)])
def test_batches_give_what_single_pictures_give(tmp_path, batch, is_batched):
    pytest.importorskip("onnx")
    tagger = open_tagger(write_tagger(tmp_path / "x", batch=batch))
    assert tagger.is_batched is is_batched
    images = [picture((index * 20, 255 - index * 20, 40), (32, 16 + index)) for index in range(11)]
    together = list(tagger.tag_images(images))
    assert len(together) == 11
    for image, scores in zip(images, together, strict=True):
        np.testing.assert_allclose(scores.values, tagger.tag_image(image).values, atol=1e-6)


def test_cancel_between_pictures(folder):
    tagger = open_tagger(folder)
    with pytest.raises(Cancelled):
        list(tagger.tag_images([picture((0, 0, 0))] * 20, CancelAfter(3)))


def test_the_bar_moves_forwards_only_also_where_pictures_come_one_by_one(tagger):
    progress = RecordingProgress()
    list(tagger.tag_images(iter([picture((0, 0, 0))] * 3), progress, total=3))
    done = [update[0] for update in progress.updates]
    assert done == sorted(set(done))
    assert {update[1] for update in progress.updates} == {3}


def test_an_opened_tagger_is_kept_until_its_file_changes(folder, tmp_path):
    assert open_tagger(folder) is open_tagger(folder)
    write_tagger(tmp_path / "x")
    first = open_tagger(tmp_path / "x")
    write_tagger(tmp_path / "x", size_px=20)
    assert open_tagger(tmp_path / "x") is not first


def test_files_named_after_the_model(folder, tmp_path):
    (tmp_path / "wd-v1-4-moat-tagger-v2.onnx").write_bytes((folder / "model.onnx").read_bytes())
    write_table(tmp_path / "wd-v1-4-moat-tagger-v2.csv", header=("name", "category"))
    tagger = open_tagger(tmp_path / "wd-v1-4-moat-tagger-v2.onnx")
    assert tagger.thresholds["general"] == 0.3771
    assert "hatsune_miku_(vocaloid)" in tagger.vocabulary
    assert "explicit" not in tagger.vocabulary
    assert len(tagger.vocabulary) == len(ROWS) - 4


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("wd-eva02-large-tagger-v3", 0.5296),
        ("wd_vit_tagger_v3", 0.2614),
        ("wd-vit-large-tagger-v3", 0.2606),
        ("wd-v1-4-convnextv2-tagger-v2", 0.3710),
        ("something-else", 0.35),
    ],
)
def test_default_thresholds_per_model(tmp_path, name, threshold):
    pytest.importorskip("onnx")
    assert open_tagger(write_tagger(tmp_path / name)).thresholds["general"] == threshold


def test_missing_files_say_which_belongs_where(folder, tmp_path):
    with pytest.raises(StorageError, match=r"model\.onnx and selected_tags\.csv .* into .*empty"):
        open_tagger(tmp_path / "empty")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(StorageError, match=r"tag table of model\.onnx.*selected_tags\.csv"):
        open_tagger(tmp_path / "half")
    with pytest.raises(StorageError, match=r"absent\.onnx"):
        open_tagger(tmp_path / "absent.onnx")


def test_two_graphs_in_one_folder_must_be_chosen_by_name(folder, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes((folder / "model.onnx").read_bytes())
    with pytest.raises(InputError, match=r"2 graphs \(a\.onnx, b\.onnx\)"):
        open_tagger(tmp_path)


def test_missing_library_gives_the_command(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(runner, "_OPEN", {})
    with pytest.raises(MissingLibraryError, match="pip install onnxruntime"):
        open_tagger(folder)


def test_files_that_do_not_belong_together(tmp_path):
    pytest.importorskip("onnx")
    folder = write_tagger(tmp_path / "x")
    write_table(folder / "selected_tags.csv", rows=ROWS[:5])
    with pytest.raises(FormatError, match="17 tags but its table has 5 rows"):
        open_tagger(folder)
    write_table(folder / "selected_tags.csv", header=("tag_id", "name", "count"))
    with pytest.raises(FormatError, match="no column 'category'"):
        open_tagger(folder)
    write_table(folder / "selected_tags.csv", rows=[(name, "x") for name, _ in ROWS])
    with pytest.raises(FormatError, match="category 'x'"):
        open_tagger(folder)
    (folder / "selected_tags.csv").write_bytes("tag_id,name,category\n1,日本,0\n".encode("cp932"))
    with pytest.raises(FormatError, match="UTF-8"):
        open_tagger(folder)
    long_field = "x" * (csv.field_size_limit() + 1)
    (folder / "selected_tags.csv").write_text(f"tag_id,name,category\n1,{long_field},0\n", encoding="utf-8")
    with pytest.raises(FormatError, match="no tag table"):
        open_tagger(folder)


def test_a_graph_of_logits_is_refused(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(FormatError, match=r"outside 0\.\.1"):
        open_tagger(write_tagger(tmp_path / "x", sigmoid=False)).tag_image(picture((0, 0, 0)))


def test_not_a_graph(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    write_table(tmp_path / "selected_tags.csv")
    with pytest.raises(FormatError, match="ONNX"):
        open_tagger(tmp_path)


def test_unknown_adapter(folder):
    with pytest.raises(UnknownNameError, match="wd14"):
        open_tagger(folder, adapter="wd15")


def naive_prepare(image, size):
    """The published preparation, written out plainly with numpy and one Pillow resize."""
    rgba = np.asarray(image.convert("RGBA"), np.float64)
    alpha = rgba[..., 3:] / 255.0
    rgb = np.rint(rgba[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    side = max(rgb.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - rgb.shape[0]) // 2, (side - rgb.shape[1]) // 2
    square[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
    resized = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
    return resized[:, :, [2, 1, 0]].astype(np.float32)


@pytest.mark.parametrize("size", [(40, 23), (23, 40), (31, 31), (448, 448)])
def test_prepare_matches_reference(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    ours = prepare(image, TAGGER, height_px=64, width_px=64)
    assert ours.dtype == np.float32
    assert ours.shape == (64, 64, 3)
    np.testing.assert_allclose(ours, naive_prepare(image, 64), atol=3)
    opaque = Image.fromarray(pixels[..., :3])
    np.testing.assert_array_equal(prepare(opaque, TAGGER, height_px=64, width_px=64), naive_prepare(opaque, 64))


def test_pad_modes():
    image = picture((10, 20, 30), (2, 4))
    assert pad_square(image, "none").size == (2, 4)
    for pad, colour in (
        ("white", (255, 255, 255)),
        ("black", (0, 0, 0)),
        ("mean", (10, 20, 30)),
        ("edge", (10, 20, 30)),
    ):
        assert pad_square(image, pad).getpixel((0, 0)) == colour
        assert pad_square(image, pad).size == (4, 4)
        assert pad_square(image, pad).getpixel((1, 0)) == (10, 20, 30)


@pytest.mark.parametrize("size", [(60_000, 3), (2, 1_000_000)])
def test_a_very_long_picture_makes_no_huge_square(size):
    assert pad_square(picture((0, 0, 0), size), "white").size == (8192, 8192)


def test_an_ordinary_large_picture_is_padded_at_full_size(monkeypatch):
    monkeypatch.setattr(prepare_module, "SQUARE_PX", 16)
    assert pad_square(picture((0, 0, 0), (40, 20)), "white").size == (40, 40)
    assert pad_square(picture((0, 0, 0), (400, 20)), "white").size == (126, 126)


def test_flatten_of_other_modes():
    deep = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    assert upright_rgb(deep).getpixel((0, 0)) == (255, 255, 255)
    assert upright_rgb(Image.new("CMYK", (4, 4))).mode == "RGB"
    assert upright_rgb(Image.new("L", (4, 4), 9)).getpixel((0, 0)) == (9, 9, 9)


def test_text():
    assert (
        tags_text([Tag(name="a", category="general", score=1.0), Tag(name="b", category="general", score=1.0)])
        == "a, b"
    )


@pytest.mark.parametrize("name", sorted(discover(taggers.__name__, "TAGGER")))
def test_adapter_contract(name):
    spec = discover(taggers.__name__, "TAGGER")[name]
    assert spec.source
    assert spec.summary.endswith(".")
    assert set(spec.default_thresholds) <= {*spec.categories.values(), *CATEGORY_WORDS}
    assert set(spec.argmax) <= CATEGORY_WORDS
    for layout in (spec.layout,):
        array = prepare(picture((255, 0, 0)), spec, height_px=8, width_px=8)
        assert array.shape == ((8, 8, 3) if layout == "NHWC" else (3, 8, 8))
