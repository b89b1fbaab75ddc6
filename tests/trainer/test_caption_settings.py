"""Captions in training: length, weights, warm-up, and the step at which the text encoder stops."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.masked import masked_pictures
from atelier_tests.helpers.training import CancelTraining
from atelier_tests.trainer.test_train import assert_same_run
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.tensors import read_header, read_tensors
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import open_base
from lora_atelier.trainer.caption_params import CaptionParams
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import RunResult, continue_run, train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]
SMALL: dict[str, Any] = {"steps": 4, "blocks": "MID", "train_text_encoder": False}


def with_captions(job: Job, **settings: Any) -> Job:
    return replace(job, captions=CaptionParams(**settings))


def state(result: RunResult, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(result.run.folder / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


# the text encoder's last step ----------------------------------------------------------------------------------------


def test_the_text_encoder_stops(job: MakeJob, places: Places) -> None:
    """From its step on neither weights nor the optimizer's state change, and no gradient is made for it."""
    settings: dict[str, Any] = {"steps": 5, "blocks": "MID,TE", "save_every_steps": 1}
    whole = train_lora(job(**settings), **places)
    stopped = train_lora(job(text_encoder_stop=2, **settings), **places)
    assert "text encoder trained for 2 steps" in stopped.report
    assert stopped.losses[:3] == whole.losses[:3]
    assert stopped.losses[3:] != whole.losses[3:]
    at_stop, at_end, not_stopped = state(stopped, 2), state(stopped, 5), state(whole, 2)
    assert all(torch.equal(value, not_stopped[name]) for name, value in at_stop.items())
    changed = {name for name, value in at_stop.items() if not torch.equal(value, at_end[name])}
    assert not [name for name in changed if "lora_te" in name]
    assert [name for name in changed if "lora_unet" in name]
    states = [{name.rpartition("/")[0] for name in changed if name.startswith("optimizer/")}]
    assert len(states[0]) == sum("lora_unet" in name and "alpha" not in name for name in changed)
    rates = [row["lr_text_encoder"] for row in open_run(stopped.run.folder).rows]
    assert rates == [1e-3, 1e-3, 0.0, 0.0, 0.0]
    share = train_lora(job(text_encoder_stop=0.4, **settings), **places)
    assert share.losses == stopped.losses


def test_no_gradient_is_made_after_the_stop(job: MakeJob, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_atelier.families._ldm import LdmFamily

    needed: list[bool] = []
    original = LdmFamily.encode_text

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        found = original(self, *given, **named)
        needed.append(found.hidden.requires_grad)
        return found

    monkeypatch.setattr(LdmFamily, "encode_text", watched)
    train_lora(job(steps=4, blocks="MID,TE", text_encoder_stop=2), **places)
    assert needed == [True, True, False, False]


def test_a_share_means_the_same_steps_when_the_run_goes_on(
    job: MakeJob, places: Places, tiny_base: Path, dataset: Dataset
) -> None:
    made = with_captions(job(steps=4, blocks="MID,TE", text_encoder_stop=0.5), token_warmup=0.75)
    parent = train_lora(made, **places)
    child = continue_run(parent.run, base=open_base(tiny_base, name="x"), dataset=dataset, extra_steps=3, **places)
    config = open_run(child.run.folder).manifest["config"]
    assert config["train"]["text_encoder_stop"] == 2.0
    assert config["captions"]["token_warmup"] == 3.0
    one, other = state(parent, 4), state(child, 7)
    assert all(torch.equal(value, other[name]) for name, value in one.items() if name.startswith("adapter/lora_te"))


# length, weights, warm-up --------------------------------------------------------------------------------------------


def test_long_captions_are_counted_and_read(job: MakeJob, places: Places, dataset: Dataset) -> None:
    long = dataset.with_tags({0: ("ring",) * 60, 1: ("hat",) * 30}, note="long")
    short = train_lora(job(dataset=long, **SMALL), **places)
    assert "2 of 5 captions are longer than the 75 tokens that are read, the longest has" in short.report
    more = train_lora(with_captions(job(dataset=long, **SMALL), max_tokens=225), **places)
    assert "1 of 5 captions is longer than the 225 tokens" in more.report
    assert more.losses != short.losses
    assert read_header(more.lora_path).metadata["ss_max_token_length"] == "225"
    kohya = with_captions(job(dataset=long, **SMALL), max_tokens=225, long_captions="kohya")
    assert train_lora(kohya, **places).losses not in (more.losses, short.losses)


def test_weights_in_captions(job: MakeJob, places: Places, dataset: Dataset) -> None:
    tags = {row: ("ring", "(hat:1.5)") for row in range(5)}
    weighted = dataset.with_tags({**tags, 1: ("ring", "(hat")}, note="weights")
    plain = train_lora(job(dataset=weighted, **SMALL), **places)
    read = train_lora(with_captions(job(dataset=weighted, **SMALL), weighted_captions=True), **places)
    assert "1 caption with brackets that have no partner, such as that of 2_ring/01.png" in read.report
    assert read.losses != plain.losses
    none = train_lora(with_captions(job(**SMALL), weighted_captions=True), **places)
    assert "no caption holds a weight" in none.report
    assert none.losses == train_lora(job(**SMALL), **places).losses
    wrong = dataset.with_tags({2: ("(hat:nan)",)}, note="wrong")
    with pytest.raises(InputError, match=r"'\(hat:nan\)' holds the weight nan, allowed is -10 to 10"):
        train_lora(with_captions(job(dataset=wrong, **SMALL), weighted_captions=True), **places)


def test_weights_around_several_tags_are_told(job: MakeJob, places: Places, dataset: Dataset) -> None:
    torn = dataset.with_tags({0: ("(ring", "hat:1.5)")}, note="torn")
    shuffled = torn.with_subsets([replace(subset, shuffle_captions=True) for subset in torn.subsets], note="shuffled")
    report = train_lora(with_captions(job(dataset=shuffled, **SMALL), weighted_captions=True), **places).report
    assert "1 caption with weights around several tags, which shuffling and dropping tear apart" in report


def test_the_tags_shown_grow_with_the_steps(
    job: MakeJob, places: Places, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_atelier.families._ldm import LdmFamily

    shown: list[int] = []
    original = LdmFamily.encode_text

    def watched(self: Any, components: Any, captions: Any, **named: Any) -> Any:
        shown.append(max(len(caption.split(", ")) for caption in captions))
        return original(self, components, captions, **named)

    monkeypatch.setattr(LdmFamily, "encode_text", watched)
    tagged = dataset.with_tags({row: tuple("abcdef") for row in range(5)}, note="six tags, of which one is kept")
    made = with_captions(job(dataset=tagged, **{**SMALL, "steps": 5}), token_warmup=4)
    assert "from 1 tag to all within 4 steps" in train_lora(made, **places).report
    assert shown == [2, 3, 4, 5, 6]


def test_the_second_clip_skip_needs_a_second_encoder(job: MakeJob, places: Places) -> None:
    with pytest.raises(InputError, match="clip_skip_2 is 2, but tiny.safetensors .* has one text encoder"):
        train_lora(job(clip_skip_2=2), **places)


# keys and resuming ---------------------------------------------------------------------------------------------------


def test_defaults_leave_the_key_alone(job: MakeJob) -> None:
    made = job()
    assert "captions" not in made.config()
    key = made.key(base_hash="b", data_hash="d")
    assert with_captions(made).key(base_hash="b", data_hash="d") == key
    others = [with_captions(made, max_tokens=150), with_captions(made, token_warmup=3), job(text_encoder_stop=2)]
    assert len({key, *(other.key(base_hash="b", data_hash="d") for other in others)}) == 4


def test_everything_at_once_is_resumed_to_the_bit(job: MakeJob, places: Places, tmp_path: Path) -> None:
    """Masks, prior preservation, a folder's weight, long and weighted captions, warm-up, the text encoder's stop."""
    masked = masked_pictures(tmp_path / "pictures", reg=True)
    tagged = masked.with_tags({0: ("ring", "(hat:1.4)", "star"), 2: ("ring",) * 40}, note="tags")
    dataset = tagged.with_subsets(
        [replace(subset, shuffle_captions=True, flip=True, loss_weight=0.7) for subset in tagged.subsets],
        note="options",
    )
    settings: dict[str, Any] = {
        "dataset": dataset,
        "steps": 6,
        "blocks": "MID,TE",
        "save_every_steps": 2,
        "gradient_accumulation_steps": 2,
        "prior_preservation": True,
        "unmasked_weight": 0.1,
        "normalize_masks": True,
        "text_encoder_stop": 3,
        "ema_decay": 0.9,
    }
    made = with_captions(job(**settings), max_tokens=150, weighted_captions=True, token_warmup=5)
    elsewhere = {**places, "output_dir": tmp_path / "whole", "loras_dir": tmp_path / "whole-loras"}
    whole = train_lora(made, **elsewhere)
    for checks in (5, 13):  # before and after the text encoder's stop
        folder = {**places, "output_dir": tmp_path / f"o{checks}", "loras_dir": tmp_path / f"l{checks}"}
        with pytest.raises(Cancelled):
            train_lora(made, progress=CancelTraining(folder["output_dir"], checks), **folder)
        resumed = train_lora(made, **folder)
        assert 0 < resumed.steps_done < 6
        assert_same_run(resumed, whole)
