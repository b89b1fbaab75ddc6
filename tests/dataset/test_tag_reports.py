"""Tag statistics, token lengths, bleeding, profile and the tag document, on captions made for them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.bleeding import BleedingParams, find_bleeding
from lora_atelier.dataset.profile import ProfileParams, profile_of
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset
from lora_atelier.dataset.tag_document import DocumentParams, tag_document
from lora_atelier.dataset.tag_stats import tag_stats
from lora_atelier.dataset.tokens import caption_tokens

Maker = Callable[..., Dataset]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    def made(*captions: str, folder: str = "set", **params: object) -> Dataset:
        make_folder(tmp_path / folder, {f"{number}.png": caption for number, caption in enumerate(captions)})
        return open_folder(tmp_path / folder, DatasetParams(**params))  # type: ignore[arg-type]

    return made


# --- statistics -------------------------------------------------------------------------------------------------------


def test_counts_and_co_occurrence(make: Maker) -> None:
    stats = tag_stats(make("a, b, b", "a, c", "a", ""), top=2)
    assert stats.names == ("a", "b", "c")
    assert stats.counts.tolist() == [3, 1, 1]
    assert stats.together.tolist() == [[3, 1], [1, 1]]
    assert stats.per_picture.tolist() == [2, 2, 1, 0]
    assert "3 different tags on 4 pictures; per picture: mean 1.2, median 2, least 0, most 2" in stats.text()
    assert "No picture has a tag" in tag_stats(make("", folder="none"), top=5).text()


def by_characters(texts: object) -> list[int]:
    return [len(text.replace(" ", "")) for text in texts]  # type: ignore[attr-defined]


def test_tokens_add_up_to_those_of_the_whole_caption(make: Maker) -> None:
    dataset = make("a, long tag, ^_^", "", "one", caption_prefix="by me, now")
    whole = [f"by me, now, {dataset.caption(row)}" if dataset.caption(row) else "by me, now," for row in range(3)]
    assert caption_tokens(dataset, by_characters).tolist() == by_characters(whole)
    plain = replace(dataset, subsets=(replace(dataset.subsets[0], caption_prefix=""),))
    assert caption_tokens(plain, by_characters).tolist() == by_characters([dataset.caption(row) for row in range(3)])


def test_each_tag_is_counted_once(make: Maker) -> None:
    asked: list[str] = []

    def count(texts: object) -> list[int]:
        asked.extend(texts)  # type: ignore[arg-type]
        return by_characters(texts)

    dataset = make(*["hat, skirt"] * 50)
    assert set(caption_tokens(dataset, count).tolist()) == {len("hat,skirt")}
    assert len(asked) == 2 * 2 + 1


# --- bleeding ---------------------------------------------------------------------------------------------------------


def test_a_shared_beginning_gets_the_name_the_author_gave(make: Maker) -> None:
    found = find_bleeding(make("gun, aiming", "aiming at viewer", "aiming_at_viewer, gun"), BleedingParams(min_count=1))
    (cluster,) = found.clusters
    assert (cluster.kind, cluster.word) == ("same beginning", "aiming")
    assert found.renames == (("aiming at viewer", "aav"),)
    assert found.rename_list() == "aiming at viewer,aav\n"
    assert "'aiming' (same beginning)" in found.text()


def test_one_adjective_before_different_things(make: Maker) -> None:
    found = find_bleeding(make("gigantic breasts, gigantic hat", "gigantic hat"), BleedingParams(min_count=1))
    (cluster,) = found.clusters
    assert (cluster.kind, cluster.word, cluster.tags) == (
        "same adjective",
        "gigantic",
        ("gigantic hat", "gigantic breasts"),
    )
    assert (cluster.pictures, cluster.together) == (2, 0.5)


def test_words_of_a_trigger_and_kinds_of_a_thing(make: Maker) -> None:
    dataset = make("OyamaMahiro, 1girl, oyama family, skirt", "OyamaMahiro, plaid skirt, skirt")
    found = find_bleeding(dataset, BleedingParams(min_count=1))
    assert [(cluster.kind, cluster.tags) for cluster in found.clusters] == [
        ("word of a trigger", ("OyamaMahiro", "oyama family"))
    ]
    assert [old for old, _ in found.renames] == ["oyama family"]
    assert find_bleeding(dataset, BleedingParams(min_count=2)).clusters == ()
    assert "no tags share" in find_bleeding(dataset, BleedingParams(min_count=9)).text()
    json.dumps(found.to_json())


def test_new_names_are_new(make: Maker) -> None:
    dataset = make("aiming, aav", "aiming at viewer, aiming at victim, aaviewer")
    found = find_bleeding(dataset, BleedingParams(min_count=1, max_clusters=1))
    names = [new for _, new in found.renames]
    assert len(set(names)) == 2
    assert not set(names) & {"aav", "aaviewer"}


# --- profile ----------------------------------------------------------------------------------------------------------


def test_steps_of_record_002(make: Maker, tmp_path: Path) -> None:
    dataset = make("wolf, standing", "wolf, solo")
    many = dataset.take([0, 1] * 262 + [0], note="525 pictures")
    profile = profile_of(many, ProfileParams(resolution_px=512, epochs=18))
    assert (profile.pictures, profile.steps) == (525, 9450)
    assert "525 pictures x 18 epochs at batch size 1 = 9450 steps" in profile.text()


def test_shares_by_what_tags_say(make: Maker) -> None:
    dataset = make(
        "1girl, simple background, english text",
        "2girls, white_background",
        "1girl, 1boy, forest, portrait",
        "Solo, sketch, background",
    )
    profile = profile_of(dataset, ProfileParams())
    assert profile.single_subject == 0.5
    assert dict(profile.subjects) == {
        "text or symbols": 0.25,
        "simple background": 0.5,
        "face in focus": 0.25,
        "sketch or monochrome": 0.25,
    }
    assert profile.captions == {"from their own file": 4, "from the folder's name": 0, "none": 0}


def test_tags_by_category_as_record_002_counts_them(make: Maker) -> None:
    dataset = make("wolf, lion, running, hat", "wolf, tree")
    tags = dataset.tags.with_categories({"wolf": "species", "lion": "species", "running": "general", "hat": "general"})
    profile = profile_of(replace(dataset, tags=tags), ProfileParams())
    assert dict(profile.rows())["tags total / species / general"] == "5/2/2"
    assert json.loads(json.dumps(profile.to_json()))["tags"]["not known"] == 1
    assert all(len(row) == 2 for row in profile.table())


def test_a_profile_without_tags(make: Maker) -> None:
    profile = profile_of(make("", ""), ProfileParams())
    assert profile.tags["total"] == 0
    assert profile.tags_per_picture == (0.0, 0, 0)
    with pytest.raises(InputError, match="does not fit the bucket sides"):
        profile_of(make("a", folder="b"), ProfileParams(resolution_px=64))


# --- tag document -----------------------------------------------------------------------------------------------------


def test_spellings_are_aliases_and_counts_are_pictures(make: Maker) -> None:
    dataset = make("long hair, Long_Hair, a|b", "long hair", "Long_Hair, 初音ミク")
    params = DocumentParams(
        aliases='lengthy, long_hair\n# comment\n"x, y", a|b', notes="long hair, below the hips, always"
    )
    document = tag_document(dataset, params)
    first = document.rows[0]
    assert (first.tag, first.count) == ("Long_Hair", 3)
    assert first.aliases == ("long hair", "lengthy")
    assert first.notes == ("below the hips, always",)
    assert {row.tag: row.aliases for row in document.rows}["a|b"] == ("x, y",)
    assert "| a\\|b | 1 |  | x, y |  |" in document.text("Markdown")
    assert "初音ミク,1,,," in document.text("CSV").splitlines()
    assert json.loads(document.text("JSON"))["tags"][0]["notes"] == ["below the hips, always"]
    assert "3 tags of 3 pictures, 2 with aliases, 1 with notes" in document.report()


def test_entries_without_a_tag_are_named(make: Maker) -> None:
    document = tag_document(make("aiming, hat", "hat"), DocumentParams(notes="aimin, x", min_count=2))
    assert document.unmatched == ("entry 'aimin' matched 0 images, did you mean 'aiming'?",)
    assert [row.tag for row in document.rows] == ["hat"]
    assert tag_document(make("", folder="e"), DocumentParams()).rows == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aliases": "only one"}, "line 1 of the aliases is 'only one'; write alias,tag"),
        ({"aliases": "a,b\n,b"}, "line 2 of the aliases is ',b'; write alias,tag"),
        ({"notes": "tag,"}, "line 1 of the notes is 'tag,'; write tag,note"),
        ({"notes": '"open,b'}, "line 1 of the notes is '\"open,b'; write tag,note"),
        ({"form": "XML"}, "unknown value of form 'XML'"),
        ({"min_count": 0}, "min_count is 0, allowed is 1 to"),
    ],
)
def test_malformed_documents(make: Maker, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tag_document(make("a"), DocumentParams(**changes))  # type: ignore[arg-type]


def test_a_form_that_is_none(make: Maker) -> None:
    with pytest.raises(InputError, match="the form 'yaml' is not known, allowed are CSV, Markdown, JSON"):
        tag_document(make("a"), DocumentParams()).text("yaml")
