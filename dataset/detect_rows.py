"""Looking at every picture of a data set once: what is found is remembered by content, so a stopped pass goes on."""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image

from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from .detect import LEAST_SCORE, Detector, Found, from_bytes, to_bytes
from .headers import PictureFile, content_digests
from .images import BadPicture
from .table import Dataset
from .thumbs import WORKERS, Shrunk, load_small

_BLOCK = 64
"""Pictures between two transactions of the index; what a kill can lose."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """What was found in the pictures of a data set.

    Attributes:
        rows: By place in the data set, what is there, in px of the (cropped) picture; pictures without are left out.
        problems: Pictures or box files that could not be read, one sentence each.
        origin: Where the boxes come from, in words.
    """

    rows: Mapping[int, Sequence[Found]]
    problems: tuple[str, ...] = ()
    origin: str = ""

    def names(self) -> dict[str, int]:
        """How often each class was found, most frequent first."""
        counts: dict[str, int] = {}
        for found in self.rows.values():
            for item in found:
                counts[item.name] = counts.get(item.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


@dataclass(kw_only=True)
class Pass:
    """One way of looking at pictures.

    Attributes:
        kind: Kind in the index; another one for another model or another way.
        side_px: Pictures are made so small before they are looked at.
        look: What is found in a small picture, as bytes.
        text: What is said while it goes on.
        problems: Filled with a sentence per picture that could not be read.
        fresh: Counts pictures that were not remembered.
    """

    kind: str
    side_px: int
    look: Callable[[Image.Image], bytes]
    text: str
    problems: list[str] = field(default_factory=list)
    fresh: int = 0


def look_at(
    dataset: Dataset,
    rows: Sequence[int],
    way: Pass,
    *,
    index: Index | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Looks at pictures (with their crops) and yields (row, what was found), in order; unreadable ones are left out.

    Pictures are decoded by threads while the one before is looked at. What was found is written to the index every
    few pictures and when the pass is cancelled.
    """
    progress = progress or SilentProgress()
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for start in range(0, len(rows), _BLOCK):
            yield from _block(dataset, rows[start : start + _BLOCK], start, len(rows), way, index, pool, progress)
    progress.update(len(rows), max(1, len(rows)), way.text)


def find_boxes(
    dataset: Dataset,
    detector: Detector,
    *,
    least_score: float,
    rows: Sequence[int] | None = None,
    index: Index | None = None,
    progress: Progress | None = None,
) -> Boxes:
    """Runs a detector over all pictures that it has not seen.

    Args:
        dataset: The pictures.
        detector: From :func:`detect.open_detector`.
        least_score: Boxes below are left out.
        rows: Places of the pictures to look at; None for all.
        index: Where results are remembered.
        progress: Told after every picture; may cancel.

    Raises:
        FormatError: The detector's graph failed.
    """

    def look(image: Image.Image) -> bytes:
        return to_bytes([_scaled(item, 1 / image.width, 1 / image.height) for item in detector.find(image)])

    side_px = 2 * max(detector.width_px, detector.height_px)
    way = Pass(
        kind=f"boxes:1:{detector.identity}", side_px=side_px, look=look, text=f"Looking for boxes with {detector.name}"
    )
    wanted = range(len(dataset)) if rows is None else rows
    boxes: dict[int, list[Found]] = {}
    for row, data in look_at(dataset, wanted, way, index=index, progress=progress):
        width_px, height_px = int(dataset.width_px[row]), int(dataset.height_px[row])
        found = [_scaled(item, width_px, height_px) for item in from_bytes(data)]
        if sure := [item for item in found if item.score >= max(least_score, LEAST_SCORE)]:
            boxes[row] = sure
    origin = f"the detector {detector.name} ({detector.providers[0]}), {way.fresh} of {len(wanted)} pictures anew"
    return Boxes(rows=boxes, problems=tuple(way.problems), origin=origin)


def _scaled(item: Found, factor_x: float, factor_y: float) -> Found:
    left, top, right, bottom = item.box
    box = (left * factor_x, top * factor_y, right * factor_x, bottom * factor_y)
    return Found(name=item.name, score=item.score, box=box)


def _block(
    dataset: Dataset,
    rows: Sequence[int],
    before: int,
    total: int,
    way: Pass,
    index: Index | None,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> Iterator[tuple[int, bytes]]:
    progress.check()
    keys = _keys(dataset, rows, way, index)
    known = {row: data for row, data in _known(keys, way.kind, index).items() if data is not None}
    jobs: dict[int, Future[Shrunk]] = {
        row: pool.submit(load_small, dataset.path(row), way.side_px, crop=dataset.crop(row))
        for row in keys
        if row not in known
    }
    fresh: dict[int, bytes] = {}
    try:
        for done, row in enumerate(keys):
            progress.update(before + done, total, way.text)
            if row not in jobs:
                continue
            try:
                fresh[row] = way.look(jobs[row].result().image)
            except BadPicture as refusal:
                way.problems.append(f"{dataset.names[row]}: {refusal.reason}")
    finally:
        for job in jobs.values():
            job.cancel()
        way.fresh += len(fresh)
        if index is not None:
            index.put_many(way.kind, [(keys[row], data) for row, data in fresh.items()])
    for row in keys:
        if row in known or row in fresh:
            yield row, known[row] if row in known else fresh[row]


def _keys(dataset: Dataset, rows: Sequence[int], way: Pass, index: Index | None) -> dict[int, bytes]:
    """Key by content and crop of each picture that can be read."""
    files = [
        PictureFile(str(dataset.path(row)), int(dataset.size_bytes[row]), int(dataset.mtime_ns[row])) for row in rows
    ]
    keys: dict[int, bytes] = {}
    for row, digest in zip(rows, content_digests(files, index=index), strict=True):
        if isinstance(digest, BadPicture):
            way.problems.append(f"{dataset.names[row]}: {digest.reason}")
            continue
        crop = dataset.crop(row)
        keys[row] = digest if crop is None else digest + struct.pack("<4i", *crop)
    return keys


def _known(keys: Mapping[int, bytes], kind: str, index: Index | None) -> dict[int, bytes | None]:
    if index is None or not keys:
        return {}
    return dict(zip(keys, index.get_many(kind, list(keys.values())), strict=True))
