"""Sheets: cells untouched, labels inside their place, size guarded."""

import pytest
from PIL import Image

from lora_atelier.core.errors import InputError, StorageError
from lora_atelier.evaluator.sheet import _layout, draw_sheet

LONG = "1girl, solo, masterpiece, best quality, looking at viewer, kayoko (blue archive), black hoodie, sitting outside"
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]


def cells(count, size=(64, 48)):
    return [Image.new("RGB", size, COLOURS[index % len(COLOURS)]) for index in range(count)]


def boxes(sheet, count):
    found = {}
    pixels = sheet.load()
    for y in range(sheet.height):
        for x in range(sheet.width):
            if pixels[x, y] in COLOURS[:count]:
                box = found.setdefault(pixels[x, y], [x, y, x, y])
                box[0], box[1], box[2], box[3] = min(box[0], x), min(box[1], y), max(box[2], x), max(box[3], y)
    return [tuple(found[colour]) for colour in COLOURS[:count]]


@pytest.mark.parametrize("size", [(64, 48), (60, 96), (128, 64)])
def test_every_pixel_of_every_cell_is_on_the_sheet(size):
    sheet = draw_sheet(cells(6, size), ["a", LONG, "c"], ["row", LONG], LONG)
    found = boxes(sheet, 6)
    assert all((x1 - x0 + 1, y1 - y0 + 1) == size for x0, y0, x1, y1 in found)
    assert all(sheet.crop((x0, y0, x1 + 1, y1 + 1)).getcolors() == [(size[0] * size[1], colour)]
               for (x0, y0, x1, y1), colour in zip(found, COLOURS, strict=True))  # fmt: skip
    assert found[0][1] == found[1][1] == found[2][1]
    assert found[0][0] == found[3][0]
    assert found[0][2] < found[1][0]


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (512, 768), (96, 64), (20, 300)])
@pytest.mark.parametrize("text", ["a", LONG, LONG * 6, "x" * 400, "初音ミク、緑髪、ツインテール" * 5, "a\nb\nc"])
def test_labels_stay_inside_their_place(size, text):
    layout = _layout(size, 1.0, [text, "b"], [text, "b"], text, 2)
    for label in layout.columns:
        assert label.width_px <= layout.pitch_px[0]
        assert label.height_px <= layout.head_px
    for label in layout.rows:
        assert label.width_px <= layout.left_px
        assert label.height_px <= layout.pitch_px[1]
    assert layout.title.width_px <= layout.left_px + 2 * layout.pitch_px[0] + 4
    assert layout.title.height_px <= layout.title_px


def test_sheet_without_labels_is_just_the_cells():
    assert draw_sheet(cells(1), [], []).size == (64, 48)
    assert draw_sheet(cells(2), ["a", "b"], []).width == 2 * 64 + 2


def test_tiny_cells_and_many_cells():
    assert draw_sheet(cells(1, (1, 1)), ["label"], ["label"]).width > 56
    assert draw_sheet(cells(48), list("abcdefgh"), list("abcdef")).size[0] > 8 * 64


def test_huge_sheets_are_made_to_fit():
    images = cells(1, (512, 512)) * 225
    labels = [LONG] * 15
    sheet = draw_sheet(images, labels, labels, max_pixels=2_000_000)
    assert sheet.width * sheet.height <= 2_000_000
    long = draw_sheet(cells(1, (64, 64)) * 600, [f"seed {index}" for index in range(600)], [], max_side_px=5_000)
    assert long.width <= 5_000


def test_missing_cells_and_files(tmp_path):
    path = tmp_path / "cell.png"
    Image.new("RGBA", (64, 48), (255, 0, 0, 0)).save(path)
    sheet = draw_sheet([path, None], ["a", "b"], [])
    assert sheet.size[0] == 130
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(StorageError, match=r"bad\.png"):
        draw_sheet([tmp_path / "bad.png"], [], [])


def test_number_of_pictures_is_checked():
    with pytest.raises(InputError, match="3 x 1 cells got 2"):
        draw_sheet(cells(2), ["a", "b", "c"], [])
