"""Masks: from alpha and files, upright, cropped like the picture, of the right size."""

import numpy as np
import pytest
from PIL import Image

from lora_atelier.core.errors import InputError
from lora_atelier.dataset.images import BadPicture, load_row
from lora_atelier.dataset.masks import MaskParams, load_mask, with_masks
from lora_atelier.dataset.scan import DatasetParams, open_folder

SIZE = (80, 60)


def with_alpha(path, orientation=1):
    """Left half opaque red, right half clear."""
    pixels = np.zeros((SIZE[1], SIZE[0], 4), dtype=np.uint8)
    pixels[..., 0] = 255
    pixels[:, : SIZE[0] // 2, 3] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def mask_file(path, size=SIZE, mode="L"):
    """Upper half white."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[: size[1] // 2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    (place / "sub").mkdir(parents=True)
    with_alpha(place / "a.png")
    for name in ("b.png", "sub/c.jpg"):
        Image.new("RGB", SIZE, (0, 0, 255)).save(place / name)
    return place


def opened(folder):
    return open_folder(folder, DatasetParams())


def row_of(dataset, name):
    return list(dataset.names).index(name)


def test_alpha(folder):
    result = with_masks(opened(folder), MaskParams(source="alpha"))
    dataset = result.dataset
    mask = load_mask(dataset, row_of(dataset, "a.png"))
    assert (mask.mode, mask.size) == ("L", SIZE)
    assert np.asarray(mask)[:, :40].min() == 255
    assert np.asarray(mask)[:, 40:].max() == 0
    assert load_mask(dataset, row_of(dataset, "b.png")) is None
    assert "1 from alpha, 0 from files (0 of another size, scaled), 2 of 3 pictures without" in result.report
    assert "a.png: 50% of the picture counts" in result.report
    assert dataset.history[-1] == "masks for 1 of 3 pictures (alpha)"
    assert with_masks(dataset, MaskParams(source="none")).dataset.masks is None


def test_alpha_is_turned_with_its_picture(folder):
    with_alpha(folder / "a.png", orientation=6)
    dataset = with_masks(opened(folder), MaskParams(source="alpha")).dataset
    row = row_of(dataset, "a.png")
    mask, shown = np.asarray(load_mask(dataset, row)), np.asarray(load_row(dataset, row))
    assert mask.shape == shown.shape[:2] == (SIZE[0], SIZE[1])
    assert np.array_equal(mask > 127, shown[..., 1] < 127)  # red where opaque, white elsewhere


def test_files_in_a_folder_and_the_crop(folder, tmp_path):
    mask_file(tmp_path / "masks" / "b.png")
    mask_file(tmp_path / "masks" / "sub" / "c.png", (160, 120), "RGB")
    result = with_masks(opened(folder), MaskParams(source="files"), folder=tmp_path / "masks")
    dataset = result.dataset
    assert "0 from alpha, 2 from files (1 of another size, scaled)" in result.report
    for name in ("b.png", "sub/c.jpg"):
        mask = load_mask(dataset, row_of(dataset, name))
        assert mask.size == SIZE
        assert np.asarray(mask)[:28].min() == 255
        assert np.asarray(mask)[32:].max() == 0
    crops = np.zeros((3, 4), dtype=np.int32)
    crops[row_of(dataset, "b.png")] = (10, 20, 50, 40)
    cropped = load_mask(dataset.with_crops(crops, note="crop"), row_of(dataset, "b.png"))
    assert cropped.size == (40, 20)
    assert np.asarray(cropped)[:, 0].tolist() == [255] * 10 + [0] * 10


def test_files_beside_the_pictures_are_no_pictures(folder):
    mask_file(folder / "b-masklabel.png")
    mask_file(folder / "sub" / "c_mask.png")
    before = opened(folder)
    assert len(before) == 5
    result = with_masks(before, MaskParams(source="files, else alpha"))
    assert sorted(result.dataset.names) == ["a.png", "b.png", "sub/c.jpg"]
    assert [load_mask(result.dataset, row) is not None for row in range(3)] == [True] * 3
    assert "Taken out of the pictures, as they are masks of others: 2 mask files" in result.report


def test_masks_of_other_proportions_are_named(folder, tmp_path):
    mask_file(tmp_path / "masks" / "b.png", (60, 80))
    mask_file(tmp_path / "masks" / "c.png")
    result = with_masks(opened(folder), MaskParams(source="files"), folder=tmp_path / "masks")
    assert "b.png: its mask 'b.png' has 60 x 80 px and the picture 80 x 60 px; make the mask as large" in result.report
    mask_file(tmp_path / "masks" / "c.png", (60, 80))
    with pytest.raises(BadPicture, match="its mask 'c.png' has 60 x 80 px"):
        load_mask(result.dataset, row_of(result.dataset, "sub/c.jpg"))
    with pytest.raises(InputError, match=r"no picture has a mask file in .*its mask 'b.png' has 60 x 80"):
        with_masks(opened(folder), MaskParams(source="files"), folder=tmp_path / "masks")


def test_refusals(folder, tmp_path):
    (folder / "a.png").unlink()
    dataset = opened(folder)
    with pytest.raises(InputError, match="no picture is transparent anywhere; choose another source"):
        with_masks(dataset, MaskParams(source="alpha"))
    with pytest.raises(InputError, match=r"no picture has a mask file such as b-masklabel.png"):
        with_masks(dataset, MaskParams(source="files"))
    with pytest.raises(InputError, match="there is no mask folder"):
        with_masks(dataset, MaskParams(source="files"), folder=tmp_path / "missing")


def test_a_damaged_mask_and_one_that_is_gone(folder, tmp_path):
    mask_file(tmp_path / "masks" / "b.png")
    (tmp_path / "masks" / "c.png").write_bytes(b"no picture")
    result = with_masks(opened(folder), MaskParams(source="files"), folder=tmp_path / "masks")
    assert "sub/c.jpg: it is not a picture of a known format" in result.report
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(BadPicture, match="the file is gone"):
        load_mask(result.dataset, row_of(result.dataset, "b.png"))


def test_a_mask_behind_a_link_out_of_the_roots_is_not_used(folder, tmp_path):
    mask_file(tmp_path / "masks" / "b.png")
    mask_file(tmp_path / "masks" / "c.png")
    result = with_masks(
        opened(folder),
        MaskParams(source="files"),
        folder=tmp_path / "masks",
        allowed=lambda path: path.name != "b.png",
    )
    assert "b.png: its mask 'b.png' lies behind a link out of the allowed folders" in result.report


def test_pictures_of_one_name_take_the_mask_of_their_own_folder(tmp_path):
    for name in ("1_a", "1_b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", SIZE, (0, 0, 255)).save(tmp_path / "set" / name / "x.png")
    mask_file(tmp_path / "masks" / "x.png")
    shared = with_masks(opened(tmp_path / "set"), MaskParams(source="files"), folder=tmp_path / "masks")
    assert "! 1 mask file for several pictures of one name, such as x.png; put them into sub-folders" in shared.report
    mask_file(tmp_path / "masks" / "1_b" / "x.png")
    own = with_masks(opened(tmp_path / "set"), MaskParams(source="files"), folder=tmp_path / "masks")
    assert [own.dataset.mask(row).parent.name for row in range(2)] == ["masks", "1_b"]
    assert "several pictures" not in own.report
