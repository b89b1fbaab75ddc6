"""Caption files as they are written: text or JSON, read back and replaced whole."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..core.files import atomic_path
from .columns import CATEGORIES
from .sidecars import MAX_CAPTION_BYTES
from .site_json import OWN_MARK
from .table import RATINGS, Dataset

WRITTEN_KIND = "written:1"
"""Hash of the text that was last written to a caption file, by its path."""
OWN_JSON = f'"written_by": "{OWN_MARK}"'.encode()
"""What stands in a JSON file that this pack wrote."""
FORMS = (".txt", ".caption", ".json")


def caption_bytes(dataset: Dataset, row: int, ending: str) -> bytes:
    """Content of a picture's caption file."""
    if ending == ".json":
        return (json.dumps(caption_json(dataset, row), ensure_ascii=False, indent=2) + "\n").encode("utf-8")
    return (dataset.caption(row) + "\n").encode("utf-8")


def caption_json(dataset: Dataset, row: int) -> dict[str, Any]:
    """A picture's caption as JSON: the text, tags by category, scores, and what the site says."""
    tags = dataset.tags
    start, end = int(tags.offsets[row]), int(tags.offsets[row + 1])
    groups: dict[str, list[str]] = {}
    for number in tags.ids[start:end].tolist():
        category = CATEGORIES[int(tags.categories[number])]
        groups.setdefault(category or "uncategorised", []).append(tags.vocabulary[number])
    result: dict[str, Any] = {"written_by": OWN_MARK, "caption": dataset.caption(row), "tags": groups}
    if tags.scores is not None:
        scores = {
            tags.vocabulary[number]: round(float(score), 4)
            for number, score in zip(tags.ids[start:end].tolist(), tags.scores[start:end].tolist(), strict=True)
            if not np.isnan(score)
        }
        result |= {"scores": scores} if scores else {}
    if dataset.site_ratings is not None and dataset.site_ratings[row]:
        result["rating"] = RATINGS[int(dataset.site_ratings[row])]
    if dataset.site_scores is not None and not np.isnan(dataset.site_scores[row]):
        result["score"] = float(dataset.site_scores[row])
    if dataset.site_favourites is not None and dataset.site_favourites[row] >= 0:
        result["fav_count"] = int(dataset.site_favourites[row])
    return result


def bytes_at(path: Path) -> bytes | None:
    """What a caption file holds, up to a little more than a caption can; None when it is not there."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_CAPTION_BYTES + 1)
    except FileNotFoundError:
        return None


def write_caption(path: Path, data: bytes) -> None:
    """Replaces a caption file whole."""
    with atomic_path(path, durable=False) as temporary:
        temporary.write_bytes(data)


def is_read(path: Path) -> bool:
    """Whether of all forms of a caption beside a picture this one is read: of .json and the others the newest is."""
    own = _time_ns(path)
    if path.suffix == ".json":
        return own >= max(_time_ns(path.with_suffix(ending)) for ending in (".txt", ".caption"))
    rival = path.with_suffix(".json")
    return own > _time_ns(rival) or OWN_JSON not in (bytes_at(rival) or b"")


def make_read(path: Path) -> None:
    """Gives a caption that was just written a later time than the other forms where the clock was too coarse."""
    for later_ns in (1_000_000, 2_000_000_000):  # the second for file systems that count in steps of two seconds
        if is_read(path):
            return
        newest = max(_time_ns(path.with_suffix(ending)) for ending in FORMS)
        os.utime(path, ns=(newest + later_ns, newest + later_ns))


def _time_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def hash_of(data: bytes) -> bytes:
    """Hash of a caption file's content (16 bytes)."""
    return hashlib.blake2b(data, digest_size=16).digest()


def written_key(path: Path) -> bytes:
    """Key of a caption file in the index."""
    return str(path).encode("utf-8", "surrogatepass")
