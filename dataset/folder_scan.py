"""Reading one folder of pictures: sizes, captions, what a site says; remembered as a whole while nothing changes."""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.index import Index
from .columns import CATEGORIES, SOURCES, TagColumnBuilder, TextColumn
from .headers import FILES_AT_ONCE, PictureFile, in_threads, read_headers
from .images import BadPicture, PictureHeader, is_picture_name
from .sidecars import BadCaption, CaptionIndex, Found, parse_caption, read_caption
from .site_json import SiteRecord, category_number, rating_of, read_site_json
from .snapshots import FolderPart, remember, remembered, state_of
from .table import CAPTION_FILE, CAPTION_NONE, CAPTION_SITE, RATINGS
from .walk import FileEntry, Listing, natural_key

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
    state = state_of(listing)
    if index is not None and not options.verify:
        part = remembered(index, key, state)
        if part is not None and not _skipped_are_usable(part, folder, listing, options, pool):
            on_batch(len(part.names))
            return part
    part = _read(folder, listing, options, index, pool, on_batch)
    if index is not None and not options.verify:
        remember(index, key, part, state)
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
    times = {entry.name: entry.mtime_ns for entry in listing.files} if captions.has_json else {}
    users: Counter[str] = Counter()
    for start in range(0, len(pictures), FILES_AT_ONCE):
        batch = pictures[start : start + FILES_AT_ONCE]
        files = [PictureFile(os.path.join(folder, entry.name), entry.size_bytes, entry.mtime_ns) for entry in batch]
        headers = read_headers(files, index=index, verify=options.verify, pool=pool)
        found = [captions.find_all(entry.name) for entry in batch]

        def texts_of(of_picture: Found) -> _Texts | str:
            return _texts(folder, of_picture, listing, options, times)

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


def _texts(
    folder: Path, found: Found, listing: Listing, options: ReadOptions, times: Mapping[str, int]
) -> _Texts | str:
    """What the files beside a picture say, or why they cannot be used; ``times`` by file name, in ns."""
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
        if found.site is not None:
            try:
                record = read_site_json(os.path.join(folder, found.site))
                keys += ["JSON files without tags"] * (record is None)
            except BadCaption:
                if own is None and options.site_tags != "never":
                    raise
                keys.append("unreadable JSON files")  # the picture has its caption all the same
        is_saved = record is not None and record.is_own
        if options.site_tags == "never" and not is_saved:
            record = None
        if is_saved and own is not None and found.caption is not None and found.site is not None:
            is_saved = times[found.site] >= times[found.caption]
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
        if is_saved:
            tags, categories, scores = list(record.tags), list(record.categories), list(record.scores)
            source, forms = CAPTION_FILE, [record.form]
        elif own is None or (options.site_tags == "before caption" and not record.is_own):
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
