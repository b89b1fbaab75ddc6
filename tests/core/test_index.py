import threading

import pytest

from atelier_tests.helpers.child import run_child
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


def test_a_folder_in_its_place_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "facts.sqlite").mkdir()
    with pytest.raises(StorageError, match="delete it"):
        Index(tmp_path / "facts.sqlite")
