"""Captions are written with a backup, never over somebody's edit, and can be put back."""

import json
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from atelier_tests.helpers.pictures import make_folder, save_picture
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset.backups import backup_name, find_backup, list_backups, restore_captions
from lora_atelier.dataset.save import SaveParams, save_captions
from lora_atelier.dataset.scan import DatasetParams, open_folder


@pytest.fixture
def index(tmp_path_factory):
    with Index(tmp_path_factory.mktemp("index") / "index.sqlite") as opened:
        yield opened


@pytest.fixture
def backups(tmp_path_factory):
    return tmp_path_factory.mktemp("backups")


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path, {"1.png": "old, one", "2.png": "old, two", "3.png": None})


def changed(folder):
    dataset = open_folder(folder, DatasetParams())
    return dataset.with_tags({0: ["zwx", "new"], 2: ["zwx"]}, note="changed")


def saved(dataset, backups, index=None, **params):
    options = {key: params.pop(key) for key in ("progress", "allowed") if key in params}
    return save_captions(dataset, SaveParams(**params), backup_dir=backups, index=index, **options)


def texts(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


OLD = {"1.txt": "old, one", "2.txt": "old, two"}
NEW = {"1.txt": "zwx, new\n", "2.txt": "old, two", "3.txt": "zwx\n"}


def test_captions_are_written_and_put_back(folder, backups, index):
    report = saved(changed(folder), backups, index)
    assert texts(folder) == NEW
    assert report.counts["new files"] == report.counts["replaced (the old text is in the backup)"] == 1
    assert report.counts["already so"] == 1
    assert report.backup in report.text()
    again = saved(changed(folder), backups, index)
    assert again.counts["already so"] == 3
    assert again.backup == ""
    assert list_backups(backups) == [report.backup]
    back = restore_captions(find_backup(backups, "latest"), index=index, allowed=lambda path: True)
    assert texts(folder) == OLD
    assert back.counts == {"put back": 1, "taken away (there were none before)": 1, "as before": 0}
    assert restore_captions(find_backup(backups, report.backup), allowed=lambda path: True).counts["as before"] == 2


def test_a_dry_run_writes_nothing(folder, backups):
    report = saved(changed(folder), backups, dry_run=True)
    assert texts(folder) == OLD
    assert list_backups(backups) == []
    assert report.text().startswith("Would write .txt captions for 3 pictures")
    assert report.counts["new files"] == 1


def test_an_edit_after_we_wrote_is_never_overwritten(folder, backups, index):
    saved(changed(folder), backups, index)
    (folder / "1.txt").write_text("zwx, edited by hand", encoding="utf-8")
    later = changed(folder).with_tags({0: ["zwx", "third"], 2: ["zwx", "third"]}, note="again")
    report = saved(later, backups, index)
    assert (folder / "1.txt").read_text() == "zwx, edited by hand"
    assert (folder / "3.txt").read_text() == "zwx, third\n"
    (refused,) = report.refused
    assert str(refused) == (
        "1.png: its caption file '1.txt' was edited after it was written; delete it to have it anew"
    )
    back = restore_captions(find_backup(backups, list_backups(backups)[-1]), index=index, allowed=lambda path: True)
    assert (folder / "1.txt").read_text() == "zwx, edited by hand"
    assert {entry.reason for entry in back.refused} == {"it was edited after it was written"}


def test_an_edit_between_looking_and_writing_is_kept(folder, backups):
    class Editor(RecordingProgress):
        def update(self, done, total, text=""):
            if text == "Writing captions" and done == 0:
                (folder / "1.txt").write_text("another program", encoding="utf-8")

    report = saved(changed(folder), backups, progress=Editor())
    assert (folder / "1.txt").read_text() == "another program"
    assert report.refused[0].reason == "its caption file '1.txt' changed while captions were saved"


def test_cancel_keeps_what_is_written_and_the_next_save_goes_on(folder, backups, index):
    with pytest.raises(Cancelled):
        saved(changed(folder), backups, index, progress=CancelAfter(3))
    assert texts(folder) == {**OLD, "1.txt": "zwx, new\n"}
    assert len(list_backups(backups)) == 1
    report = saved(changed(folder), backups, index)
    assert texts(folder) == NEW
    assert report.counts["already so"] == 2
    for name in list_backups(backups):
        restore_captions(backups / name, index=index, allowed=lambda path: True)
    assert texts(folder) == OLD


def test_cancel_while_planning_leaves_nothing_behind(folder, backups):
    with pytest.raises(Cancelled):
        saved(changed(folder), backups, progress=CancelAfter(1))
    assert texts(folder) == OLD
    assert list(backups.iterdir()) == []


def test_pictures_that_share_a_caption_file(folder, backups):
    save_picture(folder / "1.jpg")
    dataset = open_folder(folder, DatasetParams())
    same = dataset.with_tags({0: ["both"], 1: ["both"]}, note="same")
    assert not saved(same, backups).refused
    assert (folder / "1.txt").read_text() == "both\n"
    other = dataset.with_tags({0: ["one"], 1: ["two"]}, note="other")
    (refused,) = saved(other, backups).refused
    assert "its caption file '1.txt' is that of '1.jpg' too, with other tags" in str(refused)
    assert (folder / "1.txt").read_text() == "one\n"


def test_json_keeps_categories_scores_order_and_what_the_site_says(tmp_path, backups):
    post = {"tag_string_general": "hat solo", "tag_string_artist": "me", "rating": "q", "score": 7, "fav_count": 3}
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.png.json").write_text(json.dumps(post))
    dataset = open_folder(tmp_path, DatasetParams())
    tags = dataset.tags.replaced({0: ["zwx, with comma", "hat", "me"]}).with_categories({"zwx, with comma": "trigger"})
    tags = tags.with_scores(np.array([np.nan, 0.5, np.nan], dtype=np.float16))
    dataset = dataset.with_tag_column(tags, note="x")
    saved(dataset, backups, caption_extension=".json")
    data = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert data == {
        "written_by": "lora-atelier",
        "caption": "zwx, with comma, hat, me",
        "tags": {"trigger": ["zwx, with comma"], "general": ["hat"], "artist": ["me"]},
        "scores": {"hat": 0.5},
        "rating": "questionable",
        "score": 7.0,
        "fav_count": 3,
    }
    back = open_folder(tmp_path, DatasetParams())
    assert set(back.tags.row(0)) == {"zwx, with comma", "hat", "me"}
    assert back.tags.row(0).index("hat") < back.tags.row(0).index("me")
    assert "JSON of this pack: 1" in back.summary()
    assert (back.site_scores[0], back.site_favourites[0]) == (7, 3)
    report = saved(dataset, backups)
    assert "A tag with a comma in it will be read as two: 1 caption" in report.text()


@pytest.mark.parametrize("site_tags", ["without caption", "before caption", "never"])
def test_what_was_saved_last_is_what_is_read(folder, backups, index, site_tags):
    params = DatasetParams(site_tags=site_tags)

    def said():
        return open_folder(folder, params).tags.row(0)

    first = open_folder(folder, params).with_tags({0: ["first", "one"]}, note="x")
    second = first.with_tags({0: ["second"]}, note="x")
    for dataset, ending in (
        (first, ".txt"), (second, ".json"), (first, ".txt"), (first, ".json"), (second, ".txt"), (second, ".json"),
        (first, ".txt"),
    ):  # fmt: skip
        saved(dataset, backups, index, caption_extension=ending)
        assert said() == dataset.tags.row(0), ending
    (folder / "1.txt").write_text("by hand", encoding="utf-8")
    os.utime(folder / "1.txt", (2e9, 2e9))
    assert said() == ("by hand",)
    report = saved(second, backups, index, caption_extension=".caption")
    assert "Beside 2 captions lies a .txt, which is read first" in report.text()


def test_an_empty_caption_saved_as_json_stays_empty(tmp_path, backups):
    save_picture(tmp_path / "10_zwx cat" / "a.png")
    dataset = open_folder(tmp_path, DatasetParams()).with_tags({0: []}, note="x")
    saved(dataset, backups, caption_extension=".json")
    assert open_folder(tmp_path, DatasetParams()).tags.row(0) == ()


def test_json_of_another_program_is_never_overwritten(folder, backups, index):
    post = '{"id": 7, "source": "somewhere", "tag_string_general": "old one"}'
    (folder / "1.json").write_text(post, encoding="utf-8")
    report = saved(changed(folder), backups, index, caption_extension=".json")
    assert (folder / "1.json").read_text(encoding="utf-8") == post
    assert "'1.json' was written by another program" in str(report.refused[0])
    assert len(report.refused) == 1
    again = saved(changed(folder).with_tags({2: ["zwx", "more"]}, note="x"), backups, index, caption_extension=".json")
    assert again.counts["replaced (the old text is in the backup)"] == 1


def test_without_an_index_the_report_says_that_edits_cannot_be_told(folder, backups, index):
    note = "edited captions could not be told apart"
    assert note in saved(changed(folder), backups).text()
    assert note not in saved(changed(folder).with_tags({0: ["other"]}, note="x"), backups, index).text()


def test_no_file_is_made_for_nothing_and_an_emptied_caption_is_empty(folder, backups):
    dataset = open_folder(folder, DatasetParams()).with_tags({0: []}, note="emptied")
    report = saved(dataset, backups)
    assert texts(folder) == {"1.txt": "\n", "2.txt": "old, two"}
    assert report.counts["without a caption, no file made"] == 1


def test_only_allowed_folders_are_written(folder, backups):
    report = saved(changed(folder), backups, allowed=lambda path: False)
    assert texts(folder) == OLD
    assert {entry.reason for entry in report.refused} == {"its folder lies outside the folders that may be written"}


def bad_backup(path, kind):
    if kind == "no zip":
        path.write_bytes(b"nothing")
        return
    entry = {"path": str(path.parent / "x.txt"), "member": None, "new": ""}
    contents = {
        "no manifest": {},
        "no json": {"manifest.json": "{"},
        "other version": {"manifest.json": json.dumps({"version": 2, "files": []})},
        "no path": {"manifest.json": json.dumps({"version": 1, "files": [{**entry, "path": 3}]})},
        "missing member": {"manifest.json": json.dumps({"version": 1, "files": [{**entry, "member": "1.txt"}]})},
        "bomb": {
            "manifest.json": json.dumps({"version": 1, "files": [{**entry, "member": "1.txt"}]}),
            "1.txt": "a" * 10_000_000,
        },
    }[kind]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in contents.items():
            archive.writestr(name, text)


@pytest.mark.parametrize(
    "kind", ["no zip", "no manifest", "no json", "other version", "no path", "missing member", "bomb"]
)
def test_a_damaged_backup_is_refused(tmp_path, kind):
    path = tmp_path / "b.captions.zip"
    bad_backup(path, kind)
    with pytest.raises(AtelierError, match="b.captions.zip is no backup of captions"):
        restore_captions(path, allowed=lambda path: True)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("target", ["../outside/x.txt", "{root}/x.py", "relative.txt"])
def test_a_backup_cannot_write_elsewhere(tmp_path, target):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside").mkdir()
    place = os.path.join(inside, target) if target.startswith("..") else target.replace("{root}", str(inside))
    path = tmp_path / "b.captions.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.txt", "evil")
        files = [{"path": place, "member": "1.txt", "new": ""}]
        archive.writestr("manifest.json", json.dumps({"version": 1, "files": files}))
    report = restore_captions(path, allowed=lambda real: real.is_relative_to(inside))
    assert report.refused[0].reason == "it lies outside the folders that may be written"
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["b.captions.zip", "inside", "outside"]


def test_names_of_backups_are_in_the_order_of_time():
    names = [backup_name("set") for _ in range(50)]
    assert [name[:26] for name in names] == sorted(name[:26] for name in names)
    assert len({name[:26] for name in names}) > 1


def test_backups_are_found_by_name(backups):
    with pytest.raises(AtelierError, match="there is no backup of captions yet"):
        find_backup(backups, "")
    (backups / "2026-01-01 a.captions.zip").touch()
    with pytest.raises(AtelierError, match="there is no backup '2026-01-02 a.captions.zip'; the newest are 2026-01-01"):
        find_backup(backups, "2026-01-02 a.captions.zip")


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "symlink"), reason="needs symbolic links")
def test_nothing_is_written_through_links(folder, backups, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("secret")
    dataset = changed(folder)
    (folder / "1.txt").unlink()
    (folder / "1.txt").symlink_to(outside)
    report = saved(dataset, backups)
    assert outside.read_text() == "secret"
    assert "'1.txt' is a link; nothing is written through links" in str(report.refused[0])


def test_a_picture_that_is_gone_gets_no_caption(folder, backups):
    dataset = changed(folder)
    (folder / "3.png").unlink()
    assert saved(dataset, backups).refused[0].reason == "the picture is gone"
    assert not (folder / "3.txt").exists()


def test_two_saves_at_once_lose_nothing(folder, backups, index):
    from concurrent.futures import ThreadPoolExecutor

    names = [f"{n}.png" for n in range(60)]
    make_folder(folder, {name: f"old {name}" for name in names})
    base = open_folder(folder, DatasetParams())
    jobs = [base.with_tags({row: [f"writer {k}"] for row in range(len(base))}, note="w") for k in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda dataset: saved(dataset, backups, index), jobs))
    now = set(texts(folder).values())
    assert now <= {"writer 0\n", "writer 1\n"}
    kept = set()
    for name in list_backups(backups):
        with zipfile.ZipFile(backups / name) as archive:
            kept |= {archive.read(member).decode() for member in archive.namelist() if member != "manifest.json"}
    assert {f"old {name}" for name in names} <= kept
    assert [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".part"))] == []


def test_replace_keeps_the_dataclass(folder):
    assert replace(SaveParams(), dry_run=True).dry_run
