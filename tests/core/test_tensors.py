import hashlib
import json
import os
import struct
import threading
import tracemalloc

import pytest
import safetensors.torch
import torch

from lora_atelier.core.errors import AtelierError, FormatError, StorageError
from lora_atelier.core.tensors import (
    TensorFile,
    kohya_hashes,
    read_header,
    read_tensors,
    write_tensors,
)


def sample_tensors(num_large=1):
    random = torch.Generator().manual_seed(0)
    tensors = {f"large_{i}.weight": torch.randn(700, 700, generator=random) for i in range(num_large)}
    tensors |= {
        "half": torch.randn(3, 5, generator=random).half(),
        "a.brain": torch.randn(2, 2, generator=random).bfloat16(),
        "scalar.alpha": torch.tensor(4.0),
        "ids": torch.arange(7),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
        "double": torch.randn(3, dtype=torch.float64, generator=random),
        "eight": torch.randn(3, generator=random).to(torch.float8_e4m3fn),
        "ü": torch.ones(1, 2, 3, 4),
    }
    return tensors


METADATA = {"ss_steps": "10", "ss_tag_frequency": '{"a": {"ü": 1}}\n', "modelspec.title": 'Ünïcode "quoted"'}


def equal(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left.float(), right.float())


def test_the_library_reads_what_we_write(tmp_path):
    tensors, path = sample_tensors(), tmp_path / "sub" / "file.safetensors"
    write_tensors(path, tensors, METADATA)
    read = safetensors.torch.load_file(path)
    assert set(read) == set(tensors)
    assert all(equal(read[key], tensors[key]) for key in tensors)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == METADATA
    assert os.listdir(path.parent) == [path.name]


def test_the_bytes_are_the_librarys(tmp_path):
    tensors, path = sample_tensors(), tmp_path / "file.safetensors"
    write_tensors(path, tensors, METADATA)
    ours, theirs = path.read_bytes(), safetensors.torch.save(tensors, METADATA)
    (ours_length,), (theirs_length,) = struct.unpack("<Q", ours[:8]), struct.unpack("<Q", theirs[:8])
    assert len(ours) == len(theirs)
    assert ours[8 + ours_length :] == theirs[8 + theirs_length :]
    assert json.loads(ours[8 : 8 + ours_length]) == json.loads(theirs[8 : 8 + theirs_length])


def test_the_same_input_gives_the_same_bytes(tmp_path):
    tensors = sample_tensors()
    write_tensors(tmp_path / "a", tensors, METADATA)
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_we_read_what_the_library_writes(tmp_path):
    tensors, path = sample_tensors(), tmp_path / "file.safetensors"
    safetensors.torch.save_file(tensors, path, METADATA)
    read = read_tensors(path)
    assert all(equal(read[key], tensors[key]) for key in tensors)
    header = read_header(path)
    assert header.metadata == METADATA
    assert header.dtypes["a.brain"] == "BF16"
    assert header.shapes["ü"] == (1, 2, 3, 4)
    with TensorFile(path) as file:
        assert set(file.keys()) == set(tensors)
        assert file.metadata == METADATA
        assert file.shape("half") == (3, 5)
        assert file.dtype("half") is torch.float16
        assert file.tensor("half", dtype=torch.float32).dtype is torch.float32
        with pytest.raises(FormatError, match="no tensor 'other'"):
            file.tensor("other")


def test_tensors_own_their_memory(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.ones(4)})
    with TensorFile(path) as file:
        value = file.tensor("a")
    value += 1
    write_tensors(path, {"a": torch.zeros(4)})
    assert value.tolist() == [2, 2, 2, 2]
    assert read_tensors(path)["a"].tolist() == [0, 0, 0, 0]


def test_views_gradients_and_shared_memory_are_written_as_values(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": base.t(), "same": base, "column": base[:, 1], "grad": torch.ones(2, requires_grad=True)}
    write_tensors(tmp_path / "f", tensors)
    read = read_tensors(tmp_path / "f")
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_no_tensors_and_no_metadata(tmp_path):
    write_tensors(tmp_path / "f", {})
    assert read_tensors(tmp_path / "f") == {}
    assert read_header(tmp_path / "f").metadata == {}


@pytest.mark.parametrize("metadata", [{"ss_steps": 10}, {1: "a"}])
def test_metadata_must_be_text(tmp_path, metadata):
    with pytest.raises(AtelierError, match="must be a text"):
        write_tensors(tmp_path / "f", {}, metadata)
    assert os.listdir(tmp_path) == []


def test_types_outside_the_format(tmp_path):
    with pytest.raises(AtelierError, match="complex128"):
        write_tensors(tmp_path / "f", {"a": torch.zeros(1, dtype=torch.complex128)})


def test_no_space(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_atelier.core.files.free_bytes", lambda path: 100)
    with pytest.raises(StorageError, match="are free"):
        write_tensors(tmp_path / "f", {"a": torch.zeros(1000)})


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated_anywhere(tmp_path, kept):
    path = tmp_path / "file.safetensors"
    write_tensors(path, sample_tensors())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(FormatError, match=r"file\.safetensors"):
        read_header(path)


def test_truncated_inside_the_header(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, sample_tensors())
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FormatError, match="ends inside its header"):
        TensorFile(path)


def test_longer_than_it_says(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, sample_tensors())
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FormatError, match="is broken"):
        read_header(path)


def test_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.zeros(1000)})
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:200])
    with file, pytest.raises(FormatError, match="became shorter"):
        file.tensor("a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + b"x" * 100, "old PyTorch checkpoint"),
        (b"\x80\x02}q\x00" + b"x" * 100, "old PyTorch checkpoint"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00" + b"x" * 100, "GGUF"),
        (struct.pack("<Q", 10) + b"not json!!", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a table"),
        (struct.pack("<Q", 2**62), "not a safetensors file"),
    ],
)
def test_common_mistakes_are_named(tmp_path, content, words):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
        read_header(path)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        3,
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, float("inf")]},
        {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 8]},
    ],
)
def test_headers_that_lie(tmp_path, entry):
    text = json.dumps({"a": entry}).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(FormatError, match="'a'"):
        read_header(path)


@pytest.mark.parametrize("metadata", ["abc", "", 3, 0, False, [["a", "b"]], []])
def test_metadata_that_is_no_table(tmp_path, metadata):
    text = json.dumps({"__metadata__": metadata}).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(FormatError, match="__metadata__"):
        read_header(path)


def test_a_header_longer_than_its_file_asks_for_no_memory(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", 99_000_000) + b"{")
    tracemalloc.start()
    with pytest.raises(FormatError, match="ends inside its header"):
        read_header(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


def test_types_that_torch_does_not_know_are_listed_but_not_read(tmp_path):
    text = json.dumps({"a": {"dtype": "F3_NEW", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    with TensorFile(path) as file:
        assert file.header.dtypes == {"a": "F3_NEW"}
        with pytest.raises(FormatError, match="F3_NEW"):
            file.tensor("a")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StorageError, match="could not read"):
            read_header(path)


@pytest.mark.parametrize("num_large", [0, 1, 3])
def test_kohya_hashes_equal_an_independent_computation(num_large):
    tensors = {key: value for key, value in sample_tensors(num_large).items() if key != "eight"}
    # kohya: serialise with the ss_ metadata only; hash what follows the header, and 64 KiB at 1 MiB.
    content = safetensors.torch.save(tensors, {key: value for key, value in METADATA.items() if key[:3] == "ss_"})
    (length,) = struct.unpack("<Q", content[:8])
    model_hash = hashlib.sha256(content[8 + length :]).hexdigest()
    legacy_hash = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert kohya_hashes(tensors, METADATA) == (model_hash, legacy_hash)


def test_kohya_hashes_do_not_see_titles(tmp_path):
    tensors = sample_tensors(3)
    assert kohya_hashes(tensors, METADATA) == kohya_hashes(tensors, {**METADATA, "modelspec.title": "other" * 100})


def test_the_model_hash_is_that_of_the_file_after_its_header(tmp_path):
    tensors, path = sample_tensors(), tmp_path / "f"
    write_tensors(path, tensors, METADATA)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert kohya_hashes(tensors, METADATA)[0] == hashlib.sha256(content[8 + length :]).hexdigest()


def test_readers_never_see_a_half_written_file(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, {"a": torch.zeros(50_000)})
    stop = threading.Event()
    seen: list[float] = []

    def read():
        while not stop.is_set():
            seen.append(float(read_tensors(path)["a"].unique().item()))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(1, 30):
        write_tensors(path, {"a": torch.full((50_000,), float(value))})
    stop.set()
    reader.join()
    assert seen == sorted(seen)
