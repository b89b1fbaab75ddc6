"""Latents of kohya's scripts: taken where they fit, passed over with a reason where they do not."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier_tests.helpers.latents import RULE, FakeFamily, cache_of, contents_of, fill
from atelier_tests.helpers.progress import RecordingProgress
from atelier_tests.helpers.training import open_pictures
from lora_atelier.core.progress import SilentProgress
from lora_atelier.dataset.buckets import assign_buckets
from lora_atelier.dataset.table import Dataset
from lora_atelier.trainer.kohya_latents import KohyaLatents, UnfitFile, find_files, read_file, same_convention
from lora_atelier.trainer.latents import Entry, LatentCache


class Sd(FakeFamily):
    name = "sd15"
    latent_scale = 0.18215


SIZE = np.array([80, 48])


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the pictures; 00, 02 and 04 are 80 x 48, the others 64 x 64."""
    return shutil.copytree(pictures, tmp_path / "own")


def write(own: Path, name: str, **arrays: Any) -> Path:
    path = own / "2_ring" / name
    np.savez(path, **arrays)
    return path


def made(dataset: Dataset, folder: Path, given: KohyaLatents | None = None, progress: Any = None) -> LatentCache:
    return LatentCache(
        folder,
        dataset,
        buckets=assign_buckets(dataset, RULE),
        contents=contents_of(dataset, folder),
        vae_identity="vae",
        flips=[dataset.subset_of(number).flip for number in range(len(dataset))],
        given=given,
        progress=progress,
    )


def found_in(dataset: Dataset, folder: Path) -> KohyaLatents:
    buckets = assign_buckets(dataset, RULE)
    return find_files(dataset, buckets, contents_of(dataset, folder), Sd(), SilentProgress())  # type: ignore[arg-type]


def means(dataset: Dataset, folder: Path) -> dict[int, np.ndarray]:
    cache = cache_of(folder / "truth", dataset)
    fill(cache)
    return {picture: cache.get(picture, flipped=False)[0].numpy() for picture in range(len(dataset))}


def test_files_are_taken(own: Path, tmp_path: Path) -> None:
    dataset = open_pictures(own, flip=True)
    truth = means(dataset, tmp_path)
    drawn = truth[0] + 0.01
    write(own, "00_0080x0048_sd.npz", latents=drawn, latents_flipped=drawn[..., ::-1], original_size=SIZE)
    write(own, "01.npz", latents=truth[1] + 0.01)
    write(own, "02_0080x0048_sd.npz", **{"latents_6x10": truth[2], "original_size": SIZE})
    write(own, "03_0064x0064_sdxl.npz", latents=truth[3])
    given, progress, family = found_in(dataset, tmp_path), RecordingProgress(), Sd()
    assert given.paths.keys() == {0, 1, 2}
    cache = made(dataset, tmp_path, given, progress)
    fill(cache, family, progress)
    assert "Latents of kohya's scripts: 3 taken." in progress.lines
    mean, std = cache.get(0, flipped=False)
    assert np.allclose(mean.numpy(), drawn)
    assert not std.any()
    assert np.allclose(cache.get(0, flipped=True)[0].numpy(), drawn[..., ::-1])
    assert cache.get(1, flipped=True)[1].any(), "mirrored here, for the file has no mirrored latents"
    assert cache.get(3, flipped=False)[1].any()
    assert family.num_encoded == 10 - 4 + 3, "three pictures are encoded only to compare"
    again = Sd()
    assert fill(made(dataset, tmp_path, found_in(dataset, tmp_path)), again) == 0
    assert again.num_encoded == 0


def test_latents_of_files_and_our_own_never_mix(own: Path, tmp_path: Path) -> None:
    dataset = open_pictures(own)
    write(own, "01.npz", latents=means(dataset, tmp_path)[1] * 1.1)
    first = found_in(dataset, tmp_path)
    fill(made(dataset, tmp_path, first), Sd())
    assert made(dataset, tmp_path).missing() == [Entry(1, 0, False)]
    write(own, "01.npz", latents=means(dataset, tmp_path)[1] * 1.05)
    second = found_in(dataset, tmp_path)
    assert second.digest() != first.digest()
    assert made(dataset, tmp_path, second).missing() == [Entry(1, 0, False)]


@pytest.mark.parametrize(
    ("factor", "said"),
    [(0.18215, "multiplied by the VAE's scale"), (4.0, "another VAE"), (-1.0, "another VAE"), (0.0, "another VAE")],
)
def test_other_conventions_are_refused_as_a_whole(factor: float, said: str, own: Path, tmp_path: Path) -> None:
    dataset = open_pictures(own)
    for picture, mean in means(dataset, tmp_path).items():
        write(own, f"{picture:02d}.npz", latents=mean * factor)
    progress, family = RecordingProgress(), Sd()
    cache = made(dataset, tmp_path, found_in(dataset, tmp_path), progress)
    fill(cache, family, progress)
    (line,) = [line for line in progress.lines if line.startswith("Latents of kohya's scripts: 0 taken; 5 not used")]
    assert said in line
    assert all(cache.get(picture, flipped=False)[1].any() for picture in range(5))


def test_noise_is_of_another_vae() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(4, 8, 8, generator=draw), torch.randn(4, 8, 8, generator=draw)) for _ in range(3)]
    assert same_convention(pairs, Sd()) == "they were made with another VAE"  # type: ignore[arg-type]


def spoilt(own: Path, kind: str) -> Path:
    good = np.ones((4, 6, 10), dtype=np.float32)
    path = own / "2_ring" / "00.npz"
    if kind == "not finite":
        np.savez(path, latents=np.full((4, 6, 10), np.nan, dtype=np.float32))
    elif kind == "size":
        np.savez(path, latents=np.ones((4, 8, 8), dtype=np.float32))
    elif kind == "channels":
        np.savez(path, latents=np.ones((16, 6, 10), dtype=np.float32))
    elif kind == "giant":
        np.savez_compressed(path, latents=np.zeros((4, 2048, 2048), dtype=np.float32))
    elif kind == "other picture":
        np.savez(path, latents=good, original_size=np.array([81, 48]))
    elif kind == "pickle":
        np.savez(path, latents=np.array([{"evil": 1}], dtype=object))
    elif kind == "raw pickle":
        import pickle

        path.write_bytes(pickle.dumps({"latents": 1}))
    elif kind == "text":
        np.savez(path, latents=np.full((4, 6, 10), "a"))
    elif kind == "single array":
        with open(path, "wb") as file:
            np.save(file, good)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        np.savez(path, latents=good)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "no latents":
        np.savez(path, hidden_state1=good)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("latents.npy", b"not an array")
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("not finite", "not finite"),
        ("size", "size of the picture's bucket"),
        ("channels", "size of the picture's bucket"),
        ("giant", "size of the picture's bucket"),
        ("other picture", "picture of another size"),
        ("pickle", "pickled objects"),
        ("raw pickle", "pickled objects"),
        ("text", "wrong kind"),
        ("single array", "single array"),
        ("empty", "damaged"),
        ("cut", "damaged"),
        ("no latents", "size of the picture's bucket"),
        ("member", "damaged"),
    ],
)
def test_unfit_files(kind: str, said: str, own: Path, tmp_path: Path) -> None:
    dataset = open_pictures(own)
    path = spoilt(own, kind)
    with pytest.raises(UnfitFile, match=said):
        read_file(path, assign_buckets(dataset, RULE)[0])
    given = found_in(dataset, tmp_path)
    assert not given.paths
    assert said in given.text()
    assert "0 taken; 1 not used" in given.text()


def test_pictures_that_the_data_set_crops_are_encoded_here(own: Path, tmp_path: Path) -> None:
    dataset = open_pictures(own)
    write(own, "00.npz", latents=np.ones((4, 6, 10), dtype=np.float32))
    crops = np.zeros((5, 4), dtype=np.int32)
    crops[0] = (0, 0, 80, 40)
    assert "cuts these pictures elsewhere" in found_in(dataset.with_crops(crops, note="x"), tmp_path).text()


def test_a_file_that_changes_while_the_run_begins_is_named(own: Path, tmp_path: Path) -> None:
    from lora_atelier.core.errors import StorageError

    dataset = open_pictures(own)
    path = write(own, "00.npz", latents=means(dataset, tmp_path)[0])
    given = found_in(dataset, tmp_path)
    path.write_bytes(b"gone")
    with pytest.raises(StorageError, match=r"00\.npz changed while the run began"):
        given.read(0, assign_buckets(dataset, RULE), flipped=False)


def claiming(header: bytes) -> bytes:
    """A file whose one array has this header and nothing behind it."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as file:
        file.writestr("latents.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return raw.getvalue()


def broken_stream() -> bytes:
    """A compressed file whose bytes do not unpack."""
    raw = io.BytesIO()
    np.savez_compressed(raw, latents=np.random.default_rng(0).random((4, 6, 10), dtype=np.float32))
    return bytes(byte ^ 255 if 60 <= place < 110 else byte for place, byte in enumerate(raw.getvalue()))


@pytest.mark.parametrize(
    "raw",
    [
        claiming(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }\n"),
        claiming(b"{'descr': ((('<f4'" + b" " * 40 + b"\n"),
        broken_stream(),
    ],
    ids=["petabytes", "header that does not end", "compressed"],
)
def test_files_that_do_not_unpack(raw: bytes, own: Path, tmp_path: Path) -> None:
    (own / "2_ring" / "00.npz").write_bytes(raw)
    found = found_in(open_pictures(own), tmp_path)
    assert not found.paths
    assert dict(found.refused) == {"the file is damaged": 1}
