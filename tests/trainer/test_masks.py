"""Masks in the loss: shrunk, cut and mirrored as their pictures, weighted by hand-computed numbers, part of the key."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier_tests.helpers.masked import masked_pictures, write_masks
from atelier_tests.helpers.progress import RecordingProgress
from atelier_tests.helpers.training import open_pictures
from lora_atelier.core.errors import InputError
from lora_atelier.core.index import Index
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.images import load_row
from lora_atelier.dataset.masks import MaskParams, with_masks
from lora_atelier.dataset.table import Dataset
from lora_atelier.dataset.views import View, plain_view
from lora_atelier.trainer.caches import ContentIndex
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.masks import LatentMasks, MaskRules, latent_mask, mask_contents
from lora_atelier.trainer.objectives import epsilon
from lora_atelier.trainer.objectives._spec import Question
from lora_atelier.trainer.train import train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"steps": 2, "blocks": "MID", "train_text_encoder": False}


def latent_masks(dataset: Dataset, *, index: Index | None = None, **rules: Any) -> LatentMasks:
    rule = BucketRule(resolution_px=64, step_px=8, min_px=32, max_px=128)
    known = ContentIndex(index)
    contents = known.contents(dataset, RecordingProgress()).hashes
    return LatentMasks(
        dataset,
        buckets=assign_buckets(dataset, rule),
        contents=mask_contents(dataset, contents, known, RecordingProgress()),
        rules=MaskRules(**rules),
        device=CPU,
    )


def test_areas_are_averaged() -> None:
    layer = np.zeros((16, 24), dtype=np.uint8)
    layer[:8, :8] = 255
    layer[:8, 8:12] = 255
    layer[8:, 16:] = 100
    assert latent_mask(layer).tolist() == [[255, 128, 0], [0, 0, 100]]


def test_weights_by_hand() -> None:
    masks = torch.tensor([[[[255, 0], [0, 51]]], [[[255, 255], [255, 255]]], [[[0, 0], [0, 0]]]], dtype=torch.uint8)
    plain = MaskRules().weights(masks)
    torch.testing.assert_close(plain[0, 0], torch.tensor([[1.0, 0.0], [0.0, 0.2]]))
    kept = MaskRules(unmasked_weight=0.1).weights(masks)
    torch.testing.assert_close(kept[0, 0], torch.tensor([[1.0, 0.1], [0.1, 0.28]]))
    even = MaskRules(normalize=True).weights(masks)
    torch.testing.assert_close(even[0, 0], torch.tensor([[1.0, 0.0], [0.0, 0.2]]) / 0.3)
    assert torch.equal(even[1], torch.ones(1, 2, 2))
    assert torch.equal(even[2], torch.zeros(1, 2, 2))
    tiny = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    tiny[0, 0, 0, 0] = 255  # 1 / 256 of the area: the floor of 0.05 holds
    assert MaskRules(normalize=True).weights(tiny).max().item() == pytest.approx(20.0)


@pytest.mark.parametrize(("normalize", "expected"), [(False, [4.0, 1.0, 0.0]), (True, [4.0, 4.0, 0.0])])
def test_the_loss_by_hand(normalize: bool, expected: list[float]) -> None:
    """An error of 2 everywhere: its square under a white, a quarter white and a black mask."""
    masks = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    masks[0], masks[1, 0, :2, :2] = 255, 255
    prediction = torch.full((3, 4, 4, 4), 2.0, requires_grad=True)
    target = torch.zeros(3, 4, 4, 4)
    question = Question(noisy_latents=target, timesteps=torch.tensor([0, 500, 999]), target=target)
    losses = epsilon.loss(
        prediction,
        question,
        alphas_cumprod=torch.linspace(0.9, 0.1, 1000),
        params=epsilon.EpsilonParams(),
        mask=MaskRules(normalize=normalize).weights(masks),
    )
    torch.testing.assert_close(losses, torch.tensor(expected))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert prediction.grad is not None
    assert bool((prediction.grad[1, :, :2, :2] != 0).all())
    assert bool((prediction.grad[1, :, 2:] == 0).all())
    assert bool((prediction.grad[2] == 0).all())


def test_a_mask_lies_where_its_picture_does(tmp_path: Path) -> None:
    """The mask of a picture is its own red channel: under every view, both shrink to the same numbers."""
    folder = tmp_path / "1_red"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(((80, 48), (64, 64), (150, 61))):
        red = np.kron(draw.integers(0, 2, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))[:height, :width] * 255
        pixels = np.stack([red, red * 0, red * 0], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(pixels[..., 0]).save(folder / f"{number}_mask.png")
    found = with_masks(open_pictures(tmp_path), MaskParams(source="files")).dataset
    dataset = replace(found, focus=np.array([[0.2, 0.7], [np.nan, np.nan], [0.9, 0.1]], dtype=np.float32))
    masks = latent_masks(dataset)
    assert masks.fill(ContentIndex(None), RecordingProgress()) == []
    for row in range(3):
        bucket, focus = masks.buckets[row], dataset.focal_point(row)
        left = bucket.resized[0] * 2 - bucket.width
        zoomed = View(
            bucket=bucket,
            resized=(bucket.resized[0] * 2, bucket.resized[1] * 2),
            scale=bucket.scale * 2,
            crop=(left, 8, left + bucket.width, 8 + bucket.height),
            is_random=True,
        )
        for view in (plain_view(bucket, focus), plain_view(bucket, focus, flipped=True), zoomed, zoomed.mirrored()):
            weights = masks.batch([row], [view])
            assert weights is not None
            expected = latent_mask(view.pixels(load_row(dataset, row))[..., 0])
            torch.testing.assert_close(weights[0, 0] * 255, torch.from_numpy(expected).float(), atol=1.01, rtol=0)


def test_batches_with_and_without_masks(tmp_path: Path) -> None:
    dataset = masked_pictures(tmp_path)
    masks = latent_masks(dataset, unmasked_weight=0.5)
    masks.fill(ContentIndex(None), RecordingProgress())
    assert masks.batch([4], [masks.plain(4)]) is None
    both = masks.batch([4, 0], [masks.plain(4), masks.plain(0)])
    assert both is not None
    assert both.shape[:2] == (2, 1)
    assert bool((both[0] == 1.0).all())
    assert both[1].min().item() == 0.5
    assert sum(len(packed) for packed in masks._held.values()) < 4 * 200


def test_masks_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_atelier.trainer import masks as module

    dataset = masked_pictures(tmp_path)
    with Index(tmp_path / "index.sqlite") as index:
        first = latent_masks(dataset, index=index)
        first.fill(ContentIndex(index), RecordingProgress())
        monkeypatch.setattr(module, "load_mask", lambda *given: pytest.fail("a mask was read again"))
        second = latent_masks(dataset, index=index)
        second.fill(ContentIndex(index), RecordingProgress())
    assert second._held == first._held


def test_masks_change_the_numbers_and_the_key(job: MakeJob, places: Places, tmp_path: Path) -> None:
    masked = masked_pictures(tmp_path)
    plain = train_lora(job(dataset=replace(masked, masks=None), **SMALL), **places)
    with_them = train_lora(job(dataset=masked, **SMALL), **places)
    assert "masks on 4 pictures (black counts 0)" in with_them.report
    assert with_them.run.key != plain.run.key
    assert with_them.losses != plain.losses
    ignored = train_lora(job(dataset=masked, unmasked_weight=1.0, **SMALL), **places)
    assert ignored.losses == plain.losses
    write_masks(tmp_path / "set", fill=255)
    white = train_lora(job(dataset=masked, **SMALL), **places)
    assert white.steps_done == 2  # the masks hold something else now, so it is another run
    assert white.losses == plain.losses
    assert train_lora(job(dataset=masked, **SMALL), **places).steps_done == 0


def test_black_masks(job: MakeJob, places: Places, tmp_path: Path) -> None:
    dataset = masked_pictures(tmp_path)
    black = tmp_path / "set" / "2_ring" / "02-masklabel.png"
    Image.new("L", (80, 48), 0).save(black)
    result = train_lora(job(dataset=dataset, **SMALL), **places)
    assert "1 mask black all over (2_ring/02.png): those pictures teach nothing" in result.report
    assert "black all over" not in train_lora(job(dataset=dataset, unmasked_weight=0.1, **SMALL), **places).report
    write_masks(tmp_path / "set", skip=99)
    for path in (tmp_path / "set" / "2_ring").glob("*-masklabel.png"):
        Image.new("L", Image.open(path).size, 0).save(path)
    all_black = with_masks(open_pictures(tmp_path / "set"), MaskParams(source="files")).dataset
    with pytest.raises(
        InputError, match="masks of all 5 training pictures are black all over .* raise unmasked_weight"
    ):
        train_lora(job(dataset=all_black, **SMALL), **places)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "The mask 00-masklabel.png is gone"),
        (lambda path: path.write_bytes(b"no picture"), "1 mask cannot be used .*00.png: it is not a picture"),
        (lambda path: Image.new("L", (33, 90)).save(path), "33 x 90 px and the picture 80 x 48 px"),
    ],
)
def test_masks_that_are_spoilt_after_they_were_set(
    job: MakeJob, places: Places, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    dataset = masked_pictures(tmp_path)
    spoil(tmp_path / "set" / "2_ring" / "00-masklabel.png")
    with pytest.raises(InputError, match=said):
        train_lora(job(dataset=dataset, **SMALL), **places)
    assert not list((places["output_dir"]).rglob("manifest.json"))
