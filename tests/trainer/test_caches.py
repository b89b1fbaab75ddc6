"""Latents and content hashes on disk."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from atelier_tests.helpers.training import open_pictures
from lora_atelier.core.errors import StorageError, TrainingError
from lora_atelier.core.files import sha256_file
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import open_base
from lora_atelier.trainer import caches
from lora_atelier.trainer.caches import ContentIndex
from lora_atelier.trainer.latents import LatentCache

RULE = BucketRule(resolution_px=64, step_px=8, min_px=32, max_px=128)


class FakeFamily:
    """Encodes a picture as its mean colour in every latent pixel; counts."""

    num_encoded = 0
    value: float | None = None

    def encode_image(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_encoded += 1
        assert pixels.min() >= -1.0
        assert pixels.max() <= 1.0
        _, _, height, width = pixels.shape
        rows = torch.nn.functional.adaptive_avg_pool2d(pixels, (height // 8, width // 8))
        mean = torch.cat([rows, rows[:, :1]], dim=1)
        if self.value is not None:
            mean = torch.full_like(mean, self.value)
        return mean, mean.abs() + 0.1


def index_in(folder: Path) -> ContentIndex:
    return ContentIndex(Index(folder / "index.sqlite"))


def cache_of(folder: Path, dataset: Dataset, *, vae: str = "vae", contents: list[str] | None = None) -> LatentCache:
    return LatentCache(
        folder / "latents",
        dataset,
        buckets=assign_buckets(dataset, RULE),
        contents=contents or index_in(folder).contents(dataset, SilentProgress()).hashes,
        vae_identity=vae,
        flips=[dataset.subset_of(number).flip for number in range(len(dataset))],
    )


def fill(cache: LatentCache, family: FakeFamily | None = None, **given: Any) -> int:
    progress = given.get("progress", SilentProgress())
    return cache.fill(family or FakeFamily(), lambda: torch.nn.Linear(1, 1), progress)  # type: ignore[arg-type]


def test_mean_and_std_are_kept(tmp_path: Path, dataset: Dataset) -> None:
    family = FakeFamily()
    cache = cache_of(tmp_path, dataset)
    assert fill(cache, family) == 5
    assert family.num_encoded == 5
    mean, std = cache.get(0, flipped=False)
    assert mean.shape == (4, 6, 10)
    torch.testing.assert_close(std, mean.abs() + 0.1)
    again = cache_of(tmp_path, dataset)
    assert fill(again) == 0
    assert torch.equal(again.get(0, flipped=False)[0], mean)


def test_the_vae_is_not_loaded_when_nothing_is_missing(tmp_path: Path, dataset: Dataset) -> None:
    fill(cache_of(tmp_path, dataset))

    def load() -> None:
        raise AssertionError("loaded")

    assert cache_of(tmp_path, dataset).fill(FakeFamily(), load, SilentProgress()) == 0  # type: ignore[arg-type]


def test_flips_have_entries_of_their_own(tmp_path: Path, pictures: Path) -> None:
    cache = cache_of(tmp_path, open_pictures(pictures, flip=True))
    assert fill(cache) == 10
    plain, flipped = cache.get(1, flipped=False)[0], cache.get(1, flipped=True)[0]
    torch.testing.assert_close(plain.flip(-1), flipped)


def test_the_key_names_all_that_decides_the_latents(tmp_path: Path, pictures: Path, dataset: Dataset) -> None:
    fill(cache_of(tmp_path, dataset))
    assert len(cache_of(tmp_path, dataset, vae="other").missing()) == 5
    elsewhere = shutil.copytree(pictures, tmp_path / "copied elsewhere")
    assert cache_of(tmp_path, open_pictures(elsewhere)).missing() == []
    shutil.copyfile(elsewhere / "2_ring" / "01.png", elsewhere / "2_ring" / "03.png")
    assert cache_of(tmp_path, open_pictures(elsewhere)).missing() == []
    assert len(cache_of(tmp_path, dataset, contents=["x"] * 5).missing()) == 5


def test_cancel_keeps_what_is_done(tmp_path: Path, dataset: Dataset) -> None:
    cache = cache_of(tmp_path, dataset)
    with pytest.raises(Cancelled):
        fill(cache, progress=CancelAfter(3))
    assert len(cache_of(tmp_path, dataset).missing()) == 3


def test_values_that_are_not_finite_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    family = FakeFamily()
    family.value = float("nan")
    with pytest.raises(TrainingError, match=r"00\.png into values that are not finite"):
        fill(cache_of(tmp_path, dataset), family)
    assert len(cache_of(tmp_path, dataset).missing()) == 5


def test_a_damaged_entry_is_removed_and_named(tmp_path: Path, dataset: Dataset) -> None:
    fill(cache_of(tmp_path, dataset))
    cache = cache_of(tmp_path, dataset)
    path = cache.store.path(cache.keys[2, False])
    assert path is not None
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StorageError, match="damaged .* start the run again"):
        cache.get(2, flipped=False)
    assert cache_of(tmp_path, dataset).missing() == [(2, False)]


def test_contents_are_read_once(tmp_path: Path, pictures: Path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "mine")
    first, second = RecordingProgress(), RecordingProgress()
    hashes = index_in(tmp_path / "c").contents(open_pictures(folder), first).hashes
    assert index_in(tmp_path / "c").contents(open_pictures(folder), second).hashes == hashes
    assert len(first.updates) == 5
    assert second.updates == []
    shutil.copyfile(folder / "2_ring" / "01.png", folder / "2_ring" / "03.png")
    changed = index_in(tmp_path / "c").contents(open_pictures(folder), second).hashes
    assert changed[3] == hashes[1] != hashes[3]


def test_an_index_that_cannot_be_used_is_told_and_done_without(tmp_path: Path, dataset: Dataset) -> None:
    progress = RecordingProgress()
    closed = Index(tmp_path / "index.sqlite")
    index = ContentIndex(closed)
    closed.close()
    (tmp_path / "index.sqlite").unlink()
    (tmp_path / "index.sqlite").mkdir()
    expected = index_in(tmp_path / "good").contents(dataset, SilentProgress()).hashes
    assert index.contents(dataset, progress).hashes == expected
    assert ContentIndex(None).contents(dataset, progress).hashes == expected
    (line,) = progress.lines
    assert line.startswith("Hashes are not remembered: the index ")
    with caches.own_index(tmp_path, progress) as own:
        assert own is None
    assert progress.lines[1].startswith("Hashes are not remembered: the index ")


def test_cancel_while_reading_keeps_the_hashes(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(Cancelled):
        index_in(tmp_path).contents(dataset, CancelAfter(4))
    progress = RecordingProgress()
    index_in(tmp_path).contents(dataset, progress)
    assert [done for done, _, _ in progress.updates] == [3, 4]


def test_hashes_are_remembered_on_the_way(tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "REMEMBER_EVERY_FILES", 2)
    seen: list[int] = []

    class Watcher(SilentProgress):
        def update(self, done: int, total: int, text: str = "") -> None:
            seen.append(index.count(caches.CONTENT_KIND))

    index = Index(tmp_path / "index.sqlite")
    ContentIndex(index).contents(dataset, Watcher())
    assert seen == [0, 0, 2, 2, 4]


def test_the_hash_of_a_base_outlasts_the_process(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_base(tiny_base, name="tiny")
    expected = index_in(tmp_path).base_hash(base, SilentProgress())
    assert expected == sha256_file(tiny_base)
    monkeypatch.setattr(caches, "base_hash", lambda *_: "ab" * 32)
    assert index_in(tmp_path).base_hash(base, SilentProgress()) == expected
    assert index_in(tmp_path / "other").base_hash(base, SilentProgress()) == "ab" * 32
