"""Many small results by key in few files: safetensors shards that are added and removed whole.

A shard names its own keys, so there is no index that could disagree with it: a process that is killed leaves whole
shards and nothing else, and several processes may fill one folder. Every row has a checksum. What was used least
recently goes first when the quota is passed; the file system's time of a shard is when it was last used.

Tensors of a shard, for each group of rows with the same names, types and shapes, numbered from 0: ``N.keys`` U8
[rows, 16], ``N.crc`` I64 [rows] (CRC-32 over a row's key and its values in the order of their names), and
``N.value.NAME`` [rows, ...].
"""

import hashlib
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import AtelierError, FormatError, StorageError
from .store import Store
from .tensors import TensorFile, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    Row = Mapping[str, Tensor]

KEY_BYTES = 16
FORMAT = "atelier-shards-1"
SHARD_BYTES = 64 * 2**20
"""Size at which a shard is written."""
WRITE_EVERY_S = 30.0
"""Seconds of work after which a smaller shard is written, so that a power cut costs no more than this ..."""
WRITE_EVERY_SHARE = 0.05
"""... or than this share of a long work, so that slow work does not leave thousands of small files."""


class DamagedShard(FormatError):
    """A shard turned out to be damaged or is gone; it was removed, and its rows are missing now."""


@dataclass(frozen=True)
class _Group:
    """Where the rows of a group lie: by name, the first row's place in the file, bytes per row, type and shape."""

    values: Mapping[str, tuple[int, int, str, tuple[int, ...]]]
    crc: NDArray[np.int64]


@dataclass
class _Shard:
    path: Path
    groups: list[_Group]


@dataclass
class _Waiting:
    """Rows that are not written yet."""

    rows: list[tuple[int, "Row"]] = field(default_factory=list)
    size_bytes: int = 0
    began_s: float = field(default_factory=time.monotonic)
    written_s: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        now_s = time.monotonic()
        patience_s = max(WRITE_EVERY_S, WRITE_EVERY_SHARE * (now_s - self.began_s))
        return self.size_bytes >= SHARD_BYTES or now_s - self.written_s >= patience_s


class Shards:
    """The rows of some keys, wherever in a folder of shards they lie."""

    def __init__(
        self, folder: Path, keys: Sequence[bytes], *, quota_bytes: int, status: Callable[[str], None] | None = None
    ) -> None:
        """Knows the keys; nothing is read yet, see :meth:`look`.

        Args:
            folder: Of the shards; made when something is written.
            keys: 16 bytes each, one for each row that is wanted; equal keys are one row.
            quota_bytes: Total size above which shards are removed.
            status: Told of damaged shards.
        """
        self.store = Store(folder, quota_bytes)
        self._status = status or (lambda text: None)
        column = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
        self._keys, first, inverse = np.unique(_as_words(column), return_index=True, return_inverse=True)
        self._first: NDArray[np.int64] = first
        self._unique_of: NDArray[np.int64] = inverse.reshape(-1)
        self._column = column
        self._place: NDArray[np.int64] = np.full((len(self._keys), 3), -1, dtype=np.int64)
        self._shards: list[_Shard | None] = []
        self._seen: set[Path] = set()

    def look(self) -> None:
        """Finds the rows in shards that came since the last look; a damaged shard is removed and told."""
        for path in self.store.files():
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                self._take(path)
            except AtelierError as cause:
                if path.exists():
                    self._status(f"A file of the cache is damaged, and what it held is made again ({cause}).")
                    self.store.discard(path)

    def missing(self) -> list[int]:
        """The numbers of the rows that lie in no shard, of equal keys the first."""
        return sorted(self._first[self._place[:, 0] < 0].tolist())

    def has(self, number: int) -> bool:
        """Whether a row lies in a shard."""
        return bool(self._place[self._unique_of[number], 0] >= 0)

    def read(self, number: int) -> dict[str, "Tensor"]:
        """The values of a row, in CPU memory of their own.

        Raises:
            DamagedShard: Its checksum is wrong, or its shard is gone; all rows of that shard are missing now.
        """
        shard_number, group_number, row = self._place[self._unique_of[number]].tolist()
        shard = self._shards[shard_number] if shard_number >= 0 else None
        if shard is None:
            raise DamagedShard("A row of the cache is missing, as its file was damaged or deleted.")
        group = shard.groups[group_number]
        try:
            values, crc = _read_row(
                shard.path, group, row, self._column[self._first[self._unique_of[number]]].tobytes()
            )
        except OSError as cause:
            raise self._lost(shard_number, f"it cannot be read ({cause})") from cause
        if crc != int(group.crc[row]):
            raise self._lost(shard_number, "a checksum is wrong")
        return values

    @contextmanager
    def writing(self) -> Iterator[Callable[[int, "Row"], bool]]:
        """Gives ``put(number, row)``, which collects rows and writes them in shards, the last when the block ends.

        Also when it ends by an exception, such as Cancel. ``put`` says whether a shard was written just now; then rows
        of other processes may have come, see :meth:`look`.

        Raises:
            StorageError: A shard cannot be written.
        """
        waiting = _Waiting()

        def put(number: int, row: "Row") -> bool:
            waiting.rows.append((number, row))
            waiting.size_bytes += sum(tensor.numel() * tensor.element_size() for tensor in row.values())
            if not waiting.is_due():
                return False
            self._write(waiting)
            return True

        try:
            yield put
        except BaseException as stop:
            try:
                self._write(waiting)
            except StorageError as failure:
                raise stop from failure
            raise
        self._write(waiting)

    def _write(self, waiting: _Waiting) -> None:
        if waiting.rows:
            path = self.store.put(*self._as_put(waiting.rows))
            self._seen.add(path)
            self._take(path)
        waiting.rows, waiting.size_bytes, waiting.written_s = [], 0, time.monotonic()

    def _as_put(self, rows: Sequence[tuple[int, "Row"]]) -> tuple[str, Callable[[Path], None]]:
        import torch

        groups: dict[str, list[tuple[int, Row]]] = {}
        for number, row in rows:
            kind = repr(sorted((name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in row.items()))
            groups.setdefault(kind, []).append((number, row))
        tensors: dict[str, Tensor] = {}
        digest = hashlib.sha256()
        for place, kind in enumerate(sorted(groups)):
            members = groups[kind]
            keys = np.ascontiguousarray(self._column[[number for number, _ in members]])
            digest.update(kind.encode("utf-8") + keys.tobytes())
            tensors[f"{place}.keys"] = torch.from_numpy(keys)
            crcs = []
            names = sorted(members[0][1])
            for name in names:
                tensors[f"{place}.value.{name}"] = torch.stack([row[name].detach().cpu() for _, row in members])
            for line in range(len(members)):
                crc = zlib.crc32(keys[line].tobytes())
                for name in names:
                    crc = zlib.crc32(_bytes_of(tensors[f"{place}.value.{name}"][line]), crc)
                crcs.append(crc)
            tensors[f"{place}.crc"] = torch.tensor(crcs, dtype=torch.int64)
        # A name of its own: a damaged shard that another program holds open must not be taken for this one.
        key = f"{digest.hexdigest()}-{secrets.token_hex(8)}.safetensors"
        return key, lambda path: write_tensors(path, tensors, {"format": FORMAT})

    def _take(self, path: Path) -> None:
        """Notes which of the wanted rows a shard holds.

        Raises:
            FormatError: It is no shard.
            StorageError: It cannot be read.
        """
        found: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        with TensorFile(path) as file:
            shapes = file.header.shapes
            if file.metadata.get("format") != FORMAT:
                raise FormatError(f"{path.name} is no file of this cache")
            groups: list[_Group] = []
            while f"{len(groups)}.keys" in shapes:
                keys, group = _read_group(file, len(groups))
                place = np.searchsorted(self._keys, keys)
                place[place == len(self._keys)] = 0
                rows = np.flatnonzero(self._keys[place] == keys) if len(self._keys) else np.zeros(0, dtype=np.int64)
                found.append((len(groups), place[rows], rows))
                groups.append(group)
        if any(len(rows) for _, _, rows in found):
            self.store.use(path)
            for group_number, unique, rows in found:
                self._place[unique, 0] = len(self._shards)
                self._place[unique, 1] = group_number
                self._place[unique, 2] = rows
            self._shards.append(_Shard(path, groups))

    def _lost(self, number: int, why: str) -> DamagedShard:
        """Removes a shard; returns the error to raise."""
        shard = self._shards[number]
        self._shards[number] = None
        self._place[self._place[:, 0] == number] = -1
        name = "" if shard is None else shard.path.name
        if shard is not None:
            self.store.discard(shard.path)
        self._status(f"The file {name} of the cache is damaged ({why}), and what it held is made again.")
        return DamagedShard(f"the file {name} of the cache is damaged: {why}")


def _as_words(column: NDArray[np.uint8]) -> NDArray[Any]:
    """Keys as text of bytes that sorts and compares (zero bytes at the end do not count, for every key alike)."""
    return np.ascontiguousarray(column).view(f"S{KEY_BYTES}").reshape(-1)


def _read_group(file: TensorFile, number: int) -> tuple[NDArray[Any], _Group]:
    header, prefix = file.header, f"{number}.value."
    try:
        keys, crc = file.tensor(f"{number}.keys").numpy(), file.tensor(f"{number}.crc").numpy()
    except AtelierError as cause:
        raise FormatError(f"{file.path.name} lacks a part") from cause
    values: dict[str, tuple[int, int, str, tuple[int, ...]]] = {}
    for key in sorted(header.shapes):
        if key.startswith(prefix):
            shape, (begin, end) = header.shapes[key], header.offsets[key]
            if len(shape) < 1 or shape[0] != len(keys):
                raise FormatError(f"{file.path.name} has values without a key")
            values[key[len(prefix) :]] = (begin, (end - begin) // max(1, shape[0]), header.dtypes[key], shape[1:])
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES or crc.shape != (len(keys),):
        raise FormatError(f"{file.path.name} has keys of a wrong kind")
    return _as_words(keys), _Group(values, crc)


def _read_row(path: Path, group: _Group, row: int, key: bytes) -> tuple[dict[str, "Tensor"], int]:
    import torch

    from .tensors import torch_dtype

    values: dict[str, Tensor] = {}
    crc = zlib.crc32(key)
    with open(path, "rb") as file:
        for name, (begin, row_bytes, dtype, shape) in group.values.items():
            raw = torch.empty(row_bytes, dtype=torch.uint8)
            file.seek(begin + row * row_bytes)
            if row_bytes and file.readinto(cast(Any, raw.numpy())) != row_bytes:
                raise OSError("the file became shorter")
            crc = zlib.crc32(cast(Any, raw.numpy()), crc)
            values[name] = raw.view(torch_dtype(dtype)).reshape(shape)
    return values, crc


def _bytes_of(tensor: "Tensor") -> memoryview:
    import torch

    return memoryview(cast(Any, tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
