"""Encoded captions in memory and on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.errors import StorageError
from lora_atelier.core.progress import Cancelled
from lora_atelier.families._spec import Components, TextOptions, TextState
from lora_atelier.trainer import texts
from lora_atelier.trainer.texts import KeptTexts

CAPTIONS = ["", "red ring", "blue ring", "red ring"]


class FakeFamily:
    """Encodes a text as its length; a long one takes two windows."""

    def __init__(self, *, pooled: bool = True) -> None:
        self.encoded: list[str] = []
        self.pooled = pooled

    def encode_text(self, components: Any, captions: Sequence[str], *, options: TextOptions) -> TextState:
        (caption,) = captions
        self.encoded.append(caption)
        windows = 2 if len(caption) > 20 and options.max_tokens > 75 else 1
        hidden = torch.full((1, 77 * windows, 8), float(len(caption)), dtype=torch.bfloat16)
        return TextState(hidden=hidden, pooled=torch.full((1, 4), 1.5) if self.pooled else None)


def kept(folder: Path | None, family: FakeFamily, *, identity: str = "base", **options: Any) -> KeptTexts:
    return KeptTexts(
        family,  # type: ignore[arg-type]
        Components(),
        options=TextOptions(**options),
        folder=folder,
        identity=identity,
    )


def test_a_second_run_encodes_nothing_and_gets_the_same_to_the_bit(tmp_path: Path) -> None:
    first, second = FakeFamily(), FakeFamily()
    one = kept(tmp_path, first)
    assert one.fill(CAPTIONS)
    assert sorted(set(first.encoded)) == sorted(set(CAPTIONS))
    other = kept(tmp_path, second)
    assert other.fill(CAPTIONS)
    assert second.encoded == ["blue ring"], "the longest, to learn how large they are"
    for each in (one, other):
        each.free()
    states = [each.states(["blue ring", "", "red ring"]) for each in (one, other)]
    assert states[0].hidden.dtype == torch.bfloat16
    assert torch.equal(states[0].hidden, states[1].hidden)
    assert states[0].pooled is not None
    assert torch.equal(states[0].pooled, states[1].pooled)
    assert states[0].hidden.shape == (3, 77, 8)
    assert states[0].hidden[:, 0, 0].tolist() == [9.0, 0.0, 8.0]


@pytest.mark.parametrize(
    "change", [{"identity": "another encoder"}, {"clip_skip": 2}, {"max_tokens": 150}, {"weighted": True}]
)
def test_what_decides_the_states_is_in_the_key(change: dict[str, Any], tmp_path: Path) -> None:
    kept(tmp_path, FakeFamily()).fill(CAPTIONS)
    family = FakeFamily()
    kept(tmp_path, family, **change).fill(CAPTIONS)
    assert sorted(set(family.encoded)) == sorted(set(CAPTIONS))


def test_only_an_edited_caption_is_encoded_anew(tmp_path: Path) -> None:
    kept(tmp_path, FakeFamily()).fill(CAPTIONS)
    family = FakeFamily()
    kept(tmp_path, family).fill(["", "red ring", "green ring"])
    assert family.encoded == ["green ring", "green ring"], "the longest is encoded once more, to be measured"


def test_captions_of_different_lengths_share_a_batch(tmp_path: Path) -> None:
    long = "a very long caption of many words"
    family = FakeFamily(pooled=False)
    cache = kept(tmp_path, family, max_tokens=150)
    cache.fill(["short", long])
    states = cache.states(["short", long])
    assert states.hidden.shape == (2, 154, 8)
    assert states.pooled is None


def test_room_is_asked_for_the_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise three windows would be planned as one: on disk, and in the device's memory."""
    asked: list[int] = []
    monkeypatch.setattr(texts, "ensure_space", lambda folder, size_bytes: asked.append(size_bytes))
    kept(tmp_path, FakeFamily(), max_tokens=150).fill(["", "short", "a very long caption of many words"])
    assert asked == [3 * (2 * 77 * 8 * 2 + 16 + texts.ROW_BYTES)]


def test_cancel_keeps_what_is_done(tmp_path: Path) -> None:
    captions = [f"caption {number}" for number in range(10)]
    with pytest.raises(Cancelled):
        kept(tmp_path, FakeFamily()).fill(captions, CancelAfter(5))
    family = FakeFamily()
    kept(tmp_path, family).fill(captions)
    assert len(set(family.encoded)) == 6 or len(set(family.encoded)) == 7


def test_no_room_on_disk_is_told_and_memory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_atelier.core.files.free_bytes", lambda path: 100)
    progress, family = RecordingProgress(), FakeFamily()
    cache = kept(tmp_path, family)
    assert cache.fill(CAPTIONS, progress)
    (line,) = progress.lines
    assert line.startswith("Encoded captions are not kept on disk: ")
    assert "MiB are free" in line
    cache.free()
    assert cache.states(["red ring"]).hidden[0, 0, 0] == 8.0


def test_what_does_not_fit_into_memory_keeps_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "TEXT_BYTES", 2 * (77 * 8 * 2 + 16))
    family = FakeFamily()
    cache = kept(None, family)
    assert not cache.fill(CAPTIONS)
    assert [cache.states([caption]).hidden[0, 0, 0] for caption in CAPTIONS] == [0.0, 8.0, 9.0, 8.0]


def test_what_does_not_fit_into_memory_is_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "TEXT_BYTES", 0)
    family = FakeFamily()
    cache = kept(tmp_path, family)
    assert cache.fill(CAPTIONS)
    cache.free()
    for _ in range(2):
        assert [cache.states([caption]).hidden[0, 0, 0] for caption in CAPTIONS] == [0.0, 8.0, 9.0, 8.0]


def test_a_damaged_file_is_told_and_the_next_run_mends_it(tmp_path: Path) -> None:
    cache = kept(tmp_path, FakeFamily())
    cache.fill(CAPTIONS)
    cache.free()
    for path in (tmp_path / "text-shards").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(StorageError, match="start the run again: it encodes these captions anew"):
        cache.states(["red ring"])
    family = FakeFamily()
    again = kept(tmp_path, family)
    again.fill(CAPTIONS)
    assert len(set(family.encoded)) == 3
    again.free()
    assert again.states(["red ring"]).hidden[0, 0, 0] == 8.0


def test_a_text_that_was_not_announced_needs_the_encoder(tmp_path: Path) -> None:
    cache = kept(tmp_path, FakeFamily())
    cache.fill(CAPTIONS)
    assert cache.states(["new"]).hidden[0, 0, 0] == 3.0
    cache.free()
    with pytest.raises(RuntimeError, match="freed before the caption 'other'"):
        cache.states(["other"])
