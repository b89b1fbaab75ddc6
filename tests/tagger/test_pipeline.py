"""Scoring a data set: the store, resuming, cancel, damaged pictures, parity."""

import io
import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.index import damage_pages
from atelier_tests.helpers.onnx_tagger import write_tagger
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.dataset.headers import CONTENT_KIND
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.tagger import contents, scoring_pass
from lora_atelier.tagger.pipeline import score_dataset
from lora_atelier.tagger.runner import open_tagger
from lora_atelier.tagger.scores import FLOOR, SparseScores
from lora_atelier.tagger.store import ScoreStore, merged, picture_key


@pytest.fixture
def tagger(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return open_tagger(write_tagger(tmp_path / "tiny"), threads=1)


def counting(tagger, monkeypatch):
    """Every picture that goes through the graph from now on."""
    seen = []
    real = tagger.score_batch
    lock = threading.Lock()

    def count(pictures):
        with lock:
            seen.extend(pictures)
        return real(pictures)

    monkeypatch.setattr(tagger, "score_batch", count)
    return seen


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_single_batch_and_store_give_the_same_scores(tmp_path, make_dataset, index, layout, batch):
    pytest.importorskip("onnx")
    facts = {} if layout == "NHWC" else {
        "layout": "NCHW", "scale": 1.0, "mean": (0.5,) * 3, "deviation": (0.5,) * 3, "sigmoid": False, "output": "out",
    }  # fmt: skip
    tagger = open_tagger(write_tagger(tmp_path / "x", batch=batch, **facts), threads=1)
    dataset = make_dataset(11)
    first = score_dataset(dataset, tagger, index, workers=2)
    again = score_dataset(dataset, tagger, index)
    assert (first.inferred, first.from_store, again.inferred, again.from_store) == (11, 0, 0, 11)
    one_by_one = np.stack([tagger.tag_image(Image.open(dataset.path(row))).values for row in range(11)])
    together = np.stack(
        [scores.values for scores in tagger.tag_images([Image.open(dataset.path(r)) for r in range(11)])]
    )
    np.testing.assert_allclose(one_by_one, together, atol=1e-6)
    expected = np.where(one_by_one >= FLOOR, one_by_one, 0.0)
    for scored in (first, again):
        dense = scored.scores.dense(len(tagger.scored))
        dense[dense < FLOOR] = 0.0
        np.testing.assert_allclose(dense, expected, atol=1e-6)
    np.testing.assert_array_equal(first.scores.values, again.scores.values)


def test_a_large_jpeg_reads_the_same_alone_and_in_a_data_set(tmp_path, tagger, index):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).resize((300, 200)).save(folder / "a.jpg", quality=90)
    dataset = open_folder(folder, DatasetParams())
    scored = score_dataset(dataset, tagger, index)
    path = dataset.path(0)
    assert tagger.decode(path).size == (38, 25)
    alone = tagger.tag_image(tagger.decode(path)).values
    ids, values = scored.scores.row(0)
    np.testing.assert_allclose(values, alone[ids], atol=1e-6)
    full = tagger.tag_image(Image.open(path)).values
    assert np.abs(full - alone).max() < 0.05  # decoding at a fraction changes little


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_photo_turned_by_exif_is_turned_once(tmp_path, tagger, index, ending):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.new("RGB", (60, 20), (255, 0, 0))  # upright it is 20 wide, so that white lies left and right of it
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / f"a.{ending}", exif=exif)
    scored = score_dataset(open_folder(folder, DatasetParams()), tagger, index)
    values = scored.scores.dense(len(tagger.scored))[0]
    names = tagger.scored.names
    assert values[names.index("white_left")] > 0.5 > values[names.index("white_top")]
    alone = tagger.tag_image(Image.open(folder / f"a.{ending}")).values
    np.testing.assert_allclose(values[alone >= FLOOR], alone[alone >= FLOOR], atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "L", "CMYK"])
def test_a_picture_of_any_mode_reads_the_same_alone_and_in_a_data_set(tmp_path, tagger, index, mode):
    folder = tmp_path / "odd"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 30, 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 251)
    else:
        picture = Image.fromarray(noise, "RGBA").convert(mode)
    picture.save(folder / ("a.tif" if mode == "CMYK" else "a.png"))
    dataset = open_folder(folder, DatasetParams())
    values = score_dataset(dataset, tagger, index).scores.dense(len(tagger.scored))[0]
    alone = tagger.tag_image(Image.open(dataset.path(0))).values
    np.testing.assert_allclose(values[alone >= FLOOR], alone[alone >= FLOOR], atol=1e-6)


def test_scores_are_kept_under_the_content_that_was_seen(tmp_path, tagger, make_dataset, index):
    dataset = make_dataset(4)
    score_dataset(dataset, tagger, index)
    Image.new("RGB", (24, 24), (0, 0, 255)).save(dataset.path(0))  # edited after the data set was opened
    other = open_tagger(write_tagger(tmp_path / "other", size_px=20), threads=1)
    late = score_dataset(dataset, other, index).scores.dense(len(other.scored))
    anew = score_dataset(open_folder(tmp_path / "pictures", DatasetParams()), other, index)
    assert (anew.inferred, anew.from_store) == (0, 4)
    np.testing.assert_array_equal(anew.scores.dense(len(other.scored)), late)
    assert late[0][other.scored.names.index("blue")] > 0.5


def test_a_file_too_large_to_keep_is_scored_the_same(tagger, make_dataset, index, tmp_path, monkeypatch):
    dataset = make_dataset(6)
    first = score_dataset(dataset, tagger, index)
    monkeypatch.setattr(contents, "MOST_BYTES", 1)
    with Index(tmp_path / "other.sqlite") as other:
        again = score_dataset(dataset, tagger, other)
        assert dict(other.items(CONTENT_KIND)) == dict(index.items(CONTENT_KIND))
    np.testing.assert_array_equal(first.scores.values, again.scores.values)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no hints about files")
def test_the_system_is_told_to_read_a_file_ahead(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"picture")
    hints = []
    monkeypatch.setattr(scoring_pass.os, "posix_fadvise", lambda _, *given: hints.append(given))
    scoring_pass.fetch(tmp_path / "a")
    scoring_pass.fetch(tmp_path / "none")
    assert hints == [(0, 0, os.POSIX_FADV_WILLNEED)]


def test_a_file_is_read_to_its_end_where_the_system_takes_no_hint(tmp_path, monkeypatch):
    monkeypatch.delattr(scoring_pass.os, "posix_fadvise", raising=False)
    monkeypatch.setattr(scoring_pass, "_PIECE_BYTES", 1000)
    (tmp_path / "a").write_bytes(bytes(2500))
    pieces = []

    class Watched(io.FileIO):
        def readinto(self, buffer):
            pieces.append(super().readinto(buffer))
            return pieces[-1]

    monkeypatch.setattr(scoring_pass, "open", lambda path, *_, **__: Watched(path), raising=False)
    scoring_pass.fetch(tmp_path / "a")
    assert pieces == [1000, 1000, 500, 0]


def test_equal_contents_are_inferred_once(tmp_path, tagger, make_dataset, index, monkeypatch):
    make_dataset(3)
    for n in range(5):
        shutil.copyfile(tmp_path / "pictures" / "00001.png", tmp_path / "pictures" / f"copy{n}.png")
    dataset = open_folder(tmp_path / "pictures", DatasetParams())
    seen = counting(tagger, monkeypatch)
    scored = score_dataset(dataset, tagger, index)
    assert len(seen) == scored.inferred == 3
    assert scored.from_store == 5
    rows = [n for n in range(len(dataset)) if "copy" in dataset.names[n] or dataset.names[n] == "00001.png"]
    for row in rows[1:]:
        np.testing.assert_array_equal(scored.scores.row(row)[1], scored.scores.row(rows[0])[1])


def test_a_renamed_file_is_known_by_its_content(tmp_path, tagger, make_dataset, index, monkeypatch):
    score_dataset(make_dataset(4), tagger, index)
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    seen = counting(tagger, monkeypatch)
    scored = score_dataset(open_folder(tmp_path / "elsewhere", DatasetParams()), tagger, index)
    assert (len(seen), scored.from_store) == (0, 4)


def test_an_edited_file_is_scored_anew(tmp_path, tagger, make_dataset, index):
    dataset = make_dataset(4)
    score_dataset(dataset, tagger, index)
    Image.new("RGB", (30, 30), (0, 0, 255)).save(dataset.path(0))
    scored = score_dataset(open_folder(tmp_path / "pictures", DatasetParams()), tagger, index)
    assert (scored.inferred, scored.from_store) == (1, 3)


def test_another_model_or_preparation_has_scores_of_its_own(tmp_path, tagger, make_dataset, index):
    dataset = make_dataset(2)
    score_dataset(dataset, tagger, index)
    other = open_tagger(write_tagger(tmp_path / "other", size_px=20), threads=1)
    assert score_dataset(dataset, other, index).inferred == 2
    assert other.preparation != tagger.preparation
    assert other.identity != tagger.identity


def test_a_crop_is_scored_as_the_part_it_is(tmp_path, tagger, index):
    folder = tmp_path / "halves"
    folder.mkdir()
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    picture.save(folder / "a.png")
    dataset = open_folder(folder, DatasetParams())
    names = tagger.scored.names
    found = {}
    for side, crop in (("left", [0, 0, 20, 20]), ("right", [20, 0, 40, 20])):
        cropped = dataset.with_crops(np.array([crop], np.int32), note="crop")
        ids, values = score_dataset(cropped, tagger, index).scores.row(0)
        found[side] = {names[place] for place, value in zip(ids, values, strict=True) if value > 0.5}
    assert "red" in found["left"] - found["right"]
    assert "blue" in found["right"] - found["left"]


def test_cancel_keeps_what_is_done_and_the_next_run_goes_on(tagger, make_dataset, index, monkeypatch):
    dataset = make_dataset(120)
    quick = tagger.score_batch
    monkeypatch.setattr(tagger, "score_batch", lambda pictures: (time.sleep(0.01 * len(pictures)), quick(pictures))[1])
    seen = counting(tagger, monkeypatch)
    with pytest.raises(Cancelled):
        score_dataset(dataset, tagger, index, progress=CancelAfter(2), workers=2)
    done = ScoreStore(index, tagger).count()
    assert 0 < done == len(seen) < 120
    scored = score_dataset(dataset, tagger, index, workers=2)
    assert len(seen) == 120
    assert (scored.from_store, scored.inferred) == (done, 120 - done)


def test_a_graph_that_fails_in_the_middle_keeps_what_is_done(tagger, make_dataset, index, monkeypatch):
    dataset = make_dataset(60)
    real, calls = tagger.score_batch, []

    def fails(pictures):
        calls.append(len(pictures))
        if len(calls) == 5:
            raise FormatError("the ONNX graph could not run: out of memory")
        return real(pictures)

    monkeypatch.setattr(tagger, "score_batch", fails)
    with pytest.raises(FormatError, match="out of memory"):
        score_dataset(dataset, tagger, index, workers=1)
    assert ScoreStore(index, tagger).count() == sum(calls) - calls[4]


def test_damaged_pictures_are_listed_and_the_others_tagged(tmp_path, tagger, make_dataset, index):
    dataset = make_dataset(6)
    whole = dataset.path(1).read_bytes()
    dataset.path(1).write_bytes(whole[: len(whole) // 2])
    dataset.path(2).unlink()
    dataset.path(3).write_bytes(b"")
    scored = score_dataset(dataset, tagger, index)
    assert sorted(scored.failed) == [1, 2, 3]
    assert scored.inferred == 3
    text = "\n".join(scored.lines(dataset))
    assert "00002.png: the file is gone" in text
    assert "3 pictures could not be read" in text
    dataset.path(3).write_bytes(whole)
    assert sorted(score_dataset(dataset, tagger, index).failed) == [1, 2]


def test_nothing_readable_is_refused_with_a_reason(tagger, make_dataset, index):
    dataset = make_dataset(2)
    for row in range(2):
        dataset.path(row).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"none of the 2 pictures .*00000\.png: it is not a picture"):
        score_dataset(dataset, tagger, index)


def test_progress_ends_at_the_whole_and_goes_forward_only(tagger, make_dataset, index, monkeypatch):
    monkeypatch.setattr(scoring_pass, "_REPORT_S", 0.0)
    progress = RecordingProgress()
    score_dataset(make_dataset(30), tagger, index, progress=progress)
    done = [update[0] for update in progress.updates]
    assert done == sorted(done)
    assert progress.updates[-1][:2] == (30, 30)


def test_every_picture_is_accounted_for(tagger, make_dataset, index):
    dataset = make_dataset(150)
    dataset.path(70).unlink()
    scored = score_dataset(dataset, tagger, index, workers=3)
    assert (scored.inferred, scored.from_store, list(scored.failed)) == (149, 0, [70])
    assert [row for row in range(150) if not len(scored.scores.row(row)[0])] == [70]


def test_a_damaged_entry_of_the_store_is_computed_again(tagger, make_dataset, index):
    dataset = make_dataset(6)
    first = score_dataset(dataset, tagger, index)
    store = ScoreStore(index, tagger)
    keys = [key for key, _ in index.items(store.kind)]
    good = dict(index.items(store.kind))
    record = np.dtype([("id", "<u2"), ("score", "<f4")])
    bad = np.frombuffer(good[keys[1]], dtype=record).copy()
    bad["score"][0] = np.nan
    wrong_place = np.array([(9999, 0.5)], dtype=record)
    index.put_many(store.kind, [(keys[0], b"xyz"), (keys[1], bad.tobytes()), (keys[2], wrong_place.tobytes())])
    again = score_dataset(dataset, tagger, index)
    assert (again.inferred, again.from_store) == (3, 3)
    np.testing.assert_array_equal(again.scores.values, first.scores.values)
    assert dict(index.items(store.kind)) == good


def test_an_index_damaged_in_the_middle_of_a_run_loses_nothing(tagger, make_dataset, index, monkeypatch):
    dataset = make_dataset(150)
    monkeypatch.setattr(scoring_pass, "FLUSH_PICTURES", 4)
    index.put_many("other", [(b"%05d" % n, bytes(40)) for n in range(3000)])

    class Damaging(SilentProgress):
        done = False

        def update(self, value, total, text=""):
            if value > 50 and not self.done:
                self.done = True
                damage_pages(index.path, (20, 21))

    monkeypatch.setattr(scoring_pass, "_REPORT_S", 0.0)
    scored = score_dataset(dataset, tagger, index, workers=2, progress=Damaging())
    index.release()  # what the connection has in its cache was read before the damage
    index.get_many("other", [b"%05d" % n for n in range(3000)])
    notes = [*scored.notes, *index.take_notes()]
    assert len(notes) == 1
    assert "was damaged" in notes[0]
    assert (scored.inferred, scored.failed) == (150, {})
    with Index(index.path.with_name("fresh.sqlite")) as fresh:
        np.testing.assert_array_equal(score_dataset(dataset, tagger, fresh).scores.values, scored.scores.values)
    again = score_dataset(dataset, tagger, index)
    assert again.inferred + again.from_store == 150
    np.testing.assert_array_equal(again.scores.values, scored.scores.values)
    assert not again.notes


def test_two_runs_at_once_lose_nothing(tagger, make_dataset, index):
    dataset = make_dataset(80)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(score_dataset(dataset, tagger, index, workers=1)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    np.testing.assert_array_equal(results[0].scores.values, results[1].scores.values)
    assert ScoreStore(index, tagger).count() == 80


def test_on_a_gpu_at_most_two_batches_are_on_the_device(tagger, make_dataset, index, monkeypatch):
    dataset = make_dataset(64)
    inside, most, sizes = [0], [0], []
    real, lock = tagger.score_batch, threading.Lock()

    def watched(pictures):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            sizes.append(len(pictures))
        time.sleep(0.01)
        with lock:
            inside[0] -= 1
        return real(pictures)

    monkeypatch.setattr(tagger, "score_batch", watched)
    monkeypatch.setattr(type(tagger), "on_cpu", False)
    scored = score_dataset(dataset, tagger, index, workers=6)
    assert scored.inferred == 64
    assert most[0] <= 2
    assert set(sizes) == {tagger.batch_size}  # whole batches, however long they take


def test_keys_and_merging():
    assert picture_key(b"x", None) != picture_key(b"x", (0, 0, 4, 4)) != picture_key(b"x", (0, 0, 4, 5))
    stored = SparseScores(
        offsets=np.array([0, 2, 2, 3]), ids=np.array([1, 4, 2], np.int32), values=np.array([0.1, 0.2, 0.3], np.float32)
    )
    fresh = SparseScores(
        offsets=np.array([0, 1, 3]), ids=np.array([7, 8, 9], np.int32), values=np.array([0.9, 0.8, 0.7], np.float32)
    )
    both = merged(stored, np.array([1, 0]), fresh)
    assert both.ids.tolist() == [8, 9, 7, 2]
    assert both.row(1)[1] == pytest.approx(0.9)
    assert merged(stored, np.zeros(0, np.int64), fresh.part(0, 0)) is stored
