"""Contact sheets, bucket previews, plots and the doctor's picture: sizes, samples, text inside its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.pictures import make_folder
from atelier_tests.helpers.progress import CancelAfter
from atelier_tests.helpers.sick_folder import make_sick_folder, put, sketch
from lora_atelier.core.errors import MissingLibraryError
from lora_atelier.core.labels import clip_label
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset import cards as cards_module
from lora_atelier.dataset import plots
from lora_atelier.dataset.cards import Card, Section, draw_cards
from lora_atelier.dataset.contact import ORDERS, ContactParams, bucket_sheet, chosen_rows, contact_sheet, crop_shares
from lora_atelier.dataset.doctor import DoctorParams, examine
from lora_atelier.dataset.doctor_picture import draw_report
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset
from lora_atelier.dataset.tag_stats import tag_stats
from lora_atelier.dataset.thumbs import load_small
from lora_atelier.dataset.tiers import BucketParams, bucket_rows, measure

LONG = "初音ミク、緑髪、ツインテール, " + ", ".join(f"tag number {number}" for number in range(40))


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = make_sick_folder(tmp_path_factory.mktemp("sick"))
    put(root / "set" / "2_OyamaMihari", "初音ミク_とても長いファイル名の例です_0001.png", sketch(7, (700, 1200)), LONG)
    return open_folder(root / "set", DatasetParams(), reg_folder=root / "reg")


def preview(dataset: Dataset, pictures: int = 12) -> tuple[Image.Image, str, tuple[int, ...]]:
    params = BucketParams(batch_size=4)
    fits = measure(dataset, params.rule())
    sheet = bucket_sheet(dataset, fits, bucket_rows(dataset, fits, 4), ContactParams(pictures=pictures, cell_px=96))
    return sheet.image, sheet.note, sheet.rows


def test_a_contact_sheet_says_what_it_shows(sick: Dataset) -> None:
    whole = contact_sheet(sick, ContactParams(pictures=100, cell_px=64))
    assert whole.note == "all 30 pictures"
    assert whole.rows == tuple(range(30))
    some = contact_sheet(sick, ContactParams(pictures=10, cell_px=64, columns=4, order="most tags"))
    assert some.note == "10 of 30 pictures, most tags"
    assert sick.caption(some.rows[0]) == ", ".join(sick.tags.row(some.rows[0]))
    assert len(sick.tags.row(some.rows[0])) == int(sick.tags.lengths.max())
    assert max(some.image.size) < max(whole.image.size)


@pytest.mark.parametrize("order", ORDERS)
def test_orders_choose_different_pictures_once(sick: Dataset, order: str) -> None:
    rows = chosen_rows(sick, 7, order)
    assert len(rows) == len(set(rows)) == 7
    assert len(chosen_rows(sick, 1000, order)) == len(sick)


def test_every_bucket_is_shown_and_the_largest_has_most(sick: Dataset) -> None:
    _, note, rows = preview(sick)
    buckets = measure(sick, BucketParams().rule()).buckets
    shown = np.bincount(buckets.index[list(rows)], minlength=len(buckets.sizes))
    assert shown.min() >= 1
    assert shown.sum() == 12
    assert note == "12 of 30 pictures, evenly taken"
    _, note, rows = preview(sick, pictures=2)
    assert note == "2 of 30 pictures, evenly taken; the 2 largest of 4 buckets"


def test_the_frame_is_the_trained_part(tmp_path: Path) -> None:
    make_folder(tmp_path, {"wide.png": "x"}, (1000, 560))
    dataset = open_folder(tmp_path, DatasetParams())
    fits = measure(dataset, BucketParams().rule())
    left, top, right, bottom = crop_shares(fits.buckets[0], None)
    assert left == pytest.approx(1 - right, abs=0.01)
    assert (right - left) * (bottom - top) == pytest.approx(1 - fits.loss[0])
    shifted = crop_shares(fits.buckets[0], (1.0, 0.5))
    assert shifted[2] == 1.0
    assert shifted[0] > left


def test_a_cropped_picture_shows_its_crop(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 200), (255, 0, 0))
    image.paste((0, 0, 255), (200, 0, 400, 200))
    image.save(tmp_path / "two.jpg", quality=95)
    small = load_small(tmp_path / "two.jpg", 50, crop=(220, 20, 380, 180))
    assert small.source == (160, 160)
    assert small.image.size == (50, 50)
    red, _, blue = small.image.getpixel((25, 25))
    assert blue > 200 > 60 > red


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("cell_px", [64, 200])
def test_cards_stay_apart(columns: int, cell_px: int) -> None:
    colour = (250, 0, 250)
    cards = [Card(image=Image.new("RGB", (cell_px, cell_px), colour), heading=LONG, text=LONG) for _ in range(5)]
    sections = [
        Section(title=LONG, cards=cards[:2]),
        Section(title="b", cards=cards[2:3]),
        Section(title="", cards=cards),
    ]
    sheet = draw_cards(sections, title=LONG, note=LONG, columns=columns, cell_px=cell_px, text_lines=3)
    found = (np.asarray(sheet) == colour).all(axis=2)
    assert int(found.sum()) == 8 * cell_px * cell_px


def test_sheets_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards_module, "MAX_PIXELS", 1_500_000)
    cards = [Card(image="gone", heading=f"picture {number}") for number in range(60)]
    sheet = draw_cards([Section(title="", cards=cards)], title="t", columns=12, cell_px=768, text_lines=1)
    assert sheet.width * sheet.height < 2_000_000


def test_a_clipped_label_has_its_lines() -> None:
    label = clip_label(LONG, width_px=120, max_lines=3, font_px=13)
    assert len(label.lines) == 3
    assert label.lines[-1].endswith("…")
    assert label.width_px <= 120
    assert clip_label("short", width_px=120, max_lines=3, font_px=13).lines == ("short",)


def test_the_report_as_a_picture(sick: Dataset) -> None:
    report = examine(sick, DoctorParams(batch_size=4))
    picture = draw_report(report, sick)
    assert picture.width == 1280
    assert picture.height > 100 * len(report.findings)
    healthy = replace(report, findings=(), clean=("everything",))
    assert draw_report(healthy, sick).height < 400


def test_cancel_is_heard_while_drawing(sick: Dataset) -> None:
    with pytest.raises(Cancelled):
        contact_sheet(sick, ContactParams(), progress=CancelAfter(3))


def test_plots_of_any_set_have_one_size(sick: Dataset) -> None:
    stats = tag_stats(sick, top=6, tokens=sick.tags.lengths * 30)
    sizes = {
        plots.frequency_plot(stats, title="a $set$ \u6f22").size,
        plots.cooccurrence_plot(stats).size,
        plots.tokens_plot(stats).size,
    }
    assert sizes == {(1200, 900)}


@pytest.mark.filterwarnings("error")
def test_plots_without_a_tag(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.png": ""})
    stats = tag_stats(open_folder(tmp_path, DatasetParams()), top=24)
    for plot in (plots.frequency_plot, plots.cooccurrence_plot, plots.per_picture_plot, plots.tokens_plot):
        assert plot(stats).size == (1200, 900)


def test_a_missing_matplotlib_is_named(sick: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match="pip install matplotlib"):
        plots.frequency_plot(tag_stats(sick, top=3))
