"""Safetensors files: headers without torch, streaming reads, atomic writes, kohya's hashes.

Tensors are read into memory of their own, never mapped: a mapped file cannot be replaced on Windows, and a mapped
file that shrinks takes the process with it.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast

from .errors import AtelierError, FormatError
from .files import atomic_path, ensure_space, storage_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MAX_HEADER_BYTES = 100_000_000
_ALIGNMENT_BYTES = 8
_OLD_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_LEGACY_HASH_START = 0x100000
_LEGACY_HASH_BYTES = 0x10000
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
_TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64",
    "U64": "uint64",
}  # fmt: skip
# The library lays tensors out by falling dtype, then by name; kohya's hashes depend on that order.
_DTYPE_ORDER = {name: index for index, name in enumerate(_DTYPE_BYTES)}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a safetensors file says about itself.

    Attributes:
        shapes: Shape of every tensor by key, in the order of the file's bytes.
        dtypes: Type of every tensor by key, in the file's own words, e.g. ``"F16"``.
        metadata: The file's metadata, texts only; empty when it has none.
        offsets: Where each tensor's bytes begin and end in the file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]
    offsets: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class TensorRow:
    """What the header says of one tensor.

    Attributes:
        dtype: Its type in the format's words, e.g. ``"F16"``.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]


class TensorSource(Protocol):
    """Tensors by key with a header: an open file, or tensors that are computed when they are asked for."""

    path: Path
    header: Header

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata."""

    def keys(self) -> list[str]:
        """The keys."""

    def tensor(self, key: str, *, dtype: "torch.dtype | None" = None) -> "Tensor":
        """One tensor in CPU memory of its own, in its own type or in the one asked for."""


class TensorFile:
    """A safetensors file opened for streaming: one tensor is in memory at a time unless the caller keeps more."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the header.

        Args:
            path: The file.

        Raises:
            FormatError: Not a safetensors file, or a truncated one.
            StorageError: The file cannot be read.
        """
        self.path = Path(path)
        self.header = read_header(self.path)
        self._file: BufferedReader | None = None

    def __enter__(self) -> "TensorFile":
        """Opens the file."""
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata."""
        return dict(self.header.metadata)

    def close(self) -> None:
        """Closes the file; it opens again at the next read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def keys(self) -> list[str]:
        """Returns the keys in the order of the file's bytes."""
        return list(self.header.shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of one tensor."""
        self._check_key(key)
        return self.header.shapes[key]

    def dtype(self, key: str) -> "torch.dtype":
        """Returns the type of one tensor.

        Raises:
            FormatError: The installed torch does not know the type.
        """
        self._check_key(key)
        try:
            return torch_dtype(self.header.dtypes[key])
        except FormatError as cause:
            name = self.header.dtypes[key]
            raise FormatError(
                f"{self.path}: {key} has the type {name}, which the installed torch does not know"
            ) from cause

    def tensor(self, key: str, *, dtype: "torch.dtype | None" = None) -> "Tensor":
        """Reads one tensor into CPU memory of its own.

        Args:
            key: Its key.
            dtype: Type to convert to; None keeps the file's.

        Raises:
            FormatError: No such key, or a type this torch does not know.
            StorageError: The file cannot be read any more.
        """
        import torch

        file_dtype = self.dtype(key)
        begin, end = self.header.offsets[key]
        raw = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            try:
                file = self._opened()
                file.seek(begin)
                count = file.readinto(cast(Any, raw.numpy()))
            except OSError as cause:
                raise storage_error("read", self.path, cause) from cause
            if count != end - begin:
                raise FormatError(f"{self.path} became shorter while it was read; is it still being written?")
        value = raw.view(file_dtype).reshape(self.header.shapes[key])
        return value if dtype is None else value.to(dtype)

    def _opened(self) -> BufferedReader:
        if self._file is None:
            try:
                self._file = open(self.path, "rb")  # noqa: SIM115 -- closed by close() and __exit__
            except OSError as cause:
                raise storage_error("read", self.path, cause) from cause
        return self._file

    def _check_key(self, key: str) -> None:
        if key not in self.header.shapes:
            raise FormatError(f"{self.path} holds no tensor {key!r}")


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file; no tensor is read and torch is not needed.

    The layout is the one of the safetensors format: eight bytes of length, JSON, then the bytes without gaps.

    Raises:
        FormatError: Not a safetensors file (common mistakes are named), or a truncated one.
        StorageError: The file cannot be read.
    """
    path = Path(path)
    try:
        size_bytes = os.stat(path).st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if len(start) < 8 or length > _MAX_HEADER_BYTES or length < 2:
                raise FormatError(f"{path} is not a safetensors file: {_guess(start, path)}")
            # Memory for the header is asked for only where the file has the bytes.
            text = file.read(min(length, max(0, size_bytes - 8)))
    except OSError as cause:
        raise storage_error("read", path, cause) from cause
    if len(text) < length:
        raise FormatError(f"{path} is truncated: it ends inside its header; copy or download it again")
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as cause:
        raise FormatError(f"{path} is not a safetensors file: {_guess(start, path)}") from cause
    return _checked_header(path, data, first_byte=8 + length, size_bytes=size_bytes)


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Reads every tensor of a file into CPU memory.

    Raises:
        FormatError: Not a safetensors file, or a truncated one.
        StorageError: The file cannot be read.
    """
    with TensorFile(path) as file:
        return {key: file.tensor(key) for key in file.keys()}  # noqa: SIM118 -- a file is not a mapping


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically and tensor by tensor; the same input gives the same bytes.

    The tensors' bytes are those the safetensors library would write; metadata keys are sorted.

    Args:
        path: Where to; missing folders are made.
        tensors: Tensors by key, on any device.
        metadata: Texts by key.

    Raises:
        StorageError: No space or no permission.
        AtelierError: A type that the format does not know, or metadata that is not text.
    """
    header = _header_bytes(tensors, metadata or {})
    ensure_space(path, len(header) + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        for chunk in _data_chunks(tensors):
            file.write(chunk)


def kohya_hashes(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> tuple[str, str]:
    """Computes the two hashes that kohya's tools store in a LoRA file.

    ``sshs_model_hash`` is SHA-256 over the tensors' bytes; ``sshs_legacy_hash`` is the first eight digits of SHA-256
    over 64 KiB at offset 1 MiB of the whole file. Both are of a file that carries the ``ss_`` metadata only, so
    that editing a title does not change them.

    Source: kohya-ss/sd-scripts ``library/train_util.py``, ``precalculate_safetensors_hashes``.

    Args:
        tensors: The file's tensors, in the type in which they are saved.
        metadata: The file's metadata; keys without ``ss_`` are left out.

    Returns:
        The model hash (64 hex digits) and the legacy hash (8 hex digits).
    """
    header = _header_bytes(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    model_hash, legacy_hash = hashlib.sha256(), hashlib.sha256()
    position = 0
    for chunk in (header, *_data_chunks(tensors)):
        if position:
            model_hash.update(chunk)
        low = max(_LEGACY_HASH_START - position, 0)
        high = _LEGACY_HASH_START + _LEGACY_HASH_BYTES - position
        if high > 0:
            legacy_hash.update(memoryview(chunk)[low:high])
        position += len(chunk)
    return model_hash.hexdigest(), legacy_hash.hexdigest()[:8]


def _checked_header(path: Path, data: Any, *, first_byte: int, size_bytes: int) -> Header:
    if not isinstance(data, dict):
        raise FormatError(f"{path} is not a safetensors file: its header is not a table of tensors")
    metadata = data.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        raise FormatError(f"{path} has a broken header: its __metadata__ is {type(metadata).__name__}, not a table")
    entries: list[tuple[int, int, str, str, tuple[int, ...]]] = []
    for key, entry in data.items():
        try:
            begin, end = (int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(size) for size in entry["shape"])
            entries.append((begin, end, key, str(entry["dtype"]), shape))
        except (KeyError, TypeError, ValueError, OverflowError) as cause:
            raise FormatError(f"{path} has a broken header: the entry of {key!r} is malformed") from cause
    entries.sort()
    position = 0
    for begin, end, key, dtype, shape in entries:
        width_bytes = _DTYPE_BYTES.get(dtype)
        fits = width_bytes is None or (end - begin == math.prod(shape) * width_bytes and min(shape, default=0) >= 0)
        if begin != position or end < begin or not fits:
            raise FormatError(f"{path} has a broken header: the place of {key!r} does not fit its shape {shape}")
        position = end
    if size_bytes != first_byte + position:
        wrong = "truncated" if size_bytes < first_byte + position else "broken"
        raise FormatError(
            f"{path} is {wrong}: it should have {first_byte + position:,} bytes and has {size_bytes:,}; "
            "copy or download it again"
        )
    return Header(
        shapes={key: shape for _, _, key, _, shape in entries},
        dtypes={key: dtype for _, _, key, dtype, _ in entries},
        metadata={str(key): str(value) for key, value in metadata.items()},
        offsets={key: (first_byte + begin, first_byte + end) for begin, end, key, _, _ in entries},
    )


def _guess(start: bytes, path: Path) -> str:
    if not start:
        return "it is empty; download it again"
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80" or path.suffix in _OLD_SUFFIXES:
        return "it looks like an old PyTorch checkpoint; convert it to .safetensors first"
    if start.lstrip().lower().startswith((b"<!doc", b"<html", b"<?xml")):
        return "it is a web page; the download needs a login or a direct link"
    if start.startswith(b"version"):
        return "it is a Git LFS pointer; fetch the file itself with git lfs pull"
    if start.startswith(b"GGUF"):
        return "it is a GGUF file"
    return "its first bytes make no sense; download it again"


def _ordered(tensors: "Mapping[str, Tensor]") -> "list[tuple[str, str, Tensor]]":
    rows = [(key, dtype_name(key, tensor), tensor) for key, tensor in tensors.items()]
    return sorted(rows, key=lambda row: (-_DTYPE_ORDER[row[1]], row[0]))


def dtype_name(key: str, tensor: "Tensor") -> str:
    """The type of a tensor in the format's words, e.g. ``"F16"``.

    Raises:
        AtelierError: The format does not know it.
    """
    wanted = str(tensor.dtype).removeprefix("torch.")
    for name, torch_name in _TORCH_NAMES.items():
        if torch_name == wanted:
            return name
    raise AtelierError(f"the tensor {key!r} has the type {tensor.dtype}, which safetensors does not know")


def torch_dtype(name: str) -> "torch.dtype":
    """The type of torch for one in the format's words.

    Raises:
        FormatError: The installed torch does not know it.
    """
    import torch

    dtype = getattr(torch, _TORCH_NAMES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise FormatError(f"the installed torch does not know the type {name}; update torch")
    return dtype


def dtype_bytes(name: str) -> int:
    """Bytes of one element of a type in the format's words.

    Raises:
        AtelierError: The format does not know it.
    """
    if name not in _DTYPE_BYTES:
        raise AtelierError(f"safetensors does not know the type {name!r}; known are {', '.join(_DTYPE_BYTES)}")
    return _DTYPE_BYTES[name]


def layout(rows: Mapping[str, TensorRow], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header of a file, and where each tensor's bytes begin and end behind it.

    Args:
        rows: Type and shape of every tensor; they are laid out by falling type, then by name, as the library does.
        metadata: Texts by key; sorted in the file.

    Raises:
        AtelierError: A type that the format does not know, or metadata that is not text.
    """
    header: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise AtelierError(f"the metadata {key!r} must be a text, not {type(value).__name__}")
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    offsets: dict[str, tuple[int, int]] = {}
    sizes_bytes = {key: math.prod(row.shape) * dtype_bytes(row.dtype) for key, row in rows.items()}
    for key, row in sorted(rows.items(), key=lambda item: (-_DTYPE_ORDER[item[1].dtype], item[0])):
        end = position + sizes_bytes[key]
        header[key] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [position, end]}
        offsets[key] = (position, end)
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text, offsets


def _header_bytes(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> bytes:
    rows = {key: TensorRow(dtype=dtype_name(key, tensor), shape=tuple(tensor.shape)) for key, tensor in tensors.items()}
    return layout(rows, metadata)[0]


def _data_chunks(tensors: "Mapping[str, Tensor]") -> Iterator[bytes]:
    import torch

    for _, _, tensor in _ordered(tensors):
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().tobytes()
