"""Whole folders as they were read last, remembered in the index until nobody has opened them for long.

A data set's folder is one row of the index, as large as its captions; a folder that was opened once with each of many
settings has a row for each. So rows that are old or, beyond a limit, those not used for longest are forgotten: the
folder is then read again from the headers, which are remembered one by one.
"""

import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.index import Index
from .columns import TagColumn, TextColumn, new_digest
from .walk import Listing

SNAPSHOT_KIND = "folder:2"
_OLDER_KINDS = ("folder:1",)
USED_KIND = "folder-used:1"
"""When a remembered folder was used last, in days since 1970, by the same key."""
KEPT_DAYS = 180
KEPT_BYTES = 1 << 30
MOST_BYTES = 1 << 28
"""A larger folder is not remembered whole."""
_DAY_S = 24 * 3600


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderPart:
    """The pictures of one folder that can be used, in natural order, as columns.

    Attributes:
        names: Their file names.
        numbers: int64 [pictures, 4]: width and height in px, size in bytes, modification time in ns.
        caption_source: uint8 [pictures].
        tags: Their tags; none where no file says any.
        site: float64 [pictures, 3]: score (nan), favourites (-1), rating (0).
        skipped: Pictures that cannot be used, with the reason.
        counts: What a person should know, by a key of ``scan``'s notes.
        forms: How captions were read, by number of pictures.
        other_endings: Files that are neither pictures nor captions.
    """

    names: TextColumn
    numbers: NDArray[np.int64]
    caption_source: NDArray[np.uint8]
    tags: TagColumn
    site: NDArray[np.float64]
    skipped: tuple[tuple[str, str], ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    other_endings: Counter[str] = field(default_factory=Counter)


def remembered(index: Index, key: bytes, state: str) -> FolderPart | None:
    """A folder as it was read last, or None when it was not or has changed since."""
    part = unpacked(index.get(SNAPSHOT_KIND, key), state)
    if part is not None:
        _mark_used(index, key)
    return part


def remember(index: Index, key: bytes, part: FolderPart, state: str) -> None:
    """Keeps a folder as it was read.

    Raises:
        StorageError: The index cannot be written.
    """
    row = packed(part, state)
    if len(row) <= MOST_BYTES:
        index.put_many(SNAPSHOT_KIND, [(key, row)])
        _mark_used(index, key)


def forget_old(
    index: Index, *, kept_days: int = KEPT_DAYS, kept_bytes: int = KEPT_BYTES, today: int | None = None
) -> int:
    """Forgets folders that were not used for long, and of the others those used least lately beyond a size.

    Args:
        index: Where they are remembered.
        kept_days: Age from which they go.
        kept_bytes: What all of them together may take.
        today: Days since 1970; by default the clock's.

    Returns:
        How many were forgotten.

    Raises:
        StorageError: The index cannot be written.
    """
    for kind in _OLDER_KINDS:
        index.delete_many(kind, index.sizes(kind))
    today = _today() if today is None else today
    used = {key: int.from_bytes(day, "little") for key, day in index.items(USED_KIND)}
    sizes = index.sizes(SNAPSHOT_KIND)
    unmarked = [key for key in sizes if key not in used]
    index.put_many(USED_KIND, [(key, today.to_bytes(4, "little")) for key in unmarked])
    total, gone = 0, [key for key in used if key not in sizes]
    for key in sorted(sizes, key=lambda key: -used.get(key, today)):
        total += sizes[key]
        if total > kept_bytes or used.get(key, today) <= today - kept_days:
            gone.append(key)
    index.delete_many(SNAPSHOT_KIND, gone)
    index.delete_many(USED_KIND, gone)
    return len(gone)


def _mark_used(index: Index, key: bytes) -> None:
    today = _today().to_bytes(4, "little")
    if index.get(USED_KIND, key) != today:
        index.put_many(USED_KIND, [(key, today)])


def _today() -> int:
    return int(time.time() // _DAY_S)


def state_of(listing: Listing) -> str:
    """Hash of all names, sizes and times of a folder."""
    digest = new_digest()
    names = "\0".join([entry[0] for entry in listing.files])
    digest.update(names.encode("utf-8", "surrogatepass"))
    for place in (1, 2):  # sizes, then times
        digest.update(np.array([entry[place] for entry in listing.files], dtype=np.int64).tobytes())
    digest.update(json.dumps([sorted(listing.refused.items()), listing.folders]).encode("ascii"))
    return digest.hexdigest()


def packed(part: FolderPart, state: str) -> bytes:
    """A part as one row of the index: a line of JSON, then the columns one after another."""
    tags = part.tags
    arrays: list[tuple[str, NDArray[Any]]] = [
        ("numbers", part.numbers),
        ("caption_source", part.caption_source),
        ("site", part.site),
        ("offsets", tags.offsets),
        ("ids", tags.ids),
        ("categories", tags.categories),
    ]
    arrays += [] if tags.scores is None else [("scores", tags.scores)]
    arrays += [] if tags.sources is None else [("sources", tags.sources)]
    texts = {"names": "\0".join(part.names), "vocabulary": "\0".join(tags.vocabulary)}
    encoded = {name: text.encode("utf-8") for name, text in texts.items()}
    head = {
        "state": state,
        "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays],
        "texts": [(name, len(data)) for name, data in encoded.items()],
        "rows": len(part.names),
        "words": len(tags.vocabulary),
        "skipped": part.skipped,
        "counts": part.counts,
        "forms": part.forms,
        "other_endings": part.other_endings,
    }
    body = b"".join(
        [json.dumps(head).encode("ascii"), b"\n", *(array.tobytes() for _, array in arrays), *encoded.values()]
    )
    return hashlib.blake2b(body, digest_size=16).digest() + body


def unpacked(row: bytes | None, state: str) -> FolderPart | None:
    """A part out of a row of the index; None when there is none or the folder changed since."""
    if row is None:
        return None
    if hashlib.blake2b(memoryview(row)[16:], digest_size=16).digest() != row[:16]:
        return None
    place = row.index(b"\n", 16) + 1
    head = json.loads(row[16:place])
    if head["state"] != state:
        return None
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in head["arrays"]:
        values = np.frombuffer(row, dtype=dtype, count=math.prod(shape), offset=place).reshape(shape)
        arrays[name] = values.copy()  # a view would keep the whole row in memory
        place += values.nbytes
    texts: dict[str, str] = {}
    for name, length in head["texts"]:
        texts[name] = row[place : place + length].decode("utf-8")
        place += length
    return FolderPart(
        names=TextColumn.from_strings(texts["names"].split("\0") if head["rows"] else []),
        numbers=arrays["numbers"],
        caption_source=arrays["caption_source"],
        tags=TagColumn(
            tuple(texts["vocabulary"].split("\0")) if head["words"] else (),
            arrays["offsets"],
            arrays["ids"],
            categories=arrays["categories"],
            scores=arrays.get("scores"),
            sources=arrays.get("sources"),
        ),
        site=arrays["site"],
        skipped=tuple((name, reason) for name, reason in head["skipped"]),
        counts=Counter(head["counts"]),
        forms=Counter(head["forms"]),
        other_endings=Counter(head["other_endings"]),
    )
