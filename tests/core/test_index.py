import sqlite3
import threading

import pytest

from atelier_tests.helpers.child import run_child
from atelier_tests.helpers.index import damage_pages
from lora_atelier.core.errors import StorageError
from lora_atelier.core.index import Index


def test_values_come_back_in_the_order_of_the_keys(tmp_path):
    with Index(tmp_path / "facts.sqlite") as index:
        index.put_many("size", [(b"%d" % n, b"v%d" % n) for n in range(1200)])
        keys = [b"1199", b"none", b"0", b"0"]
        assert index.get_many("size", keys) == [b"v1199", None, b"v0", b"v0"]
        assert index.get("other", b"0") is None
        assert index.count("size") == 1200
    with Index(tmp_path / "facts.sqlite") as again:
        assert again.get("size", b"7") == b"v7"


def test_later_values_replace_and_deleted_ones_are_gone(tmp_path):
    with Index(tmp_path / "facts.sqlite") as index:
        index.put_many("k", [(b"a", b"1"), (b"b", b"2")])
        index.put_many("k", [(b"a", b"3")])
        index.delete_many("k", [b"b"])
        assert list(index.items("k")) == [(b"a", b"3")]


def test_a_failed_write_leaves_nothing(tmp_path):
    with Index(tmp_path / "facts.sqlite") as index:
        with pytest.raises(StorageError):
            index.put_many("k", [(b"a", b"1"), (b"b", None)])
        assert index.count("k") == 0


def test_threads_share_one_index(tmp_path):
    with Index(tmp_path / "facts.sqlite") as index:

        def write(number):
            for item in range(50):
                index.put_many("k", [(b"%d-%d" % (number, item), b"v")])

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert index.count("k") == 200


def test_two_processes_write_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lora_atelier.core.index import Index\n"
        "index = Index(Path(sys.argv[1]))\n"
        "for n in range(100): index.put_many('k', [(b'child%d' % n, b'v')])\n"
    )
    path = tmp_path / "facts.sqlite"
    with Index(path) as index:
        thread = threading.Thread(target=run_child, args=(code, str(path)), kwargs={"cwd": tmp_path})
        thread.start()
        for number in range(100):
            index.put_many("k", [(b"here%d" % number, b"v")])
        thread.join()
        assert index.count("k") == 200


def test_a_damaged_file_is_moved_aside_and_told(tmp_path):
    path = tmp_path / "facts.sqlite"
    path.write_bytes(b"no database at all " * 100)
    said = []
    with Index(path, status=said.append) as index:
        index.put_many("k", [(b"a", b"1")])
    assert "damaged" in said[0]
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"no database")


def filled(index, number=4000):
    index.put_many("scores", [(n.to_bytes(16, "big"), b"%d" % n * 20) for n in range(number)])
    index.put_many("written", [(b"a.txt", b"hash")])


def test_damage_met_later_is_moved_aside_and_what_can_be_read_is_kept(tmp_path):
    path = tmp_path / "facts.sqlite"
    said = []
    with Index(path) as index:
        filled(index)
    with Index(path, status=said.append) as index:
        assert index.get("scores", bytes(16))
        damage_pages(path, [40])
        keys = [n.to_bytes(16, "big") for n in range(4000)]
        found = index.get_many("scores", keys)
        lost = [n for n, value in enumerate(found) if value is None]
        assert 0 < len(lost) < 200  # a page of them
        assert all(value == b"%d" % n * 20 for n, value in enumerate(found) if value is not None)
        assert index.get("written", b"a.txt") == b"hash"
        index.put_many("scores", [(keys[n], b"again") for n in lost])
        assert index.get("scores", keys[lost[0]]) == b"again"
        (note,) = index.take_notes()
        assert index.take_notes() == []
    assert said == [note]
    assert "facts.sqlite was damaged" in note
    (aside,) = [file for file in tmp_path.glob("*.damaged-*") if not file.name.endswith(("-wal", "-shm"))]
    assert aside.name in note
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_write_that_meets_damage_is_not_lost(tmp_path):
    path = tmp_path / "facts.sqlite"
    with Index(path) as index:
        filled(index)
    with Index(path) as index:
        damage_pages(path, range(2, 60))
        index.put_many("scores", [(n.to_bytes(16, "big"), b"new") for n in range(500, 600)])
        assert index.get_many("scores", [n.to_bytes(16, "big") for n in range(500, 600)]) == [b"new"] * 100
        assert len(index.take_notes()) == 1


def test_threads_that_meet_damage_at_once_mend_it_once(tmp_path):
    path = tmp_path / "facts.sqlite"
    with Index(path) as index:
        filled(index)
    with Index(path) as index:
        damage_pages(path, [40])
        errors = []

        def work(number):
            try:
                for _ in range(5):
                    index.get_many("scores", [n.to_bytes(16, "big") for n in range(4000)])
                    index.put_many("mine", [(b"%d" % number, b"v")])
            except StorageError as error:
                errors.append(error)
            finally:
                index.release()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert index.count("mine") == 4
        assert len(index.take_notes()) == 1


def test_a_file_that_another_process_has_mended_is_taken_as_it_is(tmp_path):
    path = tmp_path / "facts.sqlite"
    with Index(path) as first, Index(path) as second:
        filled(first)
        assert second.count("scores") == 4000
        damage_pages(path, [40])
        keys = [n.to_bytes(16, "big") for n in range(4000)]
        first.get_many("scores", keys)
        second.get_many("scores", keys)
        second.put_many("mine", [(b"k", b"v")])
        assert first.get("mine", b"k") == b"v"
        assert second.take_notes() == []
    assert len([file for file in tmp_path.glob("*.damaged-*") if not file.name.endswith(("-wal", "-shm"))]) == 1


def test_a_folder_in_its_place_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "facts.sqlite").mkdir()
    with pytest.raises(StorageError, match="delete it"):
        Index(tmp_path / "facts.sqlite")
