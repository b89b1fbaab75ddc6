"""Reading one folder of pictures: sizes, captions, what a site says; remembered as a whole while nothing changes."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.index import Index
from .columns import CATEGORIES, SOURCES, TagColumn, TagColumnBuilder, TextColumn, new_digest
from .headers import FILES_AT_ONCE, PictureFile, in_threads, read_headers
from .images import BadPicture, PictureHeader, is_picture_name
from .sidecars import BadCaption, CaptionIndex, Found, parse_caption, read_caption
from .site_json import SiteRecord, category_number, rating_of, read_site_json
from .table import CAPTION_FILE, CAPTION_NONE, CAPTION_SITE, RATINGS
from .walk import FileEntry, Listing, natural_key

SNAPSHOT_KIND = "folder:1"
SITE_TAGS = ("without caption", "before caption", "never")
_NOT_FOREIGN = frozenset([".npz", ".json", ".jsonl", ".toml", ".safetensors", ".tags", ""])
_SITE, _RATING = SOURCES.index("site"), CATEGORIES.index("rating")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How captions are found and taken apart; part of what a remembered folder depends on.

    Attributes:
        endings: Endings of caption files, first choice first, lower case.
        separator: As for ``parse_caption``.
        site_tags: One of ``SITE_TAGS``.
        site_ratings: Whether a rating becomes the last tag.
        verify: Whether every picture is decoded.
    """

    endings: tuple[str, ...]
    separator: str = "auto"
    site_tags: str = SITE_TAGS[0]
    site_ratings: bool = False
    verify: bool = False


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


@dataclass(frozen=True, slots=True)
class _Texts:
    """What the files beside a picture say."""

    tags: Sequence[str]
    categories: Sequence[int]
    scores: Sequence[float]
    num_from_site: int
    source: int
    forms: tuple[str, ...]
    score: float
    favourites: int
    rating: int
    keys: tuple[str, ...]


def num_pictures(listing: Listing) -> int:
    """How many files of a folder are called like pictures."""
    return sum(is_picture_name(entry.name) for entry in listing.files)


def read_folder(
    folder: Path,
    listing: Listing,
    options: ReadOptions,
    *,
    index: Index | None,
    pool: ThreadPoolExecutor,
    on_batch: Callable[[int], None],
) -> FolderPart:
    """Reads the pictures of a listed folder, or remembers them.

    Args:
        folder: Where the listing is from.
        listing: Its files.
        options: How captions are read.
        index: Where headers and whole folders are remembered.
        pool: Threads.
        on_batch: Told how many pictures are done, after every batch; may cancel. What was read is remembered.
    """
    key = f"{folder}\0{options!r}".encode("utf-8", "surrogatepass")
    state = _state_of(listing)
    if index is not None and not options.verify:
        part = _remembered(index.get(SNAPSHOT_KIND, key), state)
        if part is not None and not _skipped_are_usable(part, folder, listing, options, pool):
            on_batch(len(part.names))
            return part
    part = _read(folder, listing, options, index, pool, on_batch)
    if index is not None and not options.verify:
        index.put_many(SNAPSHOT_KIND, [(key, _packed(part, state))])
    return part


def _read(
    folder: Path,
    listing: Listing,
    options: ReadOptions,
    index: Index | None,
    pool: ThreadPoolExecutor,
    on_batch: Callable[[int], None],
) -> FolderPart:
    pictures, others = _sorted_out(listing, options)
    beside = [*(entry.name for entry in listing.files), *listing.refused, *listing.folders]
    captions = CaptionIndex(beside, options.endings)
    collected = _Collected(others)
    users: Counter[str] = Counter()
    for start in range(0, len(pictures), FILES_AT_ONCE):
        batch = pictures[start : start + FILES_AT_ONCE]
        files = [PictureFile(os.path.join(folder, entry.name), entry.size_bytes, entry.mtime_ns) for entry in batch]
        headers = read_headers(files, index=index, verify=options.verify, pool=pool)
        found = [captions.find_all(entry.name) for entry in batch]

        def texts_of(of_picture: Found) -> _Texts | str:
            return _texts(folder, of_picture, listing, options)

        texts = in_threads(texts_of, found, pool)
        users.update(of_picture.caption for of_picture in found if of_picture.caption is not None)
        for entry, header, text in zip(batch, headers, texts, strict=True):
            collected.add(entry, header, text)
        on_batch(len(batch))
    collected.counts["shared captions"] += sum(count for count in users.values() if count > 1)
    return collected.part()


class _Collected:
    """Gathers rows of a folder."""

    def __init__(self, other_endings: Counter[str]) -> None:
        self.names: list[str] = []
        self.numbers: list[tuple[int, int, int, int]] = []
        self.sources: list[int] = []
        self.site: list[tuple[float, float, float]] = []
        self.tags = TagColumnBuilder()
        self.skipped: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()
        self.other_endings = other_endings

    def add(self, entry: FileEntry, header: PictureHeader | BadPicture, texts: _Texts | str) -> None:
        if isinstance(header, BadPicture) or isinstance(texts, str):
            self.skipped.append((entry.name, header.reason if isinstance(header, BadPicture) else str(texts)))
            return
        self.counts["transparent"] += header.has_alpha
        self.counts.update(texts.keys)
        self.forms.update(texts.forms)
        self.names.append(entry.name)
        self.numbers.append((header.width_px, header.height_px, entry.size_bytes, entry.mtime_ns))
        self.sources.append(texts.source)
        self.site.append((texts.score, texts.favourites, texts.rating))
        self.tags.append(
            texts.tags,
            categories=texts.categories,
            scores=texts.scores,
            source=_SITE if texts.num_from_site else 0,
            num_sourced=texts.num_from_site,
        )

    def part(self) -> FolderPart:
        return FolderPart(
            names=TextColumn.from_strings(self.names),
            numbers=np.array(self.numbers, dtype=np.int64).reshape(-1, 4),
            caption_source=np.array(self.sources, dtype=np.uint8),
            tags=self.tags.build(),
            site=np.array(self.site, dtype=np.float64).reshape(-1, 3),
            skipped=tuple(self.skipped),
            counts=+self.counts,
            forms=self.forms,
            other_endings=self.other_endings,
        )


def _sorted_out(listing: Listing, options: ReadOptions) -> tuple[list[FileEntry], Counter[str]]:
    """The pictures in natural order, and a count of files that are neither pictures nor captions."""
    pictures: list[FileEntry] = []
    others: Counter[str] = Counter()
    for entry in listing.files:
        if is_picture_name(entry.name):
            pictures.append(entry)
            continue
        ending = os.path.splitext(entry.name)[1].lower()
        if ending not in _NOT_FOREIGN and ending not in options.endings:
            others[ending] += 1
    pictures.sort(key=lambda entry: natural_key(entry.name))
    return pictures, others


def _texts(folder: Path, found: Found, listing: Listing, options: ReadOptions) -> _Texts | str:
    """What the files beside a picture say, or why they cannot be used."""
    for name in (found.caption, found.site):
        if name is not None and name in listing.refused:
            return f"its caption file {name!r}: {listing.refused[name]}"
    try:
        own = own_form = None
        keys: list[str] = []
        if found.caption is not None:
            caption = read_caption(os.path.join(folder, found.caption))
            own = parse_caption(caption, separator=options.separator, name=found.caption)
            own_form = own.form
            keys += ["empty captions"] * (not own.tags)
            keys += ["captions of several lines"] * (own.unused_lines > 0)
        record = None
        if found.site is not None and options.site_tags != "never":
            try:
                record = read_site_json(os.path.join(folder, found.site))
                keys += ["JSON files without tags"] * (record is None)
            except BadCaption:
                if own is None:
                    raise
                keys.append("unreadable JSON files")  # the picture has its caption all the same
    except BadCaption as refusal:
        return refusal.reason
    tags: list[str] = list(own.tags) if own is not None else []
    categories = [category_number(name) for name in own.categories] if own is not None else []
    scores: list[float] = []
    num_from_site, source, forms = 0, CAPTION_FILE if own is not None else CAPTION_NONE, [own_form] if own_form else []
    score, favourites, rating = math.nan, -1, 0
    if own is not None and (own.rating or own.score):
        rating, score = rating_of(own.rating, ""), _number_in(own.score)
    if record is not None:
        score, favourites, rating = record.score, record.favourites, record.rating
        if own is None or options.site_tags == "before caption":
            tags, categories, scores, num_from_site = _with_site(record, tags)
            source = CAPTION_SITE if own is None else CAPTION_FILE
            forms.append(record.form)
    if options.site_ratings and rating and RATINGS[rating] not in tags:
        categories = [*categories, *[0] * (len(tags) - len(categories)), _RATING]
        scores = [*scores, *[math.nan] * (len(tags) + 1 - len(scores))] if scores else scores
        tags = [*tags, RATINGS[rating]]
    return _Texts(
        tags, categories, scores, num_from_site, source, tuple(forms), score, favourites, rating, tuple(keys)
    )  # fmt: skip


def _with_site(record: SiteRecord, own: Sequence[str]) -> tuple[list[str], list[int], list[float], int]:
    """The site's tags with the caption's own after them, where the site does not have them."""
    has = {tag.replace("_", " ").casefold() for tag in record.tags}
    more = [tag for tag in own if tag.replace("_", " ").casefold() not in has]
    scores = [*record.scores, *[math.nan] * len(more)] if record.scores else []
    return [*record.tags, *more], list(record.categories), scores, len(record.tags)


def _number_in(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _skipped_are_usable(
    part: FolderPart, folder: Path, listing: Listing, options: ReadOptions, pool: ThreadPoolExecutor
) -> bool:
    """Whether a picture that could not be used can be used now (a permission, a library that was installed)."""
    if not part.skipped:
        return False
    names = {name for name, _ in part.skipped}
    some = Listing(
        listing.relative,
        tuple(entry for entry in listing.files if entry.name in names or not is_picture_name(entry.name)),
        listing.refused,
        listing.folders,
        listing.open_folders,
    )
    again = _read(folder, some, options, None, pool, lambda _: None)
    return again.skipped != part.skipped


def _state_of(listing: Listing) -> str:
    """Hash of all names, sizes and times of a folder."""
    digest = new_digest()
    names = "\0".join([entry[0] for entry in listing.files])
    digest.update(names.encode("utf-8", "surrogatepass"))
    for place in (1, 2):  # sizes, then times
        digest.update(np.array([entry[place] for entry in listing.files], dtype=np.int64).tobytes())
    digest.update(json.dumps([sorted(listing.refused.items()), listing.folders]).encode("ascii"))
    return digest.hexdigest()


def _packed(part: FolderPart, state: str) -> bytes:
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


def _remembered(row: bytes | None, state: str) -> FolderPart | None:
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
