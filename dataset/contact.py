"""Contact sheets: small pictures in a grid, each with its name and caption, or with the crop of its bucket."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.params import Params, param
from ..core.progress import Progress
from .buckets import Bucket
from .cards import Card, Section, draw_cards
from .doctor import shown_name
from .thumbs import Shrunk, load_all_small
from .tiers import UPSCALED, BucketRow, Fits, some_pictures
from .words import counted

if TYPE_CHECKING:
    from .table import Dataset

ORDERS: Mapping[str, Callable[["Dataset"], NDArray[np.int64]] | None] = {
    "evenly": None,
    "first": lambda dataset: np.arange(len(dataset), dtype=np.int64),
    "smallest": lambda dataset: np.argsort(dataset.width_px.astype(np.int64) * dataset.height_px, kind="stable").astype(
        np.int64
    ),
    "fewest tags": lambda dataset: np.argsort(dataset.tags.lengths, kind="stable").astype(np.int64),
    "most tags": lambda dataset: np.argsort(-dataset.tags.lengths, kind="stable").astype(np.int64),
}
"""Which pictures of a large set are shown: spread over the whole set, or the first in an order."""


@dataclass(frozen=True, kw_only=True)
class ContactParams(Params):
    """What a contact sheet shows."""

    pictures: int = param(
        48, doc="How many pictures at most; of more, some are taken.", unit="images", minimum=1, maximum=400, step=1
    )
    columns: int = param(6, doc="Pictures side by side.", minimum=1, maximum=24, step=1)
    order: str = param(
        "evenly",
        doc="Which pictures are taken of many: evenly spread over the set, its first ones, the smallest, or those "
        "with the fewest or the most tags.",
        choices=tuple(ORDERS),
    )
    cell_px: int = param(
        224, doc="Longest side of a small picture.", unit="px", minimum=64, maximum=768, step=16, advanced=True
    )
    caption_lines: int = param(
        6, doc="Lines of the caption under each; 0 for none.", minimum=0, maximum=20, step=1, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A drawn sheet and the pictures on it."""

    image: Image.Image
    rows: tuple[int, ...]
    note: str


def contact_sheet(dataset: "Dataset", params: ContactParams, *, progress: Progress | None = None) -> Sheet:
    """Small pictures of a data set with names and captions.

    Args:
        dataset: The table.
        params: How many, which, how large.
        progress: Told per picture; may cancel.
    """
    some_pictures(dataset)
    rows = chosen_rows(dataset, params.pictures, params.order)
    small = load_all_small(
        [dataset.path(row) for row in rows],
        params.cell_px,
        crops=[dataset.crop(row) for row in rows],
        progress=progress,
    )
    cards = [
        Card(
            image=entry if isinstance(entry, str) else entry.image,
            heading=shown_name(dataset, row),
            text=(dataset.caption(row) or "(no caption)") if params.caption_lines else "",
            badge="reg" if dataset.subset_of(row).is_reg else "",
        )
        for row, entry in zip(rows, small, strict=True)
    ]
    note = sample_note(len(rows), len(dataset), params.order)
    image = draw_cards(
        [Section(title="", cards=cards)],
        title=dataset.root.name,
        note=note,
        columns=params.columns,
        cell_px=params.cell_px,
        text_lines=params.caption_lines,
    )
    return Sheet(image=image, rows=tuple(rows), note=note)


def bucket_sheet(
    dataset: "Dataset",
    fits: Fits,
    buckets: Sequence[BucketRow],
    params: ContactParams,
    *,
    progress: Progress | None = None,
) -> Sheet:
    """Small pictures by bucket, with the part that is trained framed and the rest dimmed.

    Args:
        dataset: The table.
        fits: Its buckets.
        buckets: Their table.
        params: How many, how large; every bucket shows at least one picture as long as there is room.
        progress: Told per picture; may cancel.
    """
    some_pictures(dataset)
    by_bucket = _rows_by_bucket(fits, params.pictures)
    rows = [row for _, chosen in by_bucket for row in chosen]
    small = iter(
        load_all_small(
            [dataset.path(row) for row in rows],
            params.cell_px,
            crops=[dataset.crop(row) for row in rows],
            progress=progress,
        )
    )
    sections = [
        Section(
            title=_bucket_title(buckets[number], len(chosen)),
            cards=[_bucket_card(dataset, fits, row, next(small)) for row in chosen],
        )
        for number, chosen in by_bucket
    ]
    note = sample_note(len(rows), len(dataset), "evenly")
    if len(by_bucket) < len(buckets):
        note += f"; the {len(by_bucket)} largest of {len(buckets)} buckets"
    image = draw_cards(
        sections, title=f"{dataset.root.name}: what is trained", note=note, columns=params.columns,
        cell_px=params.cell_px, text_lines=3,
    )  # fmt: skip
    return Sheet(image=image, rows=tuple(rows), note=note)


def chosen_rows(dataset: "Dataset", count: int, order: str) -> list[int]:
    """Some pictures of a data set by one of ``ORDERS``; all of them, in their order, where there are no more."""
    sort = ORDERS[order]
    if sort is not None:
        return [int(row) for row in sort(dataset)[:count]]
    return spread(len(dataset), count)


def spread(total: int, count: int) -> list[int]:
    """``count`` places spread evenly over ``total``, or all of them."""
    if total <= count:
        return list(range(total))
    return [int(place) for place in np.linspace(0, total - 1, count).round()]


def sample_note(shown: int, total: int, order: str) -> str:
    """Says how many pictures of how many are shown, and which."""
    if shown >= total:
        return f"all {counted(total, 'picture')}"
    which = "evenly taken" if order == "evenly" else order
    return f"{shown} of {total} pictures, {which}"


def crop_shares(bucket: Bucket, focus: tuple[float, float] | None) -> tuple[float, float, float, float]:
    """The trained part of a picture in shares 0..1 of its sides."""
    left, top, right, bottom = bucket.crop_at(focus)
    width_px, height_px = bucket.resized
    return left / width_px, top / height_px, right / width_px, bottom / height_px


def _rows_by_bucket(fits: Fits, count: int) -> list[tuple[int, list[int]]]:
    """Per bucket (largest first) the pictures shown: one each, the rest of the room by size."""
    index = fits.buckets.index
    sizes = np.bincount(index, minlength=len(fits.buckets.sizes))
    order = np.argsort(-sizes, kind="stable")[:count]
    room = _shared_out(count, sizes[order])
    by_place = np.argsort(index, kind="stable")
    starts = np.cumsum(sizes) - sizes
    found = []
    for number, shown in zip(order.tolist(), room, strict=True):
        inside = by_place[starts[number] : starts[number] + sizes[number]]
        found.append((number, [int(inside[place]) for place in spread(len(inside), shown)]))
    return found


def _shared_out(count: int, sizes: NDArray[np.int64]) -> list[int]:
    """Shares a count out by size: at least one each, at most the size, largest remainders first."""
    exact = count * sizes / max(1, int(sizes.sum()))
    shown = np.clip(np.floor(exact).astype(np.int64), 1, sizes)
    while shown.sum() > count and shown.max() > 1:
        shown[int(np.argmax(shown))] -= 1
    while shown.sum() < count and (shown < sizes).any():
        shown[int(np.argmax(np.where(shown < sizes, exact - shown, -np.inf)))] += 1
    return [int(value) for value in shown]


def _bucket_title(row: BucketRow, shown: int) -> str:
    batches = f"{row.batches} batch{'es' * (row.batches != 1)}"
    partial = f", the last with {row.partial}" if row.partial else ""
    taken = f"{shown} of {counted(row.pictures, 'picture')}" if shown < row.pictures else counted(shown, "picture")
    return f"{row.size[0]} x {row.size[1]} px \u00b7 {taken} \u00b7 {batches} per epoch{partial}"


def _bucket_card(dataset: "Dataset", fits: Fits, row: int, small: Shrunk | str) -> Card:
    bucket, scale, loss = fits.buckets[row], float(fits.scale[row]), float(fits.loss[row])
    upscaled = fits.tier[row] == UPSCALED
    how = f"enlarged {scale:.2f}x" if upscaled else f"shrunk to {scale:.0%}" if scale < 1.0 else "at its size"
    return Card(
        image=small if isinstance(small, str) else small.image,
        heading=shown_name(dataset, row),
        text=f"{bucket.source[0]} x {bucket.source[1]} px, {how}\ncrop cuts off {loss:.0%}",
        crop=crop_shares(bucket, dataset.focal_point(row)),
        badge=f"{scale:.1f}x" if upscaled else "",
        alarm=bool(upscaled),
    )
