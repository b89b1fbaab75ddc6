"""Variants, caption forms, resolutions and small batches: what a run sees, and that it resumes to the bit."""

import json
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.latents import RULE, cache_of, contents_of, fill
from atelier_tests.helpers.progress import RecordingProgress
from atelier_tests.helpers.training import CancelTraining, make_job, open_pictures
from atelier_tests.trainer.test_train import assert_same_run
from lora_atelier.core.ahead import NextAhead
from lora_atelier.core.errors import InputError
from lora_atelier.core.files import sha256_file
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset import images
from lora_atelier.dataset.buckets import assign_buckets
from lora_atelier.dataset.caption_forms import CaptionForms
from lora_atelier.dataset.table import Dataset
from lora_atelier.dataset.views import ViewRules
from lora_atelier.trainer import latents
from lora_atelier.trainer.augment import AugmentParams
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.feed import Feed
from lora_atelier.trainer.latents import LatentCache
from lora_atelier.trainer.plan import check_job
from lora_atelier.trainer.train import train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]
RICH: dict[str, Any] = {
    "variants": 3,
    "crop_zoom": 1.4,
    "colour_jitter": True,
    "caption_variants": 2,
    "small_batches": "repeat",
}
"""Everything that varies, at once."""


def augmented(job: Job, **settings: Any) -> Job:
    return replace(job, augment=AugmentParams(**settings))


def feed_of(folder: Path, dataset: Dataset, rules: ViewRules, *, seed: int = 1, **options: Any) -> Feed:
    buckets = assign_buckets(dataset, RULE)
    return Feed(
        dataset=dataset,
        buckets=buckets,
        batch_size=2,
        seed=seed,
        latents=cache_of(folder, dataset, rules=rules),
        texts=None,  # type: ignore[arg-type]
        latent_scale=1.0,
        prior_loss_weight=1.0,
        device=torch.device("cpu"),
        **options,
    )


def shown(feed: Feed, epochs: int) -> list[tuple[int, int, bool]]:
    return [tuple(entry) for index in range(epochs * feed.batches_per_epoch) for entry in feed.entries(index)]  # type: ignore[misc]


def test_each_variant_comes_once_before_any_comes_again(tmp_path: Path, dataset: Dataset) -> None:
    """Pictures are shown twice an epoch: three variants are through after one and a half."""
    rules = ViewRules(variants=3, random_crop=True, max_zoom=1.2)
    feed = feed_of(tmp_path, dataset, rules)
    seen = shown(feed, 6)
    for picture in range(5):
        variants = [variant for number, variant, _ in seen if number == picture]
        assert len(variants) == 12
        assert Counter(variants) == {0: 4, 1: 4, 2: 4}
    assert shown(feed_of(tmp_path, dataset, rules), 6) == seen, "it follows from the seed"
    other = shown(feed_of(tmp_path, dataset, rules, seed=2), 6)
    assert [entry[1] for entry in other] != [entry[1] for entry in seen]
    late = feed_of(tmp_path, dataset, rules)
    assert late.entries(17) == feed.entries(17), "any batch can be made alone"


def test_conditioning_is_told_the_very_crop(tmp_path: Path, pictures: Path) -> None:
    rules = ViewRules(variants=4, random_crop=True, max_zoom=1.5)
    feed = feed_of(tmp_path, open_pictures(pictures, flip=True), rules, takes_sizes=True)
    crops = set()
    for index in range(2 * feed.batches_per_epoch):
        told = feed.conditioning(index)
        assert told is not None
        for view, row in zip(feed.views(index), told.flat().tolist(), strict=True):
            left, top, right, _ = view.crop
            assert row[2:4] == [top, view.resized[0] - right if view.flipped else left]
            assert row[4:] == [view.bucket.height, view.bucket.width]
            crops.add((row[2], row[3]))
    assert len(crops) > 4
    plain = feed_of(tmp_path / "plain", open_pictures(pictures), ViewRules(), takes_sizes=True)
    told = plain.conditioning(0)
    assert told is not None
    assert told.crop.abs().sum() == 0


def test_a_caption_is_seen_in_k_forms_and_not_more(pictures: Path) -> None:
    dataset = open_pictures(pictures, shuffle_captions=True, keep_tokens=0, caption_dropout=0.25)
    forms = CaptionForms(dataset, forms=3)
    everything = set(forms.texts())
    for picture in range(len(dataset)):
        seen = Counter(forms.text(picture, seed, run_seed=5, showing=seed) for seed in range(60))
        assert len(set(seen) - {""}) == 3
        assert set(seen) <= everything
        assert 5 < seen[""] < 30
        for text in set(seen) - {""}:
            assert sorted(text.split(", ")) == sorted(dataset.tags.row(picture))
    live = CaptionForms(dataset)
    assert len({live.text(0, seed) for seed in range(200)}) == 1 + 6, "three tags have six orders, and the empty one"


def test_forms_do_not_depend_on_the_run(pictures: Path) -> None:
    dataset = open_pictures(pictures, shuffle_captions=True)
    texts = set(CaptionForms(dataset, forms=2).texts())
    for run_seed in (1, 2):
        forms = CaptionForms(dataset, forms=2)
        seen = {forms.text(0, seed, run_seed=run_seed, showing=seed) for seed in range(8)}
        assert seen <= texts
        assert len(seen) == 2


def test_fewer_forms_than_asked_are_all_there_is(pictures: Path) -> None:
    dataset = open_pictures(pictures, shuffle_captions=False)
    assert not CaptionForms(dataset, forms=4).vary
    assert len(set(CaptionForms(dataset, forms=4).texts())) == 1 + len(dataset)


def test_resume_is_exact_with_everything_on(tiny_base: Path, pictures: Path, places: Places, tmp_path: Path) -> None:
    dataset = open_pictures(pictures, shuffle_captions=True, caption_dropout=0.2, flip=True)
    settings = {"steps": 7, "blocks": "MID", "train_text_encoder": False, "gradient_accumulation_steps": 2}
    job = augmented(make_job(dataset, base=tiny_base, **settings), **RICH)
    elsewhere = {**places, "output_dir": tmp_path / "whole", "loras_dir": tmp_path / "whole-loras"}
    elsewhere["cache_dir"] = tmp_path / "whole-cache"
    elsewhere["cache_dir"].mkdir()
    whole = train_lora(job, **elsewhere)
    with pytest.raises(Cancelled):
        train_lora(job, progress=CancelTraining(places["output_dir"], 9), **places)
    resumed = train_lora(job, **places)
    assert 0 < resumed.steps_done < 7
    assert_same_run(resumed, whole)
    assert "Variants: 3 of each picture, cropped at random, up to 1.4 x closer and in other colours" in whole.report
    assert "up to 2 forms of each" in whole.report
    assert "Small batches (repeat): 0 of" in whole.report


KILLER = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from atelier_tests.helpers.training import make_job, open_pictures
from lora_atelier.trainer import checkpoints
from lora_atelier.trainer.augment import AugmentParams
from lora_atelier.trainer.train import train_lora
folder, pictures, base, settings, rich = sys.argv[1:]
old = checkpoints.write_json
def write(path, value):
    if value.get("step") == 4:  # the state of step 4 is half written; that of step 2 is whole
        os.kill(os.getpid(), signal.SIGKILL)
    old(path, value)
checkpoints.write_json = write
dataset = open_pictures(Path(pictures), shuffle_captions=True, caption_dropout=0.2, flip=True)
job = replace(make_job(dataset, base=Path(base), **json.loads(settings)), augment=AugmentParams(**json.loads(rich)))
places = {name: Path(folder) / name.removesuffix("_dir") for name in ("output_dir", "loras_dir", "cache_dir")}
for place in places.values():
    place.mkdir(parents=True, exist_ok=True)
train_lora(job, **places)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_kill_and_resume_are_exact_with_everything_on(
    tiny_base: Path, pictures: Path, places: Places, tmp_path: Path
) -> None:
    """The killed run had caches of its own, so the resumed one reads what another process encoded."""
    settings = {"steps": 6, "blocks": "MID", "train_text_encoder": False, "save_every_steps": 2}
    child = start_child(
        KILLER, str(tmp_path / "own"), str(pictures), str(tiny_base), json.dumps(settings), json.dumps(RICH),
        cwd=tmp_path,
    )  # fmt: skip
    _, errors = child.communicate(timeout=900)
    assert child.returncode == -signal.SIGKILL, errors
    dataset = open_pictures(pictures, shuffle_captions=True, caption_dropout=0.2, flip=True)
    job = augmented(make_job(dataset, base=tiny_base, **settings), **RICH)
    own = {name: tmp_path / "own" / name.removesuffix("_dir") for name in places}
    resumed = train_lora(job, **own)
    assert resumed.steps_done == 4
    assert_same_run(resumed, train_lora(job, **places))


def test_a_second_run_decodes_and_encodes_nothing(
    tiny_base: Path, pictures: Path, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed trains other numbers on the same variants and the same forms of captions."""
    dataset = open_pictures(pictures, shuffle_captions=True)
    settings = {"steps": 2, "blocks": "MID", "train_text_encoder": False}
    first = train_lora(augmented(make_job(dataset, base=tiny_base, **settings), **RICH), **places)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(latents, "load_row", never)
    monkeypatch.setattr(images, "load_image", never)
    from lora_atelier.trainer import texts

    encoded: list[str] = []
    real = texts.KeptTexts._encoded
    monkeypatch.setattr(
        texts.KeptTexts, "_encoded", lambda self, caption: (encoded.append(caption), real(self, caption))[1]
    )
    second = train_lora(augmented(make_job(dataset, base=tiny_base, seed=8, **settings), **RICH), **places)
    assert second.losses != first.losses
    assert len(encoded) == 1, "one text is encoded to learn how much room the others need"


def test_reading_ahead_gives_the_same(tmp_path: Path, pictures: Path) -> None:
    """As on a GPU whose memory holds not all latents: in another thread, over the borders of epochs."""
    rules = ViewRules(variants=2, random_crop=True)
    dataset = open_pictures(pictures, flip=True)
    fill(cache_of(tmp_path, dataset, rules=rules))
    plain, ahead = (feed_of(tmp_path, dataset, rules) for _ in range(2))
    ahead._ahead = NextAhead(ahead._stacked)
    for index in range(3 * plain.batches_per_epoch):
        one, other = (feed.latents(index, seed=1, step=index, micro=0) for feed in (plain, ahead))
        assert torch.equal(one, other)
        assert plain.entries(index) == ahead.entries(index)
    assert not ahead.cache.is_held
    for entry in ahead.cache.entries():
        ahead.cache.get(entry.picture, entry.variant, flipped=entry.flipped)
    assert ahead.cache.is_held
    ahead.free()
    assert not ahead.cache.is_held
    assert torch.equal(ahead.latents(0, seed=1, step=0, micro=0), plain.latents(0, seed=1, step=0, micro=0))


def test_latents_of_kohyas_scripts_decide_the_run(
    tiny_base: Path, pictures: Path, places: Places, tmp_path: Path
) -> None:
    own = shutil.copytree(pictures, tmp_path / "pictures")
    dataset = open_pictures(own)
    settings = {"steps": 2, "blocks": "MID", "train_text_encoder": False}
    plain = make_job(dataset, base=tiny_base, **settings)
    first = train_lora(plain, **places)
    (stage,) = check_job(plain).stages
    contents = contents_of(dataset, tmp_path)
    identity = f"sd15 {sha256_file(tiny_base)}"
    cache = LatentCache(
        places["cache_dir"], dataset, buckets=stage.buckets, contents=contents, vae_identity=identity, flips=[False] * 5
    )
    assert cache.missing() == []
    for picture in (0, 1, 3, 4):
        np.savez(own / "2_ring" / f"{picture:02d}.npz", latents=cache.get(picture, flipped=False)[0].numpy())
    np.savez(own / "2_ring" / "02.npz", latents=np.zeros((4, 2, 2)))
    job = augmented(plain, kohya_latents=True)
    progress = RecordingProgress()
    second = train_lora(job, progress=progress, **places)
    (line,) = [line for line in progress.lines if line.startswith("Latents of kohya's scripts")]
    assert line.startswith("Latents of kohya's scripts: 4 taken; 1 not used: it has no latents of the size")
    assert second.losses != first.losses
    assert train_lora(job, **places).steps_done == 0
    (own / "2_ring" / "01.npz").unlink()
    assert train_lora(job, **places).run.key not in (first.run.key, second.run.key)


def test_defaults_are_not_part_of_the_key(tiny_base: Path, dataset: Dataset) -> None:
    job = make_job(dataset, base=tiny_base)
    plain = job.key(base_hash="b", data_hash="d")
    assert "augment" not in job.config()
    assert augmented(job, crop_zoom=1.0).key(base_hash="b", data_hash="d") == plain
    keys = {
        augmented(job, **settings).key(base_hash="b", data_hash="d")
        for settings in ({"variants": 2}, {"variants": 3}, {"small_batches": "merge"}, {"caption_variants": 2})
    }
    assert len(keys | {plain}) == 5


def test_continue_keeps_the_settings(tiny_base: Path, dataset: Dataset, places: Places) -> None:
    from lora_atelier.trainer.train import continue_run

    settings = {"steps": 2, "blocks": "MID", "train_text_encoder": False}
    job = augmented(make_job(dataset, base=tiny_base, **settings), variants=2)
    parent = train_lora(job, **places)
    child = continue_run(parent.run, base=job.base, dataset=dataset, extra_steps=2, **places)
    whole = train_lora(augmented(make_job(dataset, base=tiny_base, **{**settings, "steps": 4}), variants=2), **places)
    assert child.losses[-2:] == whole.losses[-2:]


def test_pictures_at_each_resolution(tiny_base: Path, dataset: Dataset, places: Places) -> None:
    settings = {"steps": 3, "blocks": "MID", "train_text_encoder": False}
    job = augmented(
        make_job(dataset, base=tiny_base, **settings), resolutions_px="48", resolution_use="each", variants=2
    )
    (stage,) = check_job(job).stages
    assert len(stage.pictures) == 10
    assert len(stage.job.dataset) == 5
    areas = [stage.buckets[n].width * stage.buckets[n].height for n in range(10)]
    assert max(areas[:5]) <= 48 * 48 < min(areas[5:])
    result = train_lora(job, **places)
    assert "Resolutions: 48, 64 px; every picture 2 times." in result.report
    assert "Pictures: 5, 10 after repeats" in result.report
    assert "48x48 px: 4" in result.report


def test_pictures_at_the_resolution_that_fits(tiny_base: Path, dataset: Dataset) -> None:
    """64 x 64 and 80 x 48 fill 64 px; 128 px would enlarge both."""
    job = augmented(make_job(dataset, base=tiny_base), resolutions_px="32,128")
    (stage,) = check_job(job).stages
    assert len(stage.pictures) == 5
    assert {stage.buckets[n].width * stage.buckets[n].height for n in range(5)} == {64 * 64, 80 * 48}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variants": 0}, "variants is 0, allowed is 1 to 64"),
        ({"variants": 1000}, "variants is 1000, allowed is 1 to 64"),
        ({"variants": 3, "random_crop": False}, "would all be the same"),
        ({"colour_jitter": True}, "variants is 1, the plain one: set it to 4"),
        ({"crop_zoom": 1.2}, "variants is 1, the plain one: set it to 4"),
        ({"crop_zoom": 0.5}, "crop_zoom is 0.5, allowed is 1 to 3"),
        ({"variants": 2, "crop_zoom": 1.5, "random_crop": False, "colour_jitter": True}, "zoom of random crops"),
        ({"brightness_min": 1.2}, "brightness_min is 1.2 and brightness_max is 1.1.*exchange"),
        ({"contrast_max": 0.5}, "contrast_min is 0.9 and contrast_max is 0.5"),
        ({"saturation_min": 2.0}, "saturation_min is 2 and"),
        ({"hue_min_degrees": 10.0}, "hue_min_degrees is 10 and hue_max_degrees is 8"),
        ({"hue_max_degrees": 200.0}, "hue_max_degrees is 200"),
        ({"brightness_min": float("nan")}, "brightness_min is nan"),
        ({"caption_variants": -1}, "caption_variants is -1"),
        ({"resolutions_px": "large"}, "'large': give whole numbers"),
        ({"resolutions_px": "768; 768"}, "768 twice"),
        ({"resolutions_px": "100"}, "has 100: allowed are multiples of 8"),
        ({"resolutions_px": "99999"}, "'99999'"),
        ({"resolutions_px": "64,72,80,88,96,104,112,120,128"}, "9 resolutions: at most 8"),
        ({"resolution_use": "every"}, "resolution_use"),
        ({"small_batches": "drop"}, "small_batches"),
    ],
)
def test_refusals(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        AugmentParams(**settings)


def test_a_resolution_outside_the_buckets_is_refused(tiny_base: Path, dataset: Dataset) -> None:
    with pytest.raises(InputError, match="resolution 512 x 512 px does not fit the bucket sides 32 to 128"):
        check_job(augmented(make_job(dataset, base=tiny_base), resolutions_px="512"))


def test_notes(tiny_base: Path, dataset: Dataset) -> None:
    checked = check_job(augmented(make_job(dataset, base=tiny_base, steps=1), variants=9, wildcards=True))
    notes = "\n".join(checked.warnings)
    assert "variants is 9, but the run shows each picture at most 1 times" in notes
    assert "MiB in the cache are never seen" in notes
    assert "no caption holds any" in notes
    trained = check_job(augmented(make_job(dataset, base=tiny_base), caption_variants=2))
    assert any("reads a new form" in note for note in trained.warnings)
    lonely = check_job(make_job(dataset, base=tiny_base, batch_size=5))
    assert any("1 of 3 batches of an epoch hold one picture instead of 5" in note for note in lonely.warnings)


def test_wildcards_of_a_prefix_alone(tiny_base: Path, pictures: Path) -> None:
    """They are drawn anew every time, so the text encoder must stay although no caption holds any."""
    dataset = open_pictures(pictures, shuffle_captions=False, caption_prefix="{red|blue|green|white}")
    forms = CaptionForms(dataset, wildcards=True)
    assert forms.vary
    assert len({forms.text(0, seed) for seed in range(40)}) == 4
    assert not CaptionForms(dataset).vary
    checked = check_job(augmented(make_job(dataset, base=tiny_base), wildcards=True))
    assert not any("no caption holds any" in note for note in checked.warnings)
