"""Subject crops and their twins, and captions that fit the crop."""

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import InputError
from lora_atelier.core.index import Index
from lora_atelier.dataset.crops import CropParams, head_crop, person_crop, subject_crops
from lora_atelier.dataset.crops_captions import Retagger, RetagParams, merged, retag_crops
from lora_atelier.dataset.detect import Found
from lora_atelier.dataset.detect_rows import Boxes
from lora_atelier.dataset.export import ExportParams, export_dataset
from lora_atelier.dataset.images import load_row
from lora_atelier.dataset.scan import DatasetParams, open_folder

SMALL = {"train_width_px": 96, "train_height_px": 128, "head_share": 0.5, "max_upscale": 0.0}


def box(name, *sides, score=0.9):
    return Found(name=name, score=score, box=tuple(map(float, sides)))


def boxes(rows):
    return Boxes(rows=rows, origin="a test")


@pytest.fixture
def dataset(tmp_path):
    names = ("a.png", "b.png", "c.png", "d.png")
    make_folder(tmp_path / "img" / "3_person", dict.fromkeys(names, "ohwx, 1girl, shoes, smile"), (400, 600))
    make_folder(tmp_path / "reg" / "1_woman", {"r.png": "1girl"}, (400, 600))
    return open_folder(tmp_path / "img", DatasetParams(), reg_folder=tmp_path / "reg")


@pytest.mark.parametrize(
    ("head", "aspect", "share", "expected"),
    [
        ((180, 100, 220, 150), 1.0, 0.5, (150, 75, 250, 175)),  # 100 px: twice its height
        ((180, 100, 220, 150), 0.75, 0.5, (160, 72, 240, 179)),
        ((150, 100, 250, 150), 0.75, 0.5, (100, 0, 300, 267)),  # 200 px: twice its width; moved down to the edge
        ((0, 0, 40, 50), 1.0, 0.5, (0, 0, 100, 100)),  # moved inside
        ((380, 560, 400, 600), 1.0, 0.5, (320, 520, 400, 600)),
        ((100, 100, 300, 300), 1.0, 0.1, (0, 0, 400, 400)),  # as large as the picture lets it be
    ],
)
def test_head_crop(head, aspect, share, expected):
    assert head_crop(head, (400, 600), aspect=aspect, share=share) == expected


def test_head_crops_lie_inside_and_keep_their_proportions():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(int(side) for side in rng.integers(20, 3000, 2))
        low = rng.uniform(0, 0.9, 2) * size
        high = low + rng.uniform(0.02, 1, 2) * (size - low)
        aspect = float(rng.choice([0.5, 0.75, 1.0, 1.5]))
        left, top, right, bottom = head_crop((*low, *high), size, aspect=aspect, share=float(rng.uniform(0.1, 1)))
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert abs((right - left) - aspect * (bottom - top)) <= 1.0 + aspect


def test_person_crop_has_room_and_ends_at_the_picture():
    assert person_crop((100, 200, 200, 400), (400, 600), margin=0.1) == (90, 180, 210, 420)
    assert person_crop((0, 10, 400, 600), (400, 600), margin=0.1) == (0, 0, 400, 600)


def test_heads_become_training_and_persons_their_twins(dataset):
    found = boxes(
        {
            0: [box("head", 180, 100, 220, 150), box("person", 120, 90, 280, 560)],
            1: [box("face", 100, 100, 160, 180)],
            2: [box("head", 50, 50, 60, 60), box("head", 200, 50, 260, 130), box("person", 150, 40, 300, 500)],
        }
    )
    pairs = subject_crops(dataset, found, CropParams(**SMALL))
    assert list(pairs.heads.names) == list(pairs.persons.names) == ["a.png", "b.png", "c.png"]
    assert pairs.heads.crop(0) == (160, 72, 240, 179)
    assert pairs.persons.crop(0) == (107, 52, 293, 598)
    assert pairs.persons.crop(1) == (0, 0, 400, 600)
    assert not pairs.heads.is_reg.any()
    assert pairs.persons.is_reg.all()
    assert pairs.both.is_reg.tolist() == [False] * 3 + [True] * 4
    assert [subset.concept for subset in pairs.both.subsets] == ["person", "person", "woman"]
    assert [subset.repeats for subset in pairs.both.subsets] == [3, 3, 1]
    assert pairs.both.width_px.tolist()[:2] == [80, 120]
    assert load_row(pairs.both, 0).size == (80, 107)
    assert "3 head crops out of 3 pictures, 3 person crops as regularisation twins" in pairs.report
    assert "1 picture without a head, left out: d.png" in pairs.report
    assert "1 picture without a person around the head (whole picture instead): b.png" in pairs.report
    assert "1 head crop smaller than 96 x 128 px" in pairs.report
    assert dataset.crops is None
    assert pairs.both.history[-1] == "3 head crops out of 3 pictures, 3 person crops for regularisation"


def test_options_of_crops(dataset):
    heads = [box("head", 50, 50, 90, 100, score=0.95), box("head", 200, 50, 260, 130, score=0.5)]
    found = boxes({0: heads})
    surest = subject_crops(dataset, found, CropParams(**SMALL, heads="surest"))
    largest = subject_crops(dataset, found, CropParams(**SMALL, heads="largest"))
    every = subject_crops(dataset, found, CropParams(**SMALL, heads="all", without_person="no twin", prior_weight=0.5))
    assert surest.heads.crop(0) == every.heads.crop(0)
    assert largest.heads.crop(0) == every.heads.crop(1)
    assert every.persons is None
    assert every.both.is_reg.tolist() == [False, False, True]
    weighed = subject_crops(dataset, found, CropParams(**SMALL, prior_weight=0.5))
    assert weighed.persons.subsets[0].prior_weight == 0.5


def test_twins_without_the_trigger(dataset):
    found = boxes({0: [box("head", 180, 100, 220, 150)]})
    pairs = subject_crops(dataset, found, CropParams(**SMALL, drop_from_twins="OHWX, shoe"))
    assert pairs.heads.caption(0) == "ohwx, 1girl, shoes, smile"
    assert pairs.persons.caption(0) == pairs.both.caption(1) == "1girl, shoes, smile"
    assert pairs.both.caption(2) == "1girl"
    assert "Out of 1 caption of person crops: OHWX, shoe." in pairs.report
    assert "entry 'shoe' matched 0 images, did you mean 'shoes'?" in pairs.report


def test_a_crop_of_a_crop(dataset):
    crops = np.zeros((5, 4), dtype=np.int32)
    crops[0] = (100, 50, 400, 350)
    cropped = dataset.with_crops(crops, note="crop")
    pairs = subject_crops(cropped, boxes({0: [box("head", 80, 50, 120, 100)]}), CropParams(**SMALL))
    assert pairs.heads.crop(0) == (160, 72, 240, 179)
    assert pairs.persons.crop(0) == (100, 50, 400, 350)


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ({}, {}, "nothing was found in any picture .a test.; lower the least score"),
        (
            {0: [box("heads", 1, 1, 50, 50)]},
            {},
            "'head, face', of which nothing was found; did you mean 'heads'.*heads .1.",
        ),
        (
            {0: [box("car", 1, 1, 50, 50)]},
            {"head_classes": " , "},
            "head_classes is empty; name the classes, such as: car",
        ),
        (
            {0: [box("head", 1, 1, 9, 9)]},
            {"max_upscale": 2.0},
            "no head can be cut out: 3 pictures without a head, 1 too small for 96 x 128 px at max_upscale 2",
        ),
    ],
)
def test_no_crops_say_why(dataset, rows, params, message):
    with pytest.raises(InputError, match=message):
        subject_crops(dataset, boxes(rows), CropParams(**{**SMALL, **params}))


# captions ------------------------------------------------------------------------------------------------------
KNOWN = frozenset({"1girl", "shoes", "smile", "long hair", "solo"})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, "ohwx, 1girl, Long_Hair"),
        ({"captions": "intersect and add"}, "ohwx, 1girl, Long_Hair, solo"),
        ({"captions": "tagger only"}, "ohwx, 1girl, long hair, solo"),
        ({"captions": "tagger only", "unknown_tags": "go"}, "1girl, long hair, solo"),
        ({"captions": "keep"}, "ohwx, 1girl, shoes, Long_Hair"),
        ({"unknown_tags": "go"}, "1girl, Long_Hair"),
        ({"always": "shoes"}, "ohwx, 1girl, shoes, Long_Hair"),
    ],
)
def test_a_caption_and_what_is_seen(params, expected):
    tags = ("ohwx", "1girl", "shoes", "Long_Hair")
    seen = {"1girl": 0.9, "long hair": 0.8, "solo": 0.7}
    made = RetagParams(**params)
    always = {tag for tag in made.always.split(",") if tag}
    assert ", ".join(merged(tags, seen, KNOWN, made, always=always)) == expected


def test_kept_tokens_stay():
    seen = {"smile": 0.9}
    assert merged(("shoes", "1girl", "smile"), seen, KNOWN, RetagParams(), keep_tokens=1) == ("shoes", "smile")


def by_width(image: Image.Image):
    return {"1girl": 0.9, "smile": 0.8, **({"shoes": 0.7} if image.width > 150 else {})}


def cropped_pairs(dataset):
    found = boxes({0: [box("head", 180, 100, 220, 150), box("person", 120, 90, 280, 560)]})
    return subject_crops(dataset, found, CropParams(**SMALL)).both


def test_captions_of_crops_fit_what_is_left(dataset, tmp_path):
    both = cropped_pairs(dataset)
    asked = []

    def tag(image):
        asked.append(image.size)
        return by_width(image)

    retagger = Retagger(identity="t", side_px=600, vocabulary=KNOWN, tag=tag)
    with Index(tmp_path / "index.sqlite") as index:
        result = retag_crops(both, retagger, RetagParams(), index=index)
        assert retag_crops(both, retagger, RetagParams(), index=index).dataset.caption(0) == "ohwx, 1girl, smile"
    assert result.dataset.caption(0) == "ohwx, 1girl, smile"
    assert result.dataset.caption(1) == "ohwx, 1girl, shoes, smile"
    assert result.dataset.caption(2) == "1girl"  # not a crop
    assert asked == [(80, 107), (186, 546)]
    assert "1 of 3 captions changed" in result.diff.text()
    assert "not in the crop: shoes" in result.diff.text()
    assert result.dataset.history[-1] == "captions of 2 crops: intersect, 1 changed"


def test_retagging_refusals(dataset):
    retagger = Retagger(identity="t", side_px=600, vocabulary=frozenset({"cat"}), tag=by_width)
    with pytest.raises(InputError, match="no picture of this data set is cropped"):
        retag_crops(dataset, retagger, RetagParams())
    with pytest.raises(InputError, match=r"the tagger knows none of the tags in these captions \(1girl, ohwx, shoes"):
        retag_crops(cropped_pairs(dataset), retagger, RetagParams())


def test_a_damaged_crop_keeps_its_caption(dataset):
    both = cropped_pairs(dataset)
    path = both.path(0)
    path.write_bytes(path.read_bytes()[:200])
    retagger = Retagger(identity="t", side_px=600, vocabulary=KNOWN, tag=by_width)
    result = retag_crops(both, retagger, RetagParams())
    assert result.dataset.caption(0) == both.caption(0)
    assert result.problems
    assert result.problems[0].startswith("a.png: ")


def test_crops_are_exported_as_twins_of_one_name(dataset, tmp_path):
    found = boxes(
        {
            0: [box("head", 180, 100, 220, 150), box("head", 20, 20, 60, 80), box("person", 120, 90, 280, 560)],
            2: [box("head", 50, 50, 90, 100)],
        }
    )
    pairs = subject_crops(dataset, found, CropParams(**SMALL, heads="all"))
    written = export_dataset(pairs.both, tmp_path / "out", ExportParams())
    heads = sorted(path.name for path in (written.folder / "img" / "3_person").glob("*.png"))
    twins = sorted(path.name for path in (written.folder / "reg" / "3_person").glob("*.png"))
    assert heads == twins == ["a.png", "a_2.png", "c.png"]
    again = open_folder(written.folder / "img", DatasetParams(), reg_folder=written.folder / "reg")
    assert Image.open(written.folder / "img" / "3_person" / "a.png").size == (80, 107)
    assert again.caption(0) == "ohwx, 1girl, shoes, smile"
    assert len(again) == 7
