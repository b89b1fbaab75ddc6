"""Latents on disk: what decides them, variants, damage, several processes, kills."""

import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.latents import FakeFamily, cache_of, fill
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from atelier_tests.helpers.training import open_pictures
from lora_atelier.core.errors import StorageError, TrainingError
from lora_atelier.core.files import free_bytes
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.store import Store
from lora_atelier.core.tensors import write_tensors
from lora_atelier.dataset.table import Dataset
from lora_atelier.dataset.tints import TintRanges
from lora_atelier.dataset.views import ViewRules
from lora_atelier.trainer import latents
from lora_atelier.trainer.encoder import PictureEncoder
from lora_atelier.trainer.latents import Entry
from lora_atelier.trainer.precision import OutOfMemory

CROPS = ViewRules(variants=4, random_crop=True, max_zoom=1.5)
COLOURS = ViewRules(variants=3, tints=TintRanges(brightness=(0.5, 0.8)))


def shards_in(folder: Path) -> list[Path]:
    return sorted((folder / "latent-shards").rglob("*.safetensors"))


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
    assert len(shards_in(tmp_path)) == 1


def test_neither_vae_nor_decoder_is_asked_when_nothing_is_missing(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache_of(tmp_path, dataset, rules=CROPS))

    def never(*_: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(latents, "load_row", never)
    assert cache_of(tmp_path, dataset, rules=CROPS).fill(FakeFamily(), never, RecordingProgress()) == 0  # type: ignore[arg-type]


def test_flips_have_entries_of_their_own(tmp_path: Path, pictures: Path) -> None:
    cache = cache_of(tmp_path, open_pictures(pictures, flip=True))
    assert fill(cache) == 10
    plain, flipped = cache.get(1, flipped=False)[0], cache.get(1, flipped=True)[0]
    torch.testing.assert_close(plain.flip(-1), flipped)


def test_entries_and_their_numbers(tmp_path: Path, pictures: Path) -> None:
    for flip in (False, True):
        cache = cache_of(tmp_path, open_pictures(pictures, flip=flip), rules=CROPS)
        entries = list(cache.entries())
        assert len(entries) == len(cache) == 5 * 4 * (1 + flip)
        assert [cache.number(e.picture, e.variant, flipped=e.flipped) for e in entries] == list(range(len(cache)))
        assert [cache.entry(number) for number in range(len(cache))] == entries


def test_the_key_names_all_that_decides_the_latents(tmp_path: Path, pictures: Path, dataset: Dataset) -> None:
    fill(cache_of(tmp_path, dataset))
    assert len(cache_of(tmp_path, dataset, vae="other").missing()) == 5
    elsewhere = shutil.copytree(pictures, tmp_path / "copied elsewhere")
    assert cache_of(tmp_path, open_pictures(elsewhere)).missing() == []
    shutil.copyfile(elsewhere / "2_ring" / "01.png", elsewhere / "2_ring" / "03.png")
    assert cache_of(tmp_path, open_pictures(elsewhere)).missing() == []
    assert len(cache_of(tmp_path, dataset, contents=[f"x{n}" for n in range(5)]).missing()) == 5


def test_crops_move_and_colours_do_not(tmp_path: Path, dataset: Dataset) -> None:
    cropped, tinted = cache_of(tmp_path, dataset, rules=CROPS), cache_of(tmp_path, dataset, rules=COLOURS)
    assert fill(cropped) == 20
    assert fill(tinted) == 10, "the plain variants are there already"
    views = [cropped.view(Entry(0, variant, False)) for variant in range(4)]
    assert len({view.crop for view in views}) > 1
    assert views[0].resized == views[0].bucket.resized
    for view in views:
        left, top, right, bottom = view.crop
        assert (right - left, bottom - top) == view.size
        assert 0 <= left <= right <= view.resized[0]
        assert 0 <= top <= bottom <= view.resized[1]
    assert not torch.equal(cropped.get(0, 1, flipped=False)[0], cropped.get(0, 2, flipped=False)[0])
    plain, dark = tinted.get(0, 0, flipped=False)[0], tinted.get(0, 1, flipped=False)[0]
    assert dark.mean() < plain.mean()
    first, second = (tinted.view(Entry(0, variant, False)) for variant in (0, 1))
    assert (first.crop, first.resized, first.flipped) == (second.crop, second.resized, second.flipped)


def test_variants_follow_from_the_content_alone(tmp_path: Path, dataset: Dataset) -> None:
    """So that every run and every seed finds them; and further ones come on top."""
    fill(cache_of(tmp_path, dataset, rules=CROPS))
    more = ViewRules(variants=6, random_crop=True, max_zoom=1.5)
    assert len(cache_of(tmp_path, dataset, rules=more).missing()) == 10
    other = ViewRules(variants=4, random_crop=True, max_zoom=1.4)
    assert len(cache_of(tmp_path, dataset, rules=other).missing()) >= 12


def test_cancel_keeps_what_is_done(tmp_path: Path, dataset: Dataset) -> None:
    cache = cache_of(tmp_path, dataset)
    with pytest.raises(Cancelled):
        fill(cache, progress=CancelAfter(3))
    assert len(cache_of(tmp_path, dataset).missing()) == 3


def test_values_that_are_not_finite_are_refused(tmp_path: Path, dataset: Dataset) -> None:
    family = FakeFamily()
    family.value = float("nan")
    with pytest.raises(TrainingError, match=r"0\d\.png into values that are not finite"):
        fill(cache_of(tmp_path, dataset), family)
    assert len(cache_of(tmp_path, dataset).missing()) == 5


def test_a_full_disk_is_named_before_it_begins(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_atelier.core.files.free_bytes", lambda path: 1000)
    family = FakeFamily()
    with pytest.raises(StorageError, match="MiB of disk space"):
        fill(cache_of(tmp_path, dataset, rules=CROPS), family)
    assert family.num_encoded == 0
    assert free_bytes(tmp_path) > 1000


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "deleted"])
def test_a_damaged_shard_is_told_and_made_again_while_training(damage: str, tmp_path: Path, dataset: Dataset) -> None:
    progress = RecordingProgress()
    fill(cache_of(tmp_path, dataset))
    cache = cache_of(tmp_path, dataset, progress=progress)
    assert fill(cache) == 0
    expected = cache_of(tmp_path, dataset).get(2, flipped=False)[0]
    (path,) = shards_in(tmp_path)
    raw = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    else:
        for place in range(len(raw) - 9000, len(raw), 64):
            raw[place] ^= 1
        path.write_bytes(raw)
    found = [cache.get(number, flipped=False)[0] for number in range(5)]
    assert torch.equal(found[2], expected)
    assert any("damaged" in line and "made again" in line for line in progress.lines)
    assert cache_of(tmp_path, dataset).missing() == []


def test_a_shard_cut_short_is_told_and_made_again_at_the_start(tmp_path: Path, dataset: Dataset) -> None:
    fill(cache_of(tmp_path, dataset))
    (path,) = shards_in(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    progress = RecordingProgress()
    cache = cache_of(tmp_path, dataset, progress=progress)
    assert len(cache.missing()) == 5
    assert not path.exists()
    assert "damaged" in progress.lines[0]
    assert fill(cache) == 5


def test_old_caches_are_moved_and_never_misread(tmp_path: Path, dataset: Dataset) -> None:
    """One file per picture, as earlier versions wrote: good ones are taken over, others made anew."""
    cache = cache_of(tmp_path, dataset)
    old = Store(tmp_path / "latents", 10**9)
    keys = [f"{cache.key(Entry(number, 0, False))}.safetensors" for number in range(3)]
    pair = {"mean": torch.full((4, 6, 10), 3.0), "std": torch.zeros(4, 6, 10)}
    wrong = {"mean": torch.zeros(4, 2, 2), "std": torch.zeros(4, 2, 2)}
    old.put(keys[0], partial(write_tensors, tensors=pair))
    old.put(keys[1], partial(write_tensors, tensors=wrong))
    broken = old.put(keys[2], partial(write_tensors, tensors=pair))
    broken.write_bytes(b"no tensors")
    family = FakeFamily()
    assert fill(cache, family) == 4
    assert torch.equal(cache.get(0, flipped=False)[0], pair["mean"])
    assert cache.get(1, flipped=False)[0].shape == (4, 8, 8)
    assert [old.path(key) for key in keys] == [None, None, None]


def test_the_key_of_the_plain_variant_is_that_of_earlier_versions(tmp_path: Path, dataset: Dataset) -> None:
    cache = cache_of(tmp_path, dataset, contents=["a", "b", "c", "d", "e"])
    said = "v1|a|vae|(80, 48)|(80, 48)|(0, 0, 80, 48)|plain"
    import hashlib

    assert cache.key(Entry(0, 0, False)) == hashlib.sha256(said.encode()).hexdigest()


def test_pictures_of_one_bucket_are_encoded_together_where_it_pays(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PictureEncoder, "at_once", lambda self, shape: 2)
    family = FakeFamily()
    cache = cache_of(tmp_path, dataset)
    assert fill(cache, family) == 5
    assert family.batches == [2, 2, 1]  # two squares, three wide ones
    single = cache_of(tmp_path / "single", dataset)
    monkeypatch.undo()
    fill(single)
    for number in range(5):
        torch.testing.assert_close(cache.get(number, flipped=False)[0], single.get(number, flipped=False)[0])


def test_memory_that_is_not_enough_halves_the_batch() -> None:
    class Small(FakeFamily):
        def encode_image(self, vae: object, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if len(pixels) > 1:
                raise OutOfMemory("too much")
            return super().encode_image(vae, pixels)

    family = Small()
    encoder = PictureEncoder(family, torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    encoder.most = 4
    found = encoder.encode([np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 85, 170, 255)])
    assert [round(float(mean.mean()), 3) for mean, _ in found] == [-1.0, -0.333, 0.333, 1.0]
    assert encoder.most == 1
    with pytest.raises(OutOfMemory):
        Small.encode_image = lambda *_: (_ for _ in ()).throw(OutOfMemory("far too much"))  # type: ignore[method-assign]
        encoder.encode([np.zeros((8, 8, 3), dtype=np.uint8)])


def test_two_fill_one_cache(tmp_path: Path, dataset: Dataset) -> None:
    """The second begins at the other end while the first holds the lock, and both find everything at the end."""
    first, second = cache_of(tmp_path, dataset, rules=CROPS), cache_of(tmp_path, dataset, rules=CROPS)
    order: list[int] = []

    class Meanwhile(RecordingProgress):
        def update(self, done: int, total: int, text: str = "") -> None:
            if done == 2 and not order:
                order.append(fill(second))

    family = FakeFamily()
    fill(first, family, Meanwhile())
    assert order == [20]
    assert first.missing() == second.missing() == []
    for entry in first.entries():
        one, other = (cache.get(entry.picture, entry.variant, flipped=False)[0] for cache in (first, second))
        assert torch.equal(one, other)


FILLER = """
import os, signal, sys, time
from pathlib import Path
from atelier_tests.helpers.latents import FakeFamily, cache_of, fill
from atelier_tests.helpers.training import open_pictures
from lora_atelier.core import shards
from lora_atelier.core.progress import SilentProgress
from lora_atelier.dataset.views import ViewRules
folder, pictures, mode = sys.argv[1:]
shards.WRITE_EVERY_S = shards.WRITE_EVERY_SHARE = 0.0  # every row a shard of its own
class Progress(SilentProgress):
    def update(self, done, total, text=""):
        if mode == "kill" and text == "encoding pictures" and done >= 7:
            os.kill(os.getpid(), signal.SIGKILL)
rules = ViewRules(variants=4, random_crop=True, max_zoom=1.5)
cache = cache_of(Path(folder), open_pictures(Path(pictures)), rules=rules)
print("ready", flush=True)
while not Path(folder, "go").exists():
    time.sleep(0.01)
fill(cache, FakeFamily(), Progress())
assert cache.missing() == []
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_killed_while_filling_loses_nothing_that_was_written(tmp_path: Path, pictures: Path, dataset: Dataset) -> None:
    (tmp_path / "go").touch()
    child = start_child(FILLER, str(tmp_path), str(pictures), "kill", cwd=tmp_path)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL, errors
    cache = cache_of(tmp_path, dataset, rules=CROPS)
    assert len(cache.missing()) == 20 - 7
    assert fill(cache) == 13
    whole = cache_of(tmp_path / "whole", dataset, rules=CROPS)
    fill(whole)
    for entry in whole.entries():
        one, other = (c.get(entry.picture, entry.variant, flipped=False) for c in (cache, whole))
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_two_processes_fill_one_cache_at_once(tmp_path: Path, pictures: Path, dataset: Dataset) -> None:
    children = [start_child(FILLER, str(tmp_path), str(pictures), "fill", cwd=tmp_path) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()  # both have looked, found nothing, and begin at once
    for child in children:
        _, errors = child.communicate(timeout=600)
        assert child.returncode == 0, errors
    cache = cache_of(tmp_path, dataset, rules=CROPS)
    assert cache.missing() == []
    assert fill(cache_of(tmp_path / "alone", dataset, rules=CROPS)) == 20
    alone = cache_of(tmp_path / "alone", dataset, rules=CROPS)
    for entry in alone.entries():
        one, other = (found.get(entry.picture, entry.variant, flipped=False)[0] for found in (cache, alone))
        assert torch.equal(one, other)
