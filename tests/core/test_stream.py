"""Streaming: the same bytes as the plain writer, from many threads; cancel, errors and full disks leave no file."""

import errno
import threading

import pytest
import torch

from lora_atelier.core import stream
from lora_atelier.core.errors import AtelierError, FormatError, StorageError
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.core.stream import MemoryBudget, Stop, TensorReader, row_of, run_jobs, stream_tensors
from lora_atelier.core.tensors import read_tensors, write_tensors

TENSORS = {
    "b.half": torch.arange(100_003).to(torch.float16),
    "a.half": torch.randn(7, 11).to(torch.float16),
    "ids": torch.arange(77).reshape(1, 77),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(4.5),
    "eight": torch.randn(9).to(torch.float8_e4m3fn),
}
META = {"b": "2", "a": "1"}


def write_all(path, tensors=TENSORS, *, progress=None, fail=None, threads=3):
    with stream_tensors(path, {key: row_of(value) for key, value in tensors.items()}, META) as writer:

        def do(key, stop):
            if key == fail:
                raise FormatError("no")
            flat = tensors[key].contiguous().reshape(-1)
            data = flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)
            for first in range(0, len(data), 1000):
                stop.check()
                writer.write_bytes(key, first, data[first : first + 1000])

        run_jobs(list(tensors), do, threads=threads, progress=progress)


def test_same_bytes_as_the_plain_writer(tmp_path):
    write_tensors(tmp_path / "plain.safetensors", TENSORS, META)
    write_all(tmp_path / "streamed.safetensors")
    assert (tmp_path / "streamed.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


@pytest.mark.parametrize("by_position", [True, False])
def test_reads_whole_tensors_and_pieces_from_many_threads(tmp_path, by_position):
    write_tensors(tmp_path / "a.safetensors", TENSORS, META)
    with TensorReader(tmp_path / "a.safetensors") as reader:
        reader._file_now()._by_position = by_position and reader._file_now()._by_position

        def do(number, stop):
            out = torch.empty(2000, dtype=torch.uint8)
            reader.read_bytes("b.half", 2000 * number, out)
            assert torch.equal(out.view(torch.float16), TENSORS["b.half"][1000 * number : 1000 * number + 1000])

        run_jobs(range(100), do, threads=4)
        for key, value in TENSORS.items():
            assert torch.equal(reader.tensor(key).view(-1).float(), value.reshape(-1).float())
        with pytest.raises(AtelierError, match="bytes"):
            reader.read_bytes("a.half", 100, torch.empty(1000, dtype=torch.uint8))


def test_pieces_are_written_without_positioned_calls(tmp_path, monkeypatch):
    monkeypatch.delattr(stream.os, "preadv", raising=False)
    write_all(tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["b.half"], TENSORS["b.half"])


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"before")
    with pytest.raises(FormatError, match="no"):
        write_all(tmp_path / "a.safetensors", fail="ids")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"before"


def test_an_unwritten_tensor_is_an_error(tmp_path):
    with (
        pytest.raises(AtelierError, match="ids has 616 bytes and 0 were written"),
        stream_tensors(tmp_path / "a.safetensors", {"ids": row_of(TENSORS["ids"])}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_cancel_between_pieces(tmp_path):
    class Impatient(SilentProgress):
        def check(self):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        write_all(tmp_path / "a.safetensors", progress=Impatient())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_full_in_the_middle(tmp_path, monkeypatch):
    real, calls = stream.os.pwrite, []

    def pwrite(descriptor, data, position):
        calls.append(position)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, position)

    monkeypatch.setattr(stream.os, "pwrite", pwrite)
    with pytest.raises(StorageError, match="disk is full"):
        write_all(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, META)
    reader = TensorReader(path)
    path.write_bytes(path.read_bytes()[:3000])
    with reader, pytest.raises(FormatError, match="became shorter"):
        reader.tensor("b.half")


def test_the_budget_holds_jobs_back_and_lets_a_giant_run_alone():
    budget, stop = MemoryBudget(100), Stop(event=threading.Event())
    together, most, lock = [], [], threading.Lock()

    def do(size, stop):
        with budget.holding(size, stop):
            with lock:
                together.append(size)
                most.append(sum(together))
            with lock:
                together.remove(size)

    run_jobs([60, 60, 500, 30, 30, 30], do, threads=6)
    assert max(total for total in most if total < 500) <= 100
    assert most.count(500) == 1
    with budget.holding(100, stop):
        stop.event.set()
        with pytest.raises(stream.Stopped), budget.holding(1, stop):
            pass
