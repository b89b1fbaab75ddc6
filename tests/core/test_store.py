import os
import time

import pytest

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.progress import CancelAfter
from lora_atelier.core.errors import InputError, StorageError
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.store import Store


def writer(content):
    return lambda path: path.write_bytes(content)


def must_not_write(path):
    raise AssertionError("it is in the cache already")


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_put_then_path(tmp_path):
    store = Store(tmp_path / "cache", 1000)
    assert store.path("a.safetensors") is None
    path = store.put("a.safetensors", writer(b"x"))
    assert path.suffix == ".safetensors"
    assert store.path("a.safetensors") == path
    assert store.put("a.safetensors", must_not_write) == path
    assert Store(tmp_path / "cache", 1000).path("a.safetensors") == path


@pytest.mark.parametrize("key", ["", "../../x", "a:b", "CON", "\0", "ä" * 500, "x.PNG", "\ud800", "a/b.npz"])
def test_any_text_is_a_key(tmp_path, key):
    store = Store(tmp_path, 1000)
    path = store.put(key, writer(b"x"))
    assert path.parent.parent == tmp_path
    assert store.path(key) == path


def test_keys_are_kept_apart(tmp_path):
    store = Store(tmp_path, 10**6)
    paths = {store.put(f"key {index}", writer(b"%d" % index)) for index in range(200)}
    assert len(paths) == 200


def test_a_failed_write_leaves_nothing(tmp_path):
    store = Store(tmp_path, 1000)

    def half(path):
        path.write_bytes(b"half")
        CancelAfter(1).check()

    with pytest.raises(Cancelled):
        store.put("a", half)
    assert files_of(tmp_path) == []
    assert store.path("a") is None
    assert store.put("a", writer(b"x")).read_bytes() == b"x"


def test_eviction_takes_the_least_recently_used(tmp_path):
    first = Store(tmp_path, 300)
    paths = {key: first.put(key, writer(b"x" * 100)) for key in "abc"}
    del first
    for seconds, key in ((3000, "b"), (2000, "c"), (1000, "a")):
        age(paths[key], seconds)
    store = Store(tmp_path, 300)
    assert store.path("b") == paths["b"]
    store.put("d", writer(b"x" * 100))
    assert paths["b"].exists(), "in use by this store"
    assert not paths["c"].exists(), "the least recently used of the others"
    assert not paths["a"].exists(), "down to nine tenths"
    assert store.path("d") is not None


def test_files_in_use_by_any_store_of_this_process_stay(tmp_path):
    reader, other = Store(tmp_path, 100), Store(tmp_path, 100)
    path = reader.put("a", writer(b"x" * 90))
    age(path, 3000)
    other.put("b", writer(b"x" * 90))
    assert path.exists()
    reader.release("a")
    other.evict()
    assert not path.exists()


def test_what_another_process_touched_just_now_stays(tmp_path):
    first = Store(tmp_path, 100)
    path = first.put("a", writer(b"x" * 90))
    first.release("a")
    first.put("b", writer(b"x" * 90))
    assert path.exists()


def test_within_the_quota_nothing_goes(tmp_path):
    store = Store(tmp_path, 1000)
    path = store.put("a", writer(b"x" * 500))
    store.release("a")
    age(path, 10**6)
    assert store.evict() == 0
    assert path.exists()


def test_remove(tmp_path):
    store = Store(tmp_path, 1000)
    store.put("a", writer(b"broken"))
    store.remove("a")
    store.remove("a")
    assert store.path("a") is None
    assert store.put("a", writer(b"good")).read_bytes() == b"good"


def test_temporary_files_of_a_crash_are_swept(tmp_path):
    store = Store(tmp_path, 1000)
    path = store.put("a", writer(b"x"))
    old, fresh = path.with_name(".old.tmp"), path.with_name(".fresh.tmp")
    for temporary in (old, fresh):
        temporary.write_bytes(b"x")
    age(old, 3 * 24 * 3600)
    store.evict()
    assert files_of(tmp_path) == sorted([path, fresh])


def test_many_files_in_use_above_the_quota_are_not_looked_at_each_time(tmp_path, monkeypatch):
    store = Store(tmp_path, 1000)
    scans = []
    original = store._scan
    monkeypatch.setattr(store, "_scan", lambda: scans.append(1) or original())
    for index in range(200):
        store.put(str(index), writer(b"x" * 10))
    assert len(files_of(tmp_path)) == 200
    assert len(scans) < 40


def test_bad_quota_and_folder(tmp_path):
    with pytest.raises(InputError, match="quota"):
        Store(tmp_path, -1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        Store(tmp_path / "file", 10).put("a", writer(b"x"))


CHILD = """
import random, sys
from pathlib import Path
from lora_atelier.core.store import Store
store = Store(Path(sys.argv[1]), 50_000)
random.seed(int(sys.argv[2]))
for turn in range(400):
    key = f"key-{random.randrange(60)}"
    content = key.encode() * 300
    path = store.put(key, lambda temporary: temporary.write_bytes(content))
    assert path.read_bytes() == content
    store.release(key)
print("fine")
"""


def test_two_processes_at_once(tmp_path):
    children = [start_child(CHILD, str(tmp_path / "cache"), str(seed), cwd=tmp_path) for seed in (1, 2)]
    for child in children:
        output, errors = child.communicate(timeout=120)
        assert (child.returncode, output.strip()) == (0, "fine"), errors
    assert not [path for path in files_of(tmp_path / "cache") if path.name.endswith(".tmp")]
    for path in files_of(tmp_path / "cache"):
        content = path.read_bytes()
        assert content == content[: len(content) // 300] * 300
