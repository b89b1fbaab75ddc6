"""Shards: many rows in few files, found again, checked, removed whole."""

import os
import time
from pathlib import Path

import pytest
import torch

from lora_atelier.core import shards
from lora_atelier.core.errors import StorageError
from lora_atelier.core.shards import DamagedShard, Shards
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors

KEYS = [bytes([number]) * 15 + b"\0" for number in range(6)]


def store(folder: Path, keys: list[bytes] = KEYS, **options: object) -> Shards:
    made = Shards(folder, keys, **{"quota_bytes": 10**9, **options})  # type: ignore[arg-type]
    made.look()
    return made


def row(value: float, *, width: int = 3) -> dict[str, torch.Tensor]:
    return {
        "b": torch.full((2, width), value, dtype=torch.bfloat16),
        "a": torch.tensor([value, -value], dtype=torch.float32),
    }


def fill(into: Shards, numbers: list[int]) -> None:
    with into.writing() as put:
        for number in numbers:
            put(number, row(number, width=3 + number % 2))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_rows_come_back_to_the_bit(tmp_path: Path) -> None:
    made = store(tmp_path)
    assert made.missing() == [0, 1, 2, 3, 4, 5]
    fill(made, [0, 1, 2, 5])
    for found in (made, store(tmp_path)):
        assert found.missing() == [3, 4]
        for number in (0, 1, 2, 5):
            values = found.read(number)
            assert values.keys() == {"a", "b"}
            assert torch.equal(values["b"], row(number, width=3 + number % 2)["b"])
            assert values["a"].dtype == torch.float32
        assert not found.has(3)
        with pytest.raises(DamagedShard, match="missing"):
            found.read(3)
    (path,) = files(tmp_path)
    tensors = read_tensors(path)
    assert tensors["0.keys"].shape == (2, 16)
    assert tensors["1.value.b"].shape == (2, 2, 4) or tensors["0.value.b"].shape == (2, 2, 4)


def test_equal_keys_are_one_row(tmp_path: Path) -> None:
    made = store(tmp_path, [KEYS[1], KEYS[0], KEYS[1]])
    assert made.missing() == [0, 1]
    fill(made, [0])
    assert made.has(2)
    assert torch.equal(made.read(2)["a"], made.read(0)["a"])


def test_no_keys_and_foreign_shards(tmp_path: Path) -> None:
    fill(store(tmp_path), [0])
    assert store(tmp_path, []).missing() == []
    assert store(tmp_path, [b"x" * 16]).missing() == [0]


def test_a_shard_is_written_when_it_is_large_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 50)
    with store(tmp_path).writing() as put:
        assert [put(number, row(number)) for number in range(6)] == [False, False, True, False, False, True]
    assert len(files(tmp_path)) == 2
    monkeypatch.setattr(shards, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(shards, "WRITE_EVERY_SHARE", 0.0)
    with store(tmp_path / "b").writing() as put:
        assert put(0, row(0))


def test_rows_of_others_are_found(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    fill(one, [0, 1])
    assert other.missing() == [0, 1, 2, 3, 4, 5]
    other.look()
    assert other.missing() == [2, 3, 4, 5]
    fill(other, [2])
    one.look()
    assert one.missing() == [3, 4, 5]


def test_an_exception_keeps_what_was_put(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), store(tmp_path).writing() as put:
        put(4, row(4))
        raise KeyboardInterrupt
    assert store(tmp_path).missing() == [0, 1, 2, 3, 5]


def test_an_exception_is_not_hidden_by_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path)

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(KeyboardInterrupt) as caught, made.writing() as put:
        put(4, row(4))
        monkeypatch.setattr(made.store, "put", full)
        raise KeyboardInterrupt
    assert isinstance(caught.value.__cause__, StorageError)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 64], ids=["empty", "text", "cut", "bytes"]
)
def test_what_is_no_shard_is_removed_and_told(content: bytes, tmp_path: Path) -> None:
    fill(store(tmp_path), [0])
    (path,) = files(tmp_path)
    path.write_bytes(content)
    lines: list[str] = []
    assert store(tmp_path, status=lines.append).missing() == [0, 1, 2, 3, 4, 5]
    assert not path.exists()
    assert len(lines) == 1
    assert "damaged" in lines[0]


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": torch.zeros(2)},
        {"0.keys": torch.zeros(3), "0.crc": torch.zeros(3, dtype=torch.int64)},
        {"0.keys": torch.zeros(3, 16, dtype=torch.uint8)},
        {"0.keys": torch.zeros(3, 16, dtype=torch.uint8), "0.crc": torch.zeros(2, dtype=torch.int64)},
    ],
)
def test_a_safetensors_file_of_something_else_is_removed(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    fill(store(tmp_path), [0])
    (path,) = files(tmp_path)
    write_tensors(path, tensors, {} if "x" in tensors else {"format": shards.FORMAT})
    assert store(tmp_path).missing() == [0, 1, 2, 3, 4, 5]
    assert not path.exists()


def test_a_wrong_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    fill(store(tmp_path), [0, 1])
    (path,) = files(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[read_header(path).offsets["0.value.b"][0]] ^= 4
    path.write_bytes(raw)
    lines: list[str] = []
    made = store(tmp_path, status=lines.append)
    good = [number for number in (0, 1) if _reads(made, number)]
    assert len(good) <= 1
    assert made.missing() == [0, 1, 2, 3, 4, 5]
    assert not path.exists()
    assert "checksum" in lines[0]


def _reads(made: Shards, number: int) -> bool:
    try:
        made.read(number)
    except DamagedShard:
        return False
    return True


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_atelier.core.store._RECENT_S", 0.0)
    for number in range(3):
        fill(store(tmp_path), [number])
    size_bytes = files(tmp_path)[0].stat().st_size
    old = store(tmp_path, [KEYS[1]])
    for path in files(tmp_path):
        os.utime(path, (time.time() - 100, time.time() - 100))
    store(tmp_path, [KEYS[0]])  # uses it
    del old
    fill(store(tmp_path, [KEYS[3], KEYS[4]], quota_bytes=int(2.5 * size_bytes)), [0])
    left = store(tmp_path)
    assert left.has(0)
    assert left.has(3)
    assert not (left.has(1) and left.has(2))
