"""Golden: every kind of file beside a picture, read as a person would."""

import json

import numpy as np
import pytest

from atelier_tests.helpers.pictures import save_picture
from lora_atelier.dataset.columns import CATEGORIES, SOURCES
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.sidecars import Caption, parse_caption
from lora_atelier.dataset.table import CAPTION_METADATA, CAPTION_SITE, RATINGS

DANBOORU = {
    "id": 1,
    "rating": "s",
    "score": 25,
    "fav_count": 60,
    "tag_string": "1girl highres kayoko_(blue_archive) blue_archive long_hair some_artist",
    "tag_string_general": "1girl long_hair",
    "tag_string_character": "kayoko_(blue_archive)",
    "tag_string_copyright": "blue_archive",
    "tag_string_artist": "some_artist",
    "tag_string_meta": "highres",
}
E621 = {
    "id": 2,
    "rating": "s",
    "score": {"up": 30, "down": -4, "total": 26},
    "fav_count": 41,
    "tags": {
        "general": ["solo", "fur"],
        "artist": ["someone"],
        "contributor": ["helper"],
        "copyright": [],
        "character": ["rex"],
        "species": ["lion", "felid"],
        "invalid": ["tagme_wrong"],
        "meta": ["hi_res"],
        "lore": ["male_(lore)"],
    },
    "file": {"url": "", "ext": "png", "width": 96, "height": 64},
}
GALLERY_DANBOORU = {
    **DANBOORU,
    "category": "danbooru",
    "tags": DANBOORU["tag_string"].split(),
    "tags_general": ["1girl", "long_hair"],
    "tags_character": ["kayoko_(blue_archive)"],
    "tags_copyright": ["blue_archive"],
    "tags_artist": ["some_artist"],
    "tags_meta": ["highres"],
}
GALLERY_E621 = {
    "category": "e621",
    "rating": "q",
    "score": {"up": 1, "down": 0, "total": 1},
    "tags": ["fur", "lion", "rex", "solo"],
    "tags_general": ["solo", "fur"],
    "tags_species": ["lion"],
    "tags_character": ["rex"],
}
WHO_FIRST = ["kayoko_(blue_archive)", "blue_archive", "some_artist", "1girl", "long_hair", "highres"]
LION = ["rex", "lion", "felid", "someone", "solo", "fur", "helper", "tagme_wrong", "hi_res", "male_(lore)"]


def opened(folder, **params):
    return open_folder(folder, DatasetParams(**params))


def one(tmp_path, files, **params):
    save_picture(tmp_path / "a.png")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return opened(tmp_path, **params)


def categories(dataset):
    return {tag: CATEGORIES[dataset.tags.categories[dataset.tags.id_of(tag)]] for tag in dataset.tags.row(0)}


TEXTS = {
    "commas": ("a.txt", "zwx, long hair,  red_eyes", ["zwx", "long hair", "red_eyes"], "separated by commas (.txt)"),
    "kohya": ("a.caption", "zwx, cat", ["zwx", "cat"], "separated by commas (.caption)"),
    "sentence": ("a.txt", "a photo of a cat", ["a photo of a cat"], "separated by commas (.txt)"),
    "name in a sentence": ("a.txt", "a photo of sks_dog", ["a photo of sks_dog"], "separated by commas (.txt)"),
    "booru string": (
        "a.txt",
        "1girl long_hair red_eyes",
        ["1girl", "long_hair", "red_eyes"],
        "separated by blanks (.txt)",
    ),
    "tags file": ("a.tags", "1girl solo", ["1girl", "solo"], "separated by blanks (.tags)"),
    "gallery-dl lines": ("a.png.txt", "1girl\nlong_hair\n", ["1girl", "long_hair"], "one tag per line (.txt)"),
    "lines": ("a.txt", "1girl\nlong hair\nsolo", ["1girl", "long hair", "solo"], "one tag per line (.txt)"),
    "first line": ("a.txt", "zwx, cat\nsecond, line", ["zwx", "cat"], "separated by commas (.txt)"),
    "prose": (
        "a.txt",
        "a cat sits on the wall\nit looks at the sea\nand it thinks",
        ["a cat sits on the wall"],
        "separated by commas (.txt)",
    ),
    "grabber": (
        "a.txt",
        "character: rex\nspecies: lion felid\ngeneral: solo, red eyes\nrating: s\nscore: 12",
        ["rex", "lion", "felid", "solo", "red eyes"],
        "imgbrd-grabber lines (.txt)",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_beside_a_picture(tmp_path, case):
    name, text, tags, form = TEXTS[case]
    dataset = one(tmp_path, {name: text})
    assert list(dataset.tags.row(0)) == tags
    assert f"Captions were read as: {form}: 1." in dataset.notes
    assert form in dataset.summary()


JSONS = {
    "danbooru": ("a.json", DANBOORU, WHO_FIRST, "danbooru JSON", 25, 60, "sensitive"),
    "danbooru by gallery-dl": (
        "a.png.json",
        GALLERY_DANBOORU,
        WHO_FIRST,
        "gallery-dl JSON of danbooru",
        25,
        60,
        "sensitive",
    ),
    "e621": ("a.json", E621, LION, "e621 JSON", 26, 41, "safe"),
    "e621 answer": ("a.json", {"posts": [E621]}, LION, "e621 JSON", 26, 41, "safe"),
    "e621 by gallery-dl": (
        "a.png.json",
        GALLERY_E621,
        ["rex", "lion", "solo", "fur"],
        "gallery-dl JSON of e621",
        1,
        -1,
        "questionable",
    ),
    "waifuc": (
        ".a_meta.json",
        {"tags": {"solo": 0.9, "red_eyes": 0.5}},
        ["solo", "red_eyes"],
        "waifuc JSON",
        None,
        -1,
        "",
    ),
    "string": (
        "a.json",
        {"tags": "solo red_eyes", "rating": "explicit", "score": "7"},
        ["solo", "red_eyes"],
        "JSON with tags",
        7,
        -1,
        "explicit",
    ),
    "caption": ("a.json", {"caption": "zwx, red hat"}, ["zwx", "red hat"], "JSON with tags", None, -1, ""),
    "numbered danbooru": (
        "a.json",
        {"category": "danbooru", "tags": [{"name": "highres", "category": 5}, {"name": "rex", "category": 4}]},
        ["rex", "highres"],
        "gallery-dl JSON of danbooru",
        None,
        -1,
        "",
    ),
}


@pytest.mark.parametrize("case", JSONS)
def test_what_a_site_says(tmp_path, case):
    name, data, tags, form, score, favourites, rating = JSONS[case]
    dataset = one(tmp_path, {name: data})
    assert list(dataset.tags.row(0)) == tags
    assert dataset.caption_source.tolist() == [CAPTION_SITE]
    assert set(dataset.tags.sources.tolist()) == {SOURCES.index("site")}
    assert f"Captions were read as: {form}: 1." in dataset.notes
    found = None if dataset.site_scores is None else dataset.site_scores[0]
    assert found == score
    assert (-1 if dataset.site_favourites is None else dataset.site_favourites[0]) == favourites
    assert RATINGS[0 if dataset.site_ratings is None else dataset.site_ratings[0]] == rating
    assert "1 from the site's metadata" in dataset.summary()


def test_category_five_is_meta_on_danbooru_and_species_on_e621(tmp_path):
    tags = [{"name": "x", "category": 5}, {"name": "y", "category": 7}, {"name": "z", "category": 0}]
    danbooru = one(tmp_path / "d", {"a.json": {"category": "danbooru", "tags": tags}})
    assert categories(danbooru) == {"x": "meta", "y": "", "z": "general"}
    e621 = one(tmp_path / "e", {"a.json": {"category": "e621", "tags": tags}})
    assert categories(e621) == {"x": "species", "y": "meta", "z": "general"}
    assert categories(one(tmp_path / "f", {"a.json": E621})) == {
        "rex": "character",
        "lion": "species",
        "felid": "species",
        "someone": "artist",
        "solo": "general",
        "fur": "general",
        "helper": "meta",
        "tagme_wrong": "meta",
        "hi_res": "meta",
        "male_(lore)": "meta",
    }


def test_scores_of_tags_are_kept(tmp_path):
    dataset = one(tmp_path, {".a_meta.json": {"tags": {"solo": 0.75, "red_eyes": 0.5}}})
    assert dataset.tags.scores.tolist() == [0.75, 0.5]
    assert dataset.tags.scores.dtype == np.float16


def test_site_tags_come_first_when_asked_and_stay_out_otherwise(tmp_path):
    files = {"a.txt": "zwx, long hair, hat", "a.json": DANBOORU}
    plain = one(tmp_path, files)
    assert plain.tags.row(0) == ("zwx", "long hair", "hat")
    assert plain.site_scores.tolist() == [25]
    both = opened(tmp_path, site_tags="before caption")
    assert list(both.tags.row(0)) == [*WHO_FIRST, "zwx", "hat"]
    assert both.tags.sources.tolist() == [1] * 6 + [0] * 2
    never = opened(tmp_path, site_tags="never")
    assert never.site_scores is None
    rated = opened(tmp_path, site_ratings=True)
    assert rated.tags.row(0)[-1] == "sensitive"
    assert categories(rated)["sensitive"] == "rating"


def test_underscores_become_spaces_except_in_faces(tmp_path):
    dataset = one(tmp_path, {"a.txt": "long_hair, ^_^, long hair, o_o, red_eyes"}, underscores="to spaces")
    assert dataset.tags.row(0) == ("long hair", "^_^", "o_o", "red eyes")


@pytest.mark.parametrize(
    ("separator", "tags"),
    [("comma", ["a b"]), ("line", ["a b", "c d, e"]), ("space", ["a", "b"]), (";", ["a b"])],
)
def test_a_separator_can_be_given(separator, tags):
    caption = Caption(text="a b", num_lines=2, lines=("a b", "c d, e"))
    assert list(parse_caption(caption, separator=separator, name="x.txt").tags) == tags


METADATA = {
    "meta_cap.json": {"{root}/a.png": {"caption": "a cat", "tags": "zwx, sky", "image_size": [1, 1]}},
    "metadata_cache.json": {"a.png": {"caption": "a cat, zwx, sky", "resolution": [9, 9]}},
    "meta_lat.json": {"a": {"caption": "a cat", "tags": "zwx, sky", "train_resolution": [64, 64]}},
    "metadata.jsonl": '{"file_name": "a.png", "text": "a cat, zwx, sky"}\n\n{"file_name": "b.png", "text": "dog"}\n',
    "data.jsonl": '{"image_path": "somewhere/else/a.png", "caption": "a cat", "tags": ["zwx", "sky"]}\n',
}


@pytest.mark.parametrize("name", METADATA)
def test_a_metadata_file_of_many_pictures(tmp_path, name):
    content = METADATA[name]
    text = content if isinstance(content, str) else json.dumps(content).replace("{root}", tmp_path.as_posix())
    save_picture(tmp_path / "own.png")
    dataset = one(tmp_path, {name: text, "own.txt": "its own"})
    assert dataset.tags.row(0) == ("a cat", "zwx", "sky")
    assert dataset.tags.row(1) == ("its own",)
    assert dataset.caption_source.tolist() == [CAPTION_METADATA, 1]
    assert f"from {name}: 1" in dataset.summary()
    assert (dataset.width_px[0], dataset.height_px[0]) == (96, 64)
