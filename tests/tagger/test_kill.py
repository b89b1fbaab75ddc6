"""Kill -9 in the middle of tagging: the next run goes on; nothing is stored twice, nothing is missing.

What was inferred but not yet written when the process died is inferred again, which no order of writing can avoid; so
the test bounds it by what a run holds unwritten, and counts as tagged what reached the store.

    ATELIER_KILL_FILES=200000 pytest -m slow tests/tagger/test_kill.py
"""

import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.onnx_tagger import write_tagger
from lora_atelier.core.index import Index
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.tagger.picking import PickParams
from lora_atelier.tagger.pipeline import FLUSH_PICTURES, score_dataset
from lora_atelier.tagger.runner import open_tagger
from lora_atelier.tagger.scoring_pass import JOB_PICTURES
from lora_atelier.tagger.store import ScoreStore
from lora_atelier.tagger.tag import tag_dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")

WORKERS = 2
IN_THE_WORKERS = (WORKERS + 2) * JOB_PICTURES
"""Pictures in jobs that run, wait or are finished but not yet taken."""

CHILD = """
import os, signal, sys
from pathlib import Path
from lora_atelier.core.index import Index
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.tagger import pipeline, store
from lora_atelier.tagger.runner import open_tagger
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
done = 0
tagger = open_tagger(folder / "tagger", threads=1)
real = tagger.score_batch
def counted(pictures):
    global done
    os.write(log, b"i" * len(pictures) + b"\\n")
    done += len(pictures)
    if limit and done >= limit:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(pictures)
tagger.score_batch = counted
put = store.ScoreStore.put
def stored(self, items):
    put(self, items)
    os.write(log, b"".join(b"s" + key.hex().encode() + b"\\n" for key, _, _ in items))
store.ScoreStore.put = stored
with Index(folder / "index.sqlite") as index:
    dataset = open_folder(folder / "pictures", DatasetParams())
    scored = pipeline.score_dataset(dataset, tagger, index, workers=int(sys.argv[3]))
print(scored.inferred, scored.from_store, len(scored.failed))
"""


def write_pictures(folder: Path, number: int) -> None:
    """Bitmaps of 8 x 8 px with distinct contents."""
    folder.mkdir()
    header = b"BM" + (246).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    header += (8).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(4)
    header += (192).to_bytes(4, "little") + bytes(16)
    colours = ((0, 0, 255), (0, 255, 0), (255, 0, 0), (90, 90, 90))
    for n in range(number):
        pixels = n.to_bytes(3, "little") + bytes(colours[n % 4]) * 63
        (folder / f"{n:07d}.bmp").write_bytes(header + pixels)


def num_inferred(folder: Path, seen: list[int]) -> int:
    """Inferences by all runs so far; ``seen`` holds the bytes read of the log and what they told, and is moved on."""
    if (folder / "log").exists():
        with open(folder / "log", "rb") as file:
            file.seek(seen[0])
            lines = file.read().split(b"\n")
        seen[0] += sum(len(line) + 1 for line in lines[:-1])
        seen[1] += sum(len(line) for line in lines[:-1] if line.startswith(b"i"))
    return seen[1]


def logged(folder: Path) -> tuple[int, list[bytes]]:
    """Inferences, and the keys that were stored, by all runs so far."""
    if not (folder / "log").exists():
        return 0, []
    lines = (folder / "log").read_bytes().splitlines()
    return sum(len(line) for line in lines if line.startswith(b"i")), [line for line in lines if line.startswith(b"s")]


def check(folder: Path, number: int, kills: int) -> None:
    inferences, stored = logged(folder)
    assert len(stored) == len(set(stored)), "a picture was stored twice"
    assert number <= inferences <= number + kills * (FLUSH_PICTURES + IN_THE_WORKERS)
    assert not list(folder.glob("*.damaged-*"))
    with sqlite3.connect(folder / "index.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Index(folder / "index.sqlite") as index:
        tagger = open_tagger(folder / "tagger", threads=1)
        dataset = open_folder(folder / "pictures", DatasetParams())
        assert ScoreStore(index, tagger).count() == number
        result = tag_dataset(dataset, tagger, index, params=PickParams(), mode="overwrite")
        assert f"{number} from the score store, 0 tagged anew" in result.lines[0]
        tags = result.dataset.tags
        keys = tags.row_of_occurrence.astype(np.int64) * len(tags.vocabulary) + tags.ids
        assert len(np.unique(keys)) == len(keys)
        for colour in ("red", "green", "blue"):
            expected = [n for n in range(number) if ["red", "green", "blue", "grey"][n % 4] == colour]
            assert tags.rows_with(tags.id_of(colour)).tolist() == expected
        with Index(folder / "fresh.sqlite") as fresh:
            rows = np.arange(0, number, max(1, number // 200))
            again = score_dataset(dataset, tagger, fresh, rows=rows)
            kept = score_dataset(dataset, tagger, index, rows=rows)
        np.testing.assert_array_equal(again.scores.values, kept.scores.values)


def prepare(folder: Path, number: int) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_tagger(folder / "tagger")
    write_pictures(folder / "pictures", number)


def test_killed_once_and_resumed(tmp_path: Path) -> None:
    number = 500
    prepare(tmp_path, number)
    child = start_child(CHILD, str(tmp_path), "300", str(WORKERS), cwd=tmp_path)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, errors
    _, stored = logged(tmp_path)
    assert 100 < len(stored) < 300
    child = start_child(CHILD, str(tmp_path), "0", str(WORKERS), cwd=tmp_path)
    output, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    inferred, from_store, failed = map(int, output.split())
    assert (inferred + from_store, failed) == (number, 0)
    assert from_store >= len(stored)
    check(tmp_path, number, kills=1)


@pytest.mark.slow
def test_killed_ten_times_at_random_and_resumed(tmp_path: Path) -> None:
    number = int(os.environ.get("ATELIER_KILL_FILES", "200000"))
    prepare(tmp_path, number)
    draw, kills, seen = random.Random(1), 0, [0, 0]
    while kills < 10:
        limit = num_inferred(tmp_path, seen) + draw.randint(1, max(2, number // 14))
        child = start_child(CHILD, str(tmp_path), "0", str(WORKERS), cwd=tmp_path)
        while child.poll() is None and num_inferred(tmp_path, seen) < limit:
            time.sleep(draw.uniform(0.0, 0.03))
        child.kill()
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors or "the run ended before the tenth kill; use more files"
        kills += 1
    child = start_child(CHILD, str(tmp_path), "0", str(WORKERS), cwd=tmp_path)
    output, errors = child.communicate()
    assert child.returncode == 0, errors
    inferred, from_store, failed = map(int, output.split())
    assert (inferred + from_store, failed) == (number, 0)
    check(tmp_path, number, kills)
