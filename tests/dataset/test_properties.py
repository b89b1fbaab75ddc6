"""Random folders against a plain reading of the rules, written here without the room's code."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from atelier_tests.helpers.pictures import save_picture
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.batches import effective_repeats, epoch_batches, steps_per_epoch
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.captions import caption_for
from lora_atelier.dataset.scan import DatasetParams, fingerprint_folder, open_folder
from lora_atelier.dataset.table import Dataset

RULE = BucketRule(resolution_px=64, step_px=8, min_px=32, max_px=128)
FOLDER_NAMES = ["a", "B", "10_cat", "2_sks dog", "0_none", "7", "\u732b", ".hidden", "x.png", "9_", "deep (1)"]
STEMS = ["1", "2", "10", "01", "a b", "A", "\u00e9", "e\u0301x", "semi;colon", "\U0001f431", "x.y", "-dash", "100%"]
CAPTIONS = ["zwx, red hair, blue eyes", "", "one", "a,,b , c", "ein \u00fcber, \u732b", " \n second line", "x\r\ny"]
ENDINGS = ["png", "jpg", "JPG", "webp", "Gif", "bmp"]


class Tree:
    """A random folder and what a person would expect of it when it is read as a plain folder."""

    def __init__(self, root: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.root = root
        self.expected: dict[str, str] = {}
        self.broken: set[str] = set()
        self.hidden = 0
        self._fill(root, depth=0, hidden=False)

    def _fill(self, folder: Path, *, depth: int, hidden: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for stem in self.draw.sample(STEMS, self.draw.randint(0, 4)):
            self._picture(folder, stem, hidden)
        if depth < 3:
            for name in self.draw.sample(FOLDER_NAMES, self.draw.randint(0, 3)):
                self._fill(folder / name, depth=depth + 1, hidden=hidden or name.startswith("."))

    def _picture(self, folder: Path, stem: str, hidden: bool) -> None:
        path = folder / f"{stem}.{self.draw.choice(ENDINGS)}"
        below = path.relative_to(self.root).as_posix()
        size = (self.draw.randint(8, 90), self.draw.randint(8, 90))
        save_picture(path, size, shade=self.draw.randrange(256))
        caption = self.draw.choice([*CAPTIONS, None, None])
        if caption is not None:
            path.with_name(stem + self.draw.choice([".txt", ".TXT", ".caption"])).write_bytes(caption.encode())
        fate = self.draw.random()
        if fate < 0.1:
            path.write_bytes(b"")
        elif fate < 0.2:
            path.write_bytes(b"rubbish" * 9)
        if hidden:
            self.hidden += 1
        elif fate < 0.2:
            self.broken.add(below)
        else:
            lines = [line.strip() for line in (caption or "").splitlines() if line.strip()]
            first = lines[0] if lines else ""
            self.expected[below] = ", ".join(part.strip() for part in first.split(",") if part.strip())


def check_invariants(dataset: Dataset) -> None:
    rows = len(dataset)
    for column in (dataset.width_px, dataset.height_px, dataset.size_bytes, dataset.mtime_ns, dataset.subset_index):
        assert len(column) == rows
    assert len(dataset.tags) == rows
    assert set(dataset.subset_index.tolist()) == set(range(len(dataset.subsets)))
    for row in range(rows):
        status = dataset.path(row).stat()
        assert (status.st_size, status.st_mtime_ns) == (dataset.size_bytes[row], dataset.mtime_ns[row])
    dataset.summary().encode("utf-8")
    used = {dataset.path(row).relative_to(dataset.root).as_posix() for row in range(rows)}
    assert len(used) == rows
    assert used.isdisjoint(entry.path for entry in dataset.skipped)


def check_an_epoch(dataset: Dataset, seed: int) -> None:
    buckets = assign_buckets(dataset, RULE)
    batch_size = 1 + seed % 5
    batches = epoch_batches(dataset, buckets, batch_size=batch_size, seed=seed, epoch=seed % 3)
    assert len(batches) == steps_per_epoch(dataset, buckets, batch_size)
    seen = Counter(image for batch in batches for image in batch.images)
    assert seen == {row: count for row, count in enumerate(effective_repeats(dataset).tolist()) if count}
    for batch in batches[:5]:
        assert {buckets[image].size for image in batch.images} == {batch.size}
        for image, caption_seed in zip(batch.images, batch.caption_seeds, strict=True):
            tags = caption_for(dataset, image, caption_seed).split(", ")
            assert sorted(tags) == sorted(dataset.caption(image).split(", "))


@pytest.mark.parametrize("seed", range(12))
def test_a_random_folder_is_read_as_expected(tmp_path, seed):
    tree = Tree(tmp_path / "data", seed)
    params = DatasetParams(layout="plain")
    if not tree.expected:
        with pytest.raises(InputError):
            open_folder(tree.root, params)
        return
    dataset = open_folder(tree.root, params)
    captions = {dataset.names[row]: dataset.caption(row) for row in range(len(dataset))}
    assert captions == tree.expected
    assert {entry.path for entry in dataset.skipped if not entry.path.endswith("/")} == tree.broken
    check_invariants(dataset)
    check_an_epoch(dataset, seed)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_folder_never_breaks_the_automatic_layout(tmp_path, seed):
    tree = Tree(tmp_path / "data", seed)
    try:
        dataset = open_folder(tree.root, DatasetParams())
    except InputError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
    if message:
        return
    check_invariants(dataset)
    check_an_epoch(dataset, seed)
    found = {dataset.path(row).relative_to(tree.root).as_posix() for row in range(len(dataset))}
    assert found <= set(tree.expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_creation_does_not_count(tmp_path, seed):
    tree = Tree(tmp_path / "data", 100 + seed)
    if not tree.expected:
        pytest.skip("this folder has no pictures")
    files = [path for path in tree.root.rglob("*") if path.is_file()]
    random.Random(seed).shuffle(files)
    copy = tmp_path / "copy" / "data"
    for path in files:
        target = copy / path.relative_to(tree.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    params = DatasetParams(layout="plain")
    first, second = open_folder(tree.root, params), open_folder(copy, params)
    assert list(first.names) == list(second.names)
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize("seed", range(5))
def test_any_touched_file_changes_the_folders_fingerprint(tmp_path, seed):
    tree = Tree(tmp_path / "data", 200 + seed)
    files = [path for path in sorted(tree.root.rglob("*")) if path.is_file() and "/." not in path.as_posix()]
    before = fingerprint_folder(tree.root)
    assert before == fingerprint_folder(tree.root)
    for path in random.Random(seed).sample(files, min(3, len(files))):
        stamp = path.stat().st_mtime_ns
        os.utime(path, ns=(stamp, stamp + 1_000_000_000))
        assert fingerprint_folder(tree.root) != before
        os.utime(path, ns=(stamp, stamp))
        assert fingerprint_folder(tree.root) == before
